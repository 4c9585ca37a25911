// Faults of the operating system, on demand: preloaded into warmd or QEMU, it makes chosen calls on chosen
// files fail.
//
// usage: LD_PRELOAD=shim.so WARMD_FAULTS=FILE program…
//
// FILE is replaced as a whole, by rename, while the program runs; without FILE there are no faults. A line is
//     CALL PART FROM TO AFTER COUNT ACTION
// CALL: read, write, sync, punch, send or clock. PART: text that the path of the file, or of the sending
// socket, must contain. FROM, TO: the bytes that the call must touch. send is the sending of one answer of an
// NBD server. AFTER: this many such calls succeed first. COUNT: then this many calls fail; -1 all. ACTION: an
// errno; or
//     short    half of the bytes are transferred, and reported
//     hang     nothing happens until FILE is replaced
//     garbage  the bytes read are changed; for send: the answer's first byte is
//     lose     for sync: fails with EIO, and everything written since the last sync is lost, as after a
//              write-back error. A sync of a file without writes since its last one is not counted
// A clock line's ACTION is how many seconds CLOCK_REALTIME is ahead. Each fault appends its line to
// FILE.struck.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 16, WRITES = 4096, SHORT = -1, HANG = -2, GARBAGE = -3, LOSE = -4 };
struct rule { char call[8], part[160], action[16]; long from, to, after, count, what; };
struct written { dev_t dev; ino_t ino; off_t at; size_t len; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rule rules[RULES];
static int known;
static ino_t seen_ino;
static struct timespec seen_time;
static struct written writes[WRITES];
static unsigned long written;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static void load(void) {
    const char *path = getenv("WARMD_FAULTS");
    struct stat now;
    if (!path || stat(path, &now)) { known = 0; seen_ino = 0; return; }
    if (now.st_ino == seen_ino && now.st_mtim.tv_sec == seen_time.tv_sec && now.st_mtim.tv_nsec == seen_time.tv_nsec) return;
    seen_ino = now.st_ino;
    seen_time = now.st_mtim;
    known = 0;
    FILE *file = fopen(path, "re");
    if (!file) return;
    struct rule r;
    while (known < RULES && fscanf(file, "%7s %159s %ld %ld %ld %ld %15s", r.call, r.part, &r.from, &r.to, &r.after, &r.count, r.action) == 7) {
        r.what = !strcmp(r.action, "short") ? SHORT : !strcmp(r.action, "hang") ? HANG : !strcmp(r.action, "garbage") ? GARBAGE
            : !strcmp(r.action, "lose") ? LOSE : atol(r.action);
        rules[known++] = r;
    }
    fclose(file);
}

static void tell(const struct rule *r, const char *path, off_t at, size_t len) {
    char name[512], line[1024];
    snprintf(name, sizeof name, "%s.struck", getenv("WARMD_FAULTS"));
    int n = snprintf(line, sizeof line, "%s %s %ld %zu %s\n", r->call, path, (long)at, len, r->action);
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    if (REAL(write)(fd, line, n) != n) abort();
    close(fd);
}

// Whether the file was written since its last sync. The caller holds the lock.
static int dirty(int fd) {
    struct stat file;
    if (fstat(fd, &file)) return 0;
    for (unsigned long i = 0; i < WRITES; i++) {
        if (writes[i].len && writes[i].dev == file.st_dev && writes[i].ino == file.st_ino) return 1;
    }
    return 0;
}

// The path of an open file, or of the socket that a server accepts on; 0 if there is none.
static int path_of(int fd, char *path, size_t len) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, len - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    if (strncmp(path, "socket:", 7)) return 1;
    struct sockaddr_un own = { 0 };
    socklen_t size = sizeof own - 1;
    if (getsockname(fd, (struct sockaddr *)&own, &size) || own.sun_family != AF_UNIX) return 0;
    snprintf(path, len, "%s", own.sun_path);
    return path[0] != 0;
}

// The fault of this call; 0 if none.
static long strike(const char *call, int fd, off_t at, size_t len) {
    if (!getenv("WARMD_FAULTS")) return 0;
    char path[512];
    long what = 0;
    int kept = errno;
    pthread_mutex_lock(&lock);
    load();
    for (int i = 0; i < known && !what; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, call) || r->count == 0 || at >= r->to || (off_t)(at + len) <= r->from) continue;
        if (!path_of(fd, path, sizeof path) || !strstr(path, r->part)) continue;
        if (r->what == LOSE && !dirty(fd)) continue;
        if (r->after > 0) { r->after--; continue; }
        if (r->count > 0) r->count--;
        tell(r, path, at, len);
        what = r->what;
    }
    ino_t during = seen_ino;
    pthread_mutex_unlock(&lock);
    while (what == HANG) {
        usleep(20000);
        pthread_mutex_lock(&lock);
        load();
        if (seen_ino != during) what = 0;
        pthread_mutex_unlock(&lock);
    }
    errno = kept;
    return what;
}

static void remember(int fd, off_t at, ssize_t len) {
    struct stat file;
    if (len <= 0 || !getenv("WARMD_FAULTS") || fstat(fd, &file) || !S_ISREG(file.st_mode)) return;
    pthread_mutex_lock(&lock);
    writes[written++ % WRITES] = (struct written){ file.st_dev, file.st_ino, at, len };
    pthread_mutex_unlock(&lock);
}

