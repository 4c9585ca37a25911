/* Job: disks: open, read, allocation, close. "[store] vm/disk.vmdk" in snapshot S is the file that
 * EXPORTS/S/disk.vmdk links to; without a snapshot it is EXPORTS/running/VM/disk.vmdk.
 * Rule: a machine that runs has its disks locked; only a snapshot of them can be read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "standin.h"

static int belongs (const char *folder, const char *vm)
{
  char path[4096], text[256] = "";
  FILE *file;
  snprintf (path, sizeof path, "%s/vm", folder);
  file = fopen (path, "r");
  if (!file) return 0;
  if (!fgets (text, sizeof text, file)) text[0] = 0;
  fclose (file);
  return strcmp (text, vm) == 0;
}

static vix_error find (const struct connection *c, const char *path, char *file, size_t size)
{
  const char *base = strrchr (path, '/');
  char folder[3072], lock[4096];
  if (path[0] != '[' || !base || strstr (path, "..")) {
    complain ("VixDiskLib: %s is no name on a datastore", path);
    return VIX_INVALID_ARG;
  }
  if (c->snapshot) snprintf (folder, sizeof folder, "%s/%s", settings.exports, c->snapshot);
  else snprintf (folder, sizeof folder, "%s/running/%s", settings.exports, c->vm);
  if (c->snapshot && strchr (c->snapshot, '/')) return VIX_INVALID_ARG;
  if (!belongs (folder, c->vm)) {
    complain ("VixDiskLibVim: %s has no snapshot %s, or does not exist",
              c->vm, c->snapshot ? c->snapshot : "-");
    return VIX_FILE_NOT_FOUND;
  }
  snprintf (lock, sizeof lock, "%s/locked", folder);
  if (access (lock, F_OK) == 0) {
    complain ("DISKLIB-LINK: \"%s\" is locked: the virtual machine runs", path);
    return VIX_FILE_ACCESS;
  }
  snprintf (file, size, "%s/%s", folder, base + 1);
  return VIX_OK;
}

API vix_error VixDiskLib_Open (void *connection, const char *path, uint32_t flags, void **out)
{
  struct connection *c = connection;
  char file[4096];
  struct stat st;
  vix_error error = find (c, path, file, sizeof file);
  if (error != VIX_OK) return error;
  if (!(flags & READ_ONLY)) {
    complain ("the stand-in opens disks for reading only");
    return VIX_NOT_SUPPORTED;
  }
  struct disk *d = calloc (1, sizeof *d);
  if (!d) return VIX_FAIL;
  d->slot = slot_take ();
  if (d->slot == -1) {
    complain ("NfcFssrvrOpen: received NFC error 5 from server: Failed to allocate memory for a connection");
    free (d);
    return VIX_SERVER_REFUSED;
  }
  d->fd = open (file, O_RDONLY | O_CLOEXEC);
  if (d->fd == -1 || fstat (d->fd, &st) == -1) {
    complain ("DISKLIB-LINK: \"%s\" : failed to open (%s)", path, strerror (errno));
    if (d->fd != -1) close (d->fd);
    slot_give (d->slot);
    free (d);
    return VIX_FILE_NOT_FOUND;
  }
  d->sectors = st.st_size / SECTOR;
  d->queue = queue_new (d);
  if (!d->queue) {
    close (d->fd);
    slot_give (d->slot);
    free (d);
    return VIX_FAIL;
  }
  say ("DISKLIB-LINK: Opened '%s': %llu sectors", path, (unsigned long long) d->sectors);
  *out = d;
  return VIX_OK;
}

API vix_error VixDiskLib_Close (void *handle)
{
  struct disk *d = handle;
  queue_free (d->queue);
  close (d->fd);
  slot_give (d->slot);
  free (d);
  return VIX_OK;
}

API const char *VixDiskLib_GetTransportMode (void *handle) { (void) handle; return "nbdssl"; }

API vix_error VixDiskLib_GetInfo (void *handle, struct information **out)
{
  struct disk *d = handle;
  struct information *info = calloc (1, sizeof *info);
  if (!info) return VIX_FAIL;
  info->capacity = d->sectors;
  info->adapter = 3;
  info->links = 1;
  info->logical_sector = info->physical_sector = SECTOR;
  *out = info;
  return VIX_OK;
}

API void VixDiskLib_FreeInfo (struct information *info) { free (info); }

vix_error disk_read (struct disk *d, uint64_t sector, uint64_t count, unsigned char *into)
{
  size_t left = count * SECTOR;
  off_t at = (off_t) (sector * SECTOR);
  if (sector > d->sectors || count > d->sectors - sector) return VIX_INVALID_ARG;
  if (settings.bad_sector >= 0 && (uint64_t) settings.bad_sector - sector < count &&
      (uint64_t) settings.bad_sector >= sector) {
    complain ("NfcFssrvrRead: a sector of the disk cannot be read");
    return VIX_FAIL;
  }
  while (left > 0) {
    ssize_t n = pread (d->fd, into, left, at);
    if (n == -1 && errno == EINTR) continue;
    if (n <= 0) return VIX_FAIL;
    into += n;
    at += n;
    left -= (size_t) n;
  }
  return VIX_OK;
}

API vix_error VixDiskLib_Read (void *handle, uint64_t sector, uint64_t count, unsigned char *into)
{
  take_time ();
  return disk_read (handle, sector, count, into);
}

API vix_error VixDiskLib_ReadAsync (void *handle, uint64_t sector, uint64_t count, unsigned char *into,
                                    vix_done *done, void *data)
{
  struct disk *d = handle;
  return queue_add (d->queue, sector, count, into, done, data);
}

API vix_error VixDiskLib_Wait (void *handle)
{
  struct disk *d = handle;
  queue_wait (d->queue);
  return VIX_OK;
}

API vix_error VixDiskLib_Flush (void *handle) { (void) handle; return VIX_OK; }

API vix_error VixDiskLib_Write (void *handle, uint64_t sector, uint64_t count, const unsigned char *from)
{
  (void) handle; (void) sector; (void) count; (void) from;
  return VIX_NOT_SUPPORTED;
}

API vix_error VixDiskLib_WriteAsync (void *handle, uint64_t sector, uint64_t count, const unsigned char *from,
                                     vix_done *done, void *data)
{
  (void) handle; (void) sector; (void) count; (void) from; (void) done; (void) data;
  return VIX_NOT_SUPPORTED;
}

API vix_error VixDiskLib_Create (void *connection, const char *path, const void *parameters,
                                 void *progress, void *data)
{
  (void) connection; (void) path; (void) parameters; (void) progress; (void) data;
  return VIX_NOT_SUPPORTED;
}

API vix_error VixDiskLib_QueryAllocatedBlocks (void *handle, uint64_t start, uint64_t count, uint64_t chunk,
                                               struct blocks **out)
{
  struct disk *d = handle;
  uint64_t at = start, end;
  struct blocks *b;
  if (settings.no_allocation) return VIX_NOT_SUPPORTED;
  if (chunk == 0 || start > d->sectors) return VIX_INVALID_ARG;
  end = count < d->sectors - start ? start + count : d->sectors;
  b = calloc (1, sizeof *b + ((end - start) / chunk + 2) * sizeof b->list[0]);
  if (!b) return VIX_FAIL;
  take_time ();
  while (at < end) {
    off_t data = lseek (d->fd, (off_t) (at * SECTOR), SEEK_DATA), hole;
    if (data == -1) break;
    hole = lseek (d->fd, data, SEEK_HOLE);
    uint64_t from = (uint64_t) data / SECTOR / chunk * chunk;
    uint64_t to = ((uint64_t) hole + SECTOR * chunk - 1) / SECTOR / chunk * chunk;
    struct block *last = b->count ? &b->list[b->count - 1] : NULL;
    if (from < start) from = start;
    if (to > end) to = end;
    if (from >= end) break;
    if (last && last->offset + last->length >= from) last->length = to - last->offset;
    else b->list[b->count++] = (struct block) { from, to - from };
    at = to;
  }
  *out = b;
  return VIX_OK;
}

API vix_error VixDiskLib_FreeBlockList (struct blocks *list) { free (list); return VIX_OK; }
