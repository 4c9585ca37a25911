/* Job: what the stand-in's files share.
 * Rule: settings come from standin.conf beside lib64; an environment variable of the same meaning wins.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <pthread.h>
#include <time.h>

#include "api.h"

/* A server that is an ESXi host: with ids and a user of its own. */
struct door { uint32_t port; char thumbprint[128], user[256], password[256]; };

enum { MOST_DOORS = 64 };

struct settings {
  char exports[1024], user[256], password[256], thumbprint[128];
  long latency_ms;     /* each read and each look at allocation takes so long; VDDK_STANDIN_LATENCY_MS */
  long in_flight;      /* most reads at a time per disk, 0: no limit; VDDK_STANDIN_IN_FLIGHT */
  long connections;    /* most open disks of all processes, 0: no limit; VDDK_STANDIN_CONNECTIONS */
  long long bad_sector; /* reading it fails, -1: none; VDDK_STANDIN_BAD_SECTOR */
  struct door doors[MOST_DOORS];
  int door_count;
  int no_allocation;   /* the look at allocation is not supported; VDDK_STANDIN_NO_ALLOCATION */
};

extern struct settings settings;

/* settings.c */
int settings_read (void);

/* say.c */
void say_to (vix_log *log, vix_log *warn);
void say (const char *format, ...) __attribute__ ((format (printf, 1, 2)));
void complain (const char *format, ...) __attribute__ ((format (printf, 1, 2)));

/* connect.c */
struct connection { char *snapshot, *vm; int read_only; };

/* disk.c */
struct disk { int fd, slot; uint64_t sectors; struct queue *queue; };
vix_error disk_read (struct disk *disk, uint64_t sector, uint64_t count, unsigned char *into);

/* queue.c: reads that are under way; each is done its latency after it was asked for. */
struct queue *queue_new (struct disk *disk);
vix_error queue_add (struct queue *queue, uint64_t sector, uint64_t count, unsigned char *into,
                     vix_done *done, void *data);
void queue_wait (struct queue *queue);
void queue_free (struct queue *queue);
void take_time (void);

/* slots.c */
int slot_take (void);
void slot_give (int slot);

#endif
