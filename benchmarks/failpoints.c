/* Sees each call that changes a file below a directory, whoever makes it: Python or TensorFlow.
 *
 * Preloaded (LD_PRELOAD) with FAILPOINTS_UNDER=DIRECTORY. Before each such call it writes a line to FAILPOINTS_LOG,
 * "number kind name", and then
 *   copies the directory to FAILPOINTS_COPIES/number, if that is set and the kind is a change: what a process leaves that
 *   is killed at this instant; of a write there is also number.half, with half of its bytes written;
 *   or fails with an error, if `failpoints_fail(kind, name, nth, errno)` asked for it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static int number, failing_nth, failing_errno, seen;
static char failing_kind[32], failing_name[256];
static __thread int inside;

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static int is_below(const char *path, char *name) {
    const char *under = getenv("FAILPOINTS_UNDER");
    char whole[PATH_MAX];
    if (inside || !under || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        strncat(whole, path, sizeof whole - strlen(whole) - 1);
        path = whole;
    }
    size_t length = strlen(under);
    if (strncmp(path, under, length) || (path[length] && path[length] != '/')) return 0;
    snprintf(name, 256, "%.255s", path + length);
    return 1;
}

static int fd_below(int fd, char *name) {
    char link[64], path[PATH_MAX];
    if (inside || fd < 3 || !getenv("FAILPOINTS_UNDER")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path, name);
}

static void copy(const char *suffix) {
    const char *copies = getenv("FAILPOINTS_COPIES");
    char command[2 * PATH_MAX + 64];
    if (!copies) return;
    snprintf(command, sizeof command, "cp -a '%s' '%s/%d%s'", getenv("FAILPOINTS_UNDER"), copies, number, suffix);
    if (system(command)) fprintf(stderr, "failpoints: %s failed\n", command);
}

/* Returns an errno to fail with, or 0. `changes` tells whether the call changes what is on disk. */
static int note(const char *kind, const char *name, int changes) {
    const char *log = getenv("FAILPOINTS_LOG");
    int found = 0;
    pthread_mutex_lock(&one);
    inside = 1;
    number++;
    if (log) {
        FILE *file = NEXT(FILE *, "fopen", const char *, const char *)(log, "a");
        if (file) {
            fprintf(file, "%d %s %s\n", number, kind, name);
            NEXT(int, "fclose", FILE *)(file);
        }
    }
    if (changes) copy("");
    if (failing_nth && !strcmp(kind, failing_kind) && strstr(name, failing_name) && ++seen >= failing_nth) found = failing_errno;
    inside = 0;
    pthread_mutex_unlock(&one);
    return found;
}

/* From now on the nth call of a kind whose name contains `name`, and those after it, fail; nth = 0: none does. */
void failpoints_fail(const char *kind, const char *name, int nth, int error) {
    pthread_mutex_lock(&one);
    snprintf(failing_kind, sizeof failing_kind, "%s", kind);
    snprintf(failing_name, sizeof failing_name, "%s", name);
    seen = 0;
    failing_nth = nth;
    failing_errno = error;
    pthread_mutex_unlock(&one);
}

int failpoints_calls(void) { return number; }

#define FAIL(kind, name, changes, result)                    \
    do {                                                     \
        int error_ = note(kind, name, changes);              \
        if (error_) { errno = error_; return result; }       \
    } while (0)

static int opened(const char *path, int flags) {
    char name[256];
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && is_below(path, name)) return note("open", name, !!(flags & (O_CREAT | O_TRUNC)));
    return 0;
}

#define OPEN(symbol)                                                                             \
    int symbol(const char *path, int flags, ...) {                                               \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list);    \
        int error = opened(path, flags);                                                         \
        if (error) { errno = error; return -1; }                                                 \
        return NEXT(int, #symbol, const char *, int, ...)(path, flags, mode);                    \
    }
OPEN(open)
OPEN(open64)

#define FOPEN(symbol)                                                                                        \
    FILE *symbol(const char *path, const char *mode) {                                                       \
        char name[256];                                                                                      \
        if (strpbrk(mode, "wa+") && is_below(path, name)) FAIL("fopen", name, 1, NULL);                      \
        return NEXT(FILE *, #symbol, const char *, const char *)(path, mode);                                \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    char name[256];
    if (fd_below(fd, name)) {
        FAIL("write", name, 1, -1);
        if (getenv("FAILPOINTS_COPIES") && size > 1 && !inside) {
            ssize_t half = NEXT(ssize_t, "write", int, const void *, size_t)(fd, data, size / 2);
            if (half < 0) return half;
            pthread_mutex_lock(&one); inside = 1; copy(".half"); inside = 0; pthread_mutex_unlock(&one);
            ssize_t rest = NEXT(ssize_t, "write", int, const void *, size_t)(fd, (const char *)data + half, size - half);
            return rest < 0 ? half : half + rest;
        }
    }
    return NEXT(ssize_t, "write", int, const void *, size_t)(fd, data, size);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    char name[256];
    size_t (*next)(const void *, size_t, size_t, FILE *) = NEXT(size_t, "fwrite", const void *, size_t, size_t, FILE *);
    if (!inside && fd_below(fileno(file), name)) {
        FAIL("fwrite", name, 1, 0);
        if (getenv("FAILPOINTS_COPIES") && size == 1 && count > 1) {
            size_t half = next(data, 1, count / 2, file);
            NEXT(int, "fflush", FILE *)(file);
            pthread_mutex_lock(&one); inside = 1; copy(".half"); inside = 0; pthread_mutex_unlock(&one);
            return half + next((const char *)data + half, 1, count - half, file);
        }
    }
    return next(data, size, count, file);
}

int fflush(FILE *file) {
    char name[256];
    if (!inside && file && fd_below(fileno(file), name)) FAIL("fflush", name, 1, EOF);
    return NEXT(int, "fflush", FILE *)(file);
}

int fclose(FILE *file) {
    char name[256];
    if (!inside && fd_below(fileno(file), name)) FAIL("fclose", name, 1, EOF);
    return NEXT(int, "fclose", FILE *)(file);
}

int fsync(int fd) {
    char name[256];
    if (fd_below(fd, name)) FAIL("fsync", name, 0, -1);
    return NEXT(int, "fsync", int)(fd);
}

int rename(const char *from, const char *to) {
    char name[256];
    if (is_below(from, name)) FAIL("rename", name, 1, -1);
    return NEXT(int, "rename", const char *, const char *)(from, to);
}

int unlink(const char *path) {
    char name[256];
    if (is_below(path, name)) FAIL("unlink", name, 1, -1);
    return NEXT(int, "unlink", const char *)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    char name[256], inner[PATH_MAX];
    if (path[0] == '/' ? is_below(path, name) : fd_below(folder, name)) {
        if (path[0] != '/') { snprintf(inner, sizeof inner, "%.200s/%.50s", name, path); FAIL("unlink", inner, 1, -1); }
        else FAIL("unlink", name, 1, -1);
    }
    return NEXT(int, "unlinkat", int, const char *, int)(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    char name[256];
    if (is_below(path, name)) FAIL("mkdir", name, 1, -1);
    return NEXT(int, "mkdir", const char *, mode_t)(path, mode);
}

int rmdir(const char *path) {
    char name[256];
    if (is_below(path, name)) FAIL("rmdir", name, 1, -1);
    return NEXT(int, "rmdir", const char *)(path);
}
