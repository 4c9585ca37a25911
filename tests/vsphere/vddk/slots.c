/* Job: the memory that an ESXi host has for NFC, as a number of open disks in all processes.
 * Rule: a slot is a locked file, so that the end of a process gives it back, however it ended.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "standin.h"

/* -1: none is free. -2: there is no limit. */
int slot_take (void)
{
  char path[2048];
  if (settings.connections <= 0) return -2;
  snprintf (path, sizeof path, "%s/nfc", settings.exports);
  mkdir (path, 0700);
  for (long i = 0; i < settings.connections; i++) {
    snprintf (path, sizeof path, "%s/nfc/%ld", settings.exports, i);
    int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd == -1) continue;
    if (flock (fd, LOCK_EX | LOCK_NB) == 0) return fd;
    close (fd);
  }
  return -1;
}

void slot_give (int slot)
{
  if (slot >= 0) close (slot);
}
