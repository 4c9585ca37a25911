/* Job: reads that are under way.
 * Rule: reads overlap, as they do in VMware's library: each is done its latency after it was asked for.
 */
#include <errno.h>
#include <stdlib.h>

#include "standin.h"

struct entry {
  struct entry *next;
  struct timespec due;
  uint64_t sector, count;
  unsigned char *into;
  vix_done *done;
  void *data;
};

struct queue {
  struct disk *disk;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct entry *first, **last;
  long length;
  int ending;
};

static struct timespec later (void)
{
  struct timespec at;
  clock_gettime (CLOCK_MONOTONIC, &at);
  at.tv_sec += settings.latency_ms / 1000;
  at.tv_nsec += settings.latency_ms % 1000 * 1000000;
  if (at.tv_nsec >= 1000000000) { at.tv_sec++; at.tv_nsec -= 1000000000; }
  return at;
}

static void sleep_until (const struct timespec *at)
{
  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, at, NULL) == EINTR) {}
}

void take_time (void)
{
  struct timespec at = later ();
  if (settings.latency_ms > 0) sleep_until (&at);
}

static void *work (void *argument)
{
  struct queue *q = argument;
  pthread_mutex_lock (&q->lock);
  for (;;) {
    struct entry *e = q->first;
    vix_error error;
    if (!e) {
      if (q->ending) break;
      pthread_cond_wait (&q->changed, &q->lock);
      continue;
    }
    pthread_mutex_unlock (&q->lock);
    sleep_until (&e->due);
    error = disk_read (q->disk, e->sector, e->count, e->into);
    e->done (e->data, error);
    pthread_mutex_lock (&q->lock);
    q->first = e->next;
    if (!q->first) q->last = &q->first;
    q->length--;
    pthread_cond_broadcast (&q->changed);
    free (e);
  }
  pthread_mutex_unlock (&q->lock);
  return NULL;
}

struct queue *queue_new (struct disk *disk)
{
  struct queue *q = calloc (1, sizeof *q);
  if (!q) return NULL;
  q->disk = disk;
  q->last = &q->first;
  pthread_mutex_init (&q->lock, NULL);
  pthread_cond_init (&q->changed, NULL);
  if (pthread_create (&q->thread, NULL, work, q)) { free (q); return NULL; }
  return q;
}

vix_error queue_add (struct queue *q, uint64_t sector, uint64_t count, unsigned char *into,
                     vix_done *done, void *data)
{
  struct entry *e = calloc (1, sizeof *e);
  if (!e) return VIX_FAIL;
  e->sector = sector;
  e->count = count;
  e->into = into;
  e->done = done;
  e->data = data;
  pthread_mutex_lock (&q->lock);
  while (settings.in_flight > 0 && q->length >= settings.in_flight) pthread_cond_wait (&q->changed, &q->lock);
  e->due = later ();
  *q->last = e;
  q->last = &e->next;
  q->length++;
  pthread_cond_broadcast (&q->changed);
  pthread_mutex_unlock (&q->lock);
  return VIX_ASYNC;
}

void queue_wait (struct queue *q)
{
  pthread_mutex_lock (&q->lock);
  while (q->length > 0) pthread_cond_wait (&q->changed, &q->lock);
  pthread_mutex_unlock (&q->lock);
}

void queue_free (struct queue *q)
{
  pthread_mutex_lock (&q->lock);
  q->ending = 1;
  pthread_cond_broadcast (&q->changed);
  pthread_mutex_unlock (&q->lock);
  pthread_join (q->thread, NULL);
  pthread_cond_destroy (&q->changed);
  pthread_mutex_destroy (&q->lock);
  free (q);
}
