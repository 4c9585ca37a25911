/* Job: start, connection, end.
 * Rule: what is wrong with a connection has the code that VMware gives it, and says what was expected.
 */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "standin.h"

API vix_error VixDiskLib_InitEx (uint32_t major, uint32_t minor, vix_log *log, vix_log *warn, vix_log *panic,
                                 const char *folder, const char *config)
{
  (void) panic; (void) folder; (void) config;
  say_to (log, warn);
  say ("VixDiskLib stand-in for tests (asked for %u.%u)", major, minor);
  return VIX_OK;
}

API void VixDiskLib_Exit (void) {}

API const char *VixDiskLib_ListTransportModes (void) { return "file:nbdssl:nbd"; }

/* nbdkit makes its parameters itself. */
API void VixDiskLib_FreeConnectParams (void *parameters) { (void) parameters; abort (); }

/* Whether something listens there: a real library logs in. */
static int reachable (const char *server, uint32_t port)
{
  char service[16];
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found, *one;
  int ok = 0;
  snprintf (service, sizeof service, "%u", port ? port : 443);
  if (getaddrinfo (server, service, &hints, &found)) return 0;
  for (one = found; one && !ok; one = one->ai_next) {
    int fd = socket (one->ai_family, one->ai_socktype, one->ai_protocol);
    if (fd == -1) continue;
    ok = connect (fd, one->ai_addr, one->ai_addrlen) == 0;
    close (fd);
  }
  freeaddrinfo (found);
  return ok;
}

/* A host calls vm-7 just 7. What is no number there is nothing that it knows. */
static char *ours (const char *prefix, const char *number)
{
  char text[64];
  if (!*number || strspn (number, "0123456789") != strlen (number)) return strdup ("none");
  snprintf (text, sizeof text, "%s%s", prefix, number);
  return strdup (text);
}

/* A host calls snapshot-3 of machine 7 just 7-snapshot-3. */
static char *after_dash (const char *snapshot)
{
  size_t digits = strspn (snapshot, "0123456789");
  return strdup (digits && snapshot[digits] == '-' ? snapshot + digits + 1 : "none");
}

API vix_error VixDiskLib_ConnectEx (const struct parameters *p, char read_only, const char *snapshot,
                                    const char *modes, void **out)
{
  const char *thumbprint = settings.thumbprint, *user = settings.user, *password = settings.password;
  const struct door *host = NULL;
  struct connection *c;

  if (!settings_read ()) return VIX_FAIL;
  say ("ConnectEx: server %s:%u, vm %s, snapshot %s, transports %s", p->server ? p->server : "-", p->port,
       p->vm ? p->vm : "-", snapshot ? snapshot : "-", modes ? modes : "-");
  if (!p->server || !p->vm) {
    complain ("VixDiskLib: server and vm are needed for a remote disk");
    return VIX_INVALID_ARG;
  }
  if (!reachable (p->server, p->port)) {
    complain ("VixDiskLibVim: Failed to connect to %s:%u", p->server, p->port ? p->port : 443);
    return VIX_NO_SERVER;
  }
  for (int i = 0; i < settings.door_count; i++)
    if (settings.doors[i].port == p->port) host = &settings.doors[i];
  if (host) {
    thumbprint = host->thumbprint;
    user = host->user;
    password = host->password;
  }
  if (!p->thumbprint || strcasecmp (p->thumbprint, thumbprint)) {
    complain ("VixDiskLibVim: SSL verification failed: expected thumbprint %s, the server's is %s",
              p->thumbprint ? p->thumbprint : "(none)", thumbprint);
    return VIX_INVALID_ARG;
  }
  if (p->by == BY_PASSWORD && (!p->credentials.password.user || !p->credentials.password.password ||
                               strcmp (p->credentials.password.user, user) ||
                               strcmp (p->credentials.password.password, password))) {
    complain ("VixDiskLibVim: Login failure: "
              "Cannot complete login due to an incorrect user name or password.");
    return VIX_USER_PERMISSIONS;
  }
  if (strncmp (p->vm, "moref=", 6)) {
    complain ("VixDiskLib: the virtual machine is given as %s, not as moref=ID", p->vm);
    return VIX_INVALID_ARG;
  }
  c = calloc (1, sizeof *c);
  if (!c) return VIX_FAIL;
  c->vm = host ? ours ("vm-", p->vm + 6) : strdup (p->vm + 6);
  c->snapshot = !snapshot || !*snapshot ? NULL : host ? after_dash (snapshot) : strdup (snapshot);
  c->read_only = read_only;
  *out = c;
  return VIX_OK;
}

API vix_error VixDiskLib_Disconnect (void *connection)
{
  struct connection *c = connection;
  free (c->snapshot);
  free (c->vm);
  free (c);
  return VIX_OK;
}
