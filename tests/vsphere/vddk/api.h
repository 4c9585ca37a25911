/* Job: the part of the VixDiskLib interface that nbdkit's vddk plugin uses.
 * Rule: names, order and sizes are those of VMware's public programming reference; no code of VMware's is
 * here.
 */
#ifndef STANDIN_API_H
#define STANDIN_API_H

#include <stdarg.h>
#include <stdint.h>

#define API __attribute__ ((visibility ("default")))
#define SECTOR 512

typedef uint64_t vix_error;
typedef void vix_log (const char *format, va_list values);
typedef void vix_done (void *data, vix_error error);

/* The codes, and the texts in errors.c, that a client may have to tell from each other. */
enum {
  VIX_OK = 0,
  VIX_FAIL = 1,
  VIX_INVALID_ARG = 3,
  VIX_FILE_NOT_FOUND = 4,
  VIX_NOT_SUPPORTED = 6,
  VIX_FILE_ACCESS = 13,
  VIX_USER_PERMISSIONS = 3014,
  VIX_NO_SERVER = 14008,
  VIX_SERVER_REFUSED = 14009,
  VIX_ASYNC = 25000,
};

enum { READ_ONLY = 4 };
enum { BY_PASSWORD = 1, BY_SESSION = 2 };

struct parameters {
  char *vm, *server, *thumbprint;
  long reserved;
  int by;
  union {
    struct { char *user, *password; } password;
    struct { char *cookie, *user, *key; } session;
  } credentials;
  uint32_t port, nfc_port;
};

struct information {
  uint32_t bios_geometry[3], real_geometry[3];
  uint64_t capacity;
  int adapter, links;
  char *parent_hint, *uuid;
  uint32_t logical_sector, physical_sector;
};

struct block { uint64_t offset, length; };
struct blocks { uint32_t count; struct block list[1]; };

#endif
