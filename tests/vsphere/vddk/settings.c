/* Job: the settings of the stand-in.
 * Rule: they are read again for each connection, so that a test may change them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

struct settings settings = { .bad_sector = -1 };

static void number (const char *name, long long *value)
{
  const char *text = getenv (name);
  if (text && *text) *value = strtoll (text, NULL, 0);
}

static void copy (char *into, size_t size, const char *text)
{
  snprintf (into, size, "%s", text);
}

static void door (const char *value)
{
  struct door *d = &settings.doors[settings.door_count];
  if (settings.door_count == MOST_DOORS) return;
  if (sscanf (value, "%u %127s %255s %255s", &d->port, d->thumbprint, d->user, d->password) == 4)
    settings.door_count++;
  else
    complain ("the stand-in cannot read door=%s", value);
}

static int beside_library (char *path, size_t size)
{
  Dl_info library;
  char *end;
  if (!dladdr ((void *) settings_read, &library) || !library.dli_fname) return 0;
  copy (path, size, library.dli_fname);
  /* …/lib64/libvixDiskLib.so.8 */
  for (int up = 0; up < 2; up++) {
    end = strrchr (path, '/');
    if (!end) return 0;
    *end = 0;
  }
  return strlen (path) + sizeof "/standin.conf" <= size && strcat (path, "/standin.conf") != NULL;
}

int settings_read (void)
{
  char path[4096], line[2048];
  long long latency = 0, in_flight = 0, connections = 0, bad = -1, none = 0;
  FILE *file;

  if (!beside_library (path, sizeof path) || !(file = fopen (path, "r"))) {
    complain ("the stand-in's settings cannot be read: %s", path);
    return 0;
  }
  settings.door_count = 0;
  while (fgets (line, sizeof line, file)) {
    char *value = strchr (line, '=');
    if (!value) continue;
    *value++ = 0;
    value[strcspn (value, "\r\n")] = 0;
    if (!strcmp (line, "exports")) copy (settings.exports, sizeof settings.exports, value);
    else if (!strcmp (line, "user")) copy (settings.user, sizeof settings.user, value);
    else if (!strcmp (line, "password")) copy (settings.password, sizeof settings.password, value);
    else if (!strcmp (line, "thumbprint")) copy (settings.thumbprint, sizeof settings.thumbprint, value);
    else if (!strcmp (line, "door")) door (value);
    else if (!strcmp (line, "latency_ms")) latency = strtoll (value, NULL, 0);
    else if (!strcmp (line, "in_flight")) in_flight = strtoll (value, NULL, 0);
    else if (!strcmp (line, "connections")) connections = strtoll (value, NULL, 0);
    else if (!strcmp (line, "bad_sector")) bad = strtoll (value, NULL, 0);
    else if (!strcmp (line, "no_allocation")) none = strtoll (value, NULL, 0);
    else complain ("the stand-in has no setting %s", line);
  }
  fclose (file);
  number ("VDDK_STANDIN_LATENCY_MS", &latency);
  number ("VDDK_STANDIN_IN_FLIGHT", &in_flight);
  number ("VDDK_STANDIN_CONNECTIONS", &connections);
  number ("VDDK_STANDIN_BAD_SECTOR", &bad);
  number ("VDDK_STANDIN_NO_ALLOCATION", &none);
  settings.latency_ms = latency;
  settings.in_flight = in_flight;
  settings.connections = connections;
  settings.bad_sector = bad;
  settings.no_allocation = none != 0;
  return settings.exports[0] != 0;
}