// The writes to this file since its last sync: forgotten, or lost.
static void settle(int fd, int lose) {
    struct stat file;
    if (!getenv("WARMD_FAULTS") || fstat(fd, &file)) return;
    pthread_mutex_lock(&lock);
    for (unsigned long i = 0; i < WRITES; i++) {
        struct written *w = &writes[i];
        if (!w->len || w->dev != file.st_dev || w->ino != file.st_ino) continue;
        if (lose) {
            char *junk = malloc(w->len);
            memset(junk, 0xdb, w->len);
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            int other = open(link, O_WRONLY | O_CLOEXEC);
            if (!junk || other < 0 || REAL(pwrite64)(other, junk, w->len, w->at) != (ssize_t)w->len) abort();
            close(other);
            free(junk);
        }
        w->len = 0;
    }
    pthread_mutex_unlock(&lock);
}

static size_t half(size_t len) { return len > 8192 ? len / 2 & ~(size_t)4095 : len > 1 && len < 512 ? len / 2 : len; }

static ssize_t read_at(int fd, void *to, size_t len, off_t at) {
    long what = strike("read", fd, at, len);
    if (what > 0) { errno = what; return -1; }
    ssize_t got = REAL(pread64)(fd, to, what == SHORT ? half(len) : len, at);
    if (what == GARBAGE && got > 0) for (ssize_t i = 0; i < got; i += 64) ((char *)to)[i] ^= 0x55;
    return got;
}

static ssize_t write_at(int fd, const void *from, size_t len, off_t at) {
    long what = strike("write", fd, at, len);
    if (what > 0) { errno = what; return -1; }
    ssize_t put = REAL(pwrite64)(fd, from, what == SHORT ? half(len) : len, at);
    remember(fd, at, put);
    return put;
}

static size_t total(const struct iovec *parts, int count) {
    size_t len = 0;
    for (int i = 0; i < count; i++) len += parts[i].iov_len;
    return len;
}

ssize_t pread(int fd, void *to, size_t len, off_t at) { return read_at(fd, to, len, at); }
ssize_t pread64(int fd, void *to, size_t len, off64_t at) { return read_at(fd, to, len, at); }
ssize_t pwrite(int fd, const void *from, size_t len, off_t at) { return write_at(fd, from, len, at); }
ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at) { return write_at(fd, from, len, at); }

static ssize_t readv_at(int fd, const struct iovec *parts, int count, off_t at) {
    long what = strike("read", fd, at, total(parts, count));
    if (what > 0) { errno = what; return -1; }
    return REAL(preadv64)(fd, parts, count, at);
}
static ssize_t writev_at(int fd, const struct iovec *parts, int count, off_t at) {
    long what = strike("write", fd, at, total(parts, count));
    if (what > 0) { errno = what; return -1; }
    return REAL(pwritev64)(fd, parts, count, at);
}
ssize_t preadv(int fd, const struct iovec *parts, int count, off_t at) { return readv_at(fd, parts, count, at); }
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) { return readv_at(fd, parts, count, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return writev_at(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return writev_at(fd, parts, count, at); }

static int sync_by(int fd, int (*real)(int)) {
    long what = strike("sync", fd, 0, 1);
    if (what == LOSE) { settle(fd, 1); errno = EIO; return -1; }
    if (what > 0) { errno = what; return -1; }
    int done = real(fd);
    if (!done) settle(fd, 0);
    return done;
}
int fsync(int fd) { return sync_by(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_by(fd, REAL(fdatasync)); }

static int allocate(int fd, int mode, off_t at, off_t len) {
    long what = mode & FALLOC_FL_PUNCH_HOLE ? strike("punch", fd, at, len) : 0;
    if (what > 0) { errno = what; return -1; }
    return REAL(fallocate64)(fd, mode, at, len);
}
int fallocate(int fd, int mode, off_t at, off_t len) { return allocate(fd, mode, at, len); }
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return allocate(fd, mode, at, len); }

// What an answer of NBD begins with: a simple reply, or a chunk of a structured one.
static int is_answer(const struct msghdr *message) {
    static const unsigned char simple[4] = { 0x67, 0x44, 0x66, 0x98 }, chunk[4] = { 0x66, 0x8e, 0x33, 0xef };
    if (!message->msg_iovlen || message->msg_iov[0].iov_len < sizeof simple) return 0;
    const void *start = message->msg_iov[0].iov_base;
    return !memcmp(start, simple, sizeof simple) || !memcmp(start, chunk, sizeof chunk);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (!is_answer(message) || strike("send", fd, 0, 1) != GARBAGE) return REAL(sendmsg)(fd, message, flags);
    // The sender's own memory stays unchanged: this byte is sent from here, the rest by the next calls.
    unsigned char first = *(unsigned char *)message->msg_iov[0].iov_base ^ 0xff;
    struct iovec part = { &first, 1 };
    struct msghdr changed = { .msg_iov = &part, .msg_iovlen = 1 };
    return REAL(sendmsg)(fd, &changed, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = syscall(SYS_clock_gettime, clock, now);
    if (done || clock != CLOCK_REALTIME || !getenv("WARMD_FAULTS")) return done;
    pthread_mutex_lock(&lock);
    load();
    for (int i = 0; i < known; i++) if (!strcmp(rules[i].call, "clock")) now->tv_sec += rules[i].what;
    pthread_mutex_unlock(&lock);
    return done;
}
