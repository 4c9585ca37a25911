// Ends a daemon as kill -9 does when it logs a named point: preloaded into warmd, whose log is on standard error
// and has the level trace for `warmd_core::crash`.
//
// usage: LD_PRELOAD=crash.so WARMD_CRASH_AT=NAME[:N] warmd serve…
//
// The thread that logs the point does nothing after it: it is killed before its write returns. N counts the
// lines of the point, from 1.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char wanted[160];
static long last = 1;
static atomic_long seen;

__attribute__((constructor)) static void begin(void) {
    const char *at = getenv("WARMD_CRASH_AT");
    if (!at) return;
    const char *colon = strchr(at, ':');
    int length = colon ? (int)(colon - at) : (int)strlen(at);
    if (colon) last = atol(colon + 1);
    snprintf(wanted, sizeof wanted, "point=\"%.*s\"", length, at);
    // Programs that the daemon starts have no points.
    unsetenv("WARMD_CRASH_AT");
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    ssize_t done = real(fd, data, size);
    if (fd == STDERR_FILENO && wanted[0] && memmem(data, size, wanted, strlen(wanted)) && atomic_fetch_add(&seen, 1) + 1 == last) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return done;
}
