/* Preloaded into a command: makes one call in so many of the compiled core short, interrupted, refused or broken.
 *
 * Only what a kernel may do. A false "would block" and a short read are followed by an edge, which a modification of the
 * epoll registration brings: without it an edge-triggered loop waits for good, and rightly so. What reports an error after
 * the fact (a connect that goes on, a descriptor that is closed all the same) is done first.
 *
 * FAULTS names a file that the test maps too: struct control. Calls that do not come from the core pass untouched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum call { ACCEPT, SOCKET, CONNECT, RECV, SEND, SPLICE, PIPE, FCNTL, READ, EPOLL_CTL, WAIT, SETSOCKOPT, GETSOCKOPT,
            SHUTDOWN, CLOSE, IOCTL, MEMORY, WRITE, CALLS };
enum kind { SHORT, INTERRUPTED, REFUSED, BROKEN, KINDS };

struct control {
    uint32_t one_in;        /* of so many calls gets a fault, for each kind that nobody may notice; 0: none */
    uint32_t fatal_one_in;  /* of so many gets one that may end its connection; 0: none */
    uint64_t seed;
    uint64_t calls;         /* bits of enum call: only these get faults; 0: all */
    uint64_t read_most;     /* bytes that a recv reads at most; 0: as many as it is asked for */
    uint64_t counts[CALLS][KINDS];
};

static struct control *control;

struct registration { int epfd; struct epoll_event event; };
static struct registration *registrations;     /* by descriptor; of streams, by the thread that owns them */
enum { REGISTRATIONS = 1 << 16 };

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *shared = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    registrations = mmap(NULL, REGISTRATIONS * sizeof *registrations, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared != MAP_FAILED && registrations != MAP_FAILED)
        control = shared;
    if (fd >= 0)
        close(fd);
}

static uint32_t chance(void)
{
    static __thread uint64_t state;
    if (state == 0)
        state = (control->seed + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t)gettid() << 20 ^ 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static int from_core(void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/tcpproxy/_core/");
}

static int count(enum call call, enum kind kind)
{
    __atomic_fetch_add(&control->counts[call][kind], 1, __ATOMIC_RELAXED);
    return 1;
}

/* Should this call get a fault of that kind? */
static int faulty(void *caller, enum call call, enum kind kind)
{
    uint32_t one_in = 0;
    uint64_t calls = control ? __atomic_load_n(&control->calls, __ATOMIC_RELAXED) : 0;
    if (control && (calls == 0 || calls >> call & 1))
        one_in = __atomic_load_n(kind == BROKEN ? &control->fatal_one_in : &control->one_in, __ATOMIC_RELAXED);
    return one_in && chance() % one_in == 0 && from_core(caller) && count(call, kind);
}
#define FAULTY(call, kind) faulty(__builtin_return_address(0), call, kind)

static int fail(const int *errors)
{
    int n = 0;
    while (errors[n])
        n++;
    errno = errors[chance() % n];
    return -1;
}
#define FAIL(...) fail((const int[]){__VA_ARGS__, 0})

/* Brings the edge that must follow: the kernel looks at the socket anew, and reports what is there. */
static void bring_edge(int fd)
{
    struct registration *it = &registrations[fd & (REGISTRATIONS - 1)];
    int before = errno;
    if (it->epfd)
        syscall(SYS_epoll_ctl, it->epfd, EPOLL_CTL_MOD, fd, &it->event);
    errno = before;
}

static int would_block(int fd)
{
    bring_edge(fd);
    errno = EAGAIN;
    return -1;
}

static size_t part(size_t size) { return size > 1 ? 1 + chance() % (size - 1) : size; }

int accept4(int fd, struct sockaddr *from, socklen_t *length, int flags)
{
    if (FAULTY(ACCEPT, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(ACCEPT, REFUSED))
        return FAIL(EAGAIN, ECONNABORTED, EPROTO, EPERM, ENETDOWN, EMFILE, ENFILE, ENOBUFS, ENOMEM);
    return (int)syscall(SYS_accept4, fd, from, length, flags);
}

int socket(int family, int type, int protocol)
{
    if (FAULTY(SOCKET, BROKEN))
        return FAIL(EMFILE, ENFILE, ENOBUFS, ENOMEM, EACCES, EAFNOSUPPORT);
    return (int)syscall(SYS_socket, family, type, protocol);
}

int connect(int fd, const struct sockaddr *to, socklen_t length)
{
    if (to->sa_family != AF_UNSPEC && FAULTY(CONNECT, BROKEN))
        return FAIL(ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EAGAIN, EACCES, EPERM, ETIMEDOUT, ENOBUFS);
    int rc = (int)syscall(SYS_connect, fd, to, length);
    if ((rc == 0 || errno == EINPROGRESS) && to->sa_family != AF_UNSPEC && FAULTY(CONNECT, INTERRUPTED))
        return FAIL(EINTR);     /* it goes on all the same */
    return rc;
}

ssize_t recv(int fd, void *to, size_t size, int flags)
{
    if (FAULTY(RECV, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(RECV, BROKEN))
        return FAIL(ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ENOMEM, ENOBUFS, EPIPE);
    if (FAULTY(RECV, REFUSED))
        return would_block(fd);
    if (FAULTY(RECV, SHORT)) {
        ssize_t n = syscall(SYS_recvfrom, fd, to, part(size), flags, NULL, NULL);
        bring_edge(fd);
        return n;
    }
    size_t most = control ? __atomic_load_n(&control->read_most, __ATOMIC_RELAXED) : 0;
    if (most && most < size && from_core(__builtin_return_address(0))) {
        ssize_t n = syscall(SYS_recvfrom, fd, to, most, flags, NULL, NULL);
        if (n > 0)
            bring_edge(fd);
        return n;
    }
    return syscall(SYS_recvfrom, fd, to, size, flags, NULL, NULL);
}

ssize_t send(int fd, const void *from, size_t size, int flags)
{
    if (FAULTY(SEND, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(SEND, BROKEN))
        return FAIL(ECONNRESET, EPIPE, ETIMEDOUT, EHOSTUNREACH, ENETDOWN, ENOBUFS, ENOMEM, EPERM);
    if (registrations && registrations[fd & (REGISTRATIONS - 1)].epfd && FAULTY(SEND, REFUSED))
        return would_block(fd);
    if (FAULTY(SEND, SHORT))
        size = part(size);
    return syscall(SYS_sendto, fd, from, size, flags, NULL, 0);
}

ssize_t splice(int source, off64_t *from, int sink, off64_t *to, size_t size, unsigned flags)
{
    if (FAULTY(SPLICE, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(SPLICE, BROKEN))
        return FAIL(ECONNRESET, EPIPE, EIO, ENOMEM);
    if (FAULTY(SPLICE, REFUSED)) {
        if (chance() % 8 == 0)
            return FAIL(EINVAL, ENOSYS, EPERM, EOPNOTSUPP);
        bring_edge(source);
        return would_block(sink);
    }
    if (FAULTY(SPLICE, SHORT))
        size = part(size);
    return syscall(SYS_splice, source, from, sink, to, size, flags);
}

int pipe2(int ends[2], int flags)
{
    if (FAULTY(PIPE, REFUSED))
        return FAIL(EMFILE, ENFILE, ENOMEM);
    return (int)syscall(SYS_pipe2, ends, flags);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *value = va_arg(rest, void *);
    va_end(rest);
    if ((command == F_SETPIPE_SZ || command == F_GETPIPE_SZ) && FAULTY(FCNTL, REFUSED))
        return FAIL(EPERM, EBUSY, ENOMEM);
    return (int)syscall(SYS_fcntl, fd, command, value);
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

ssize_t read(int fd, void *to, size_t size)
{
    if (FAULTY(READ, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(READ, SHORT))
        size = part(size);
    return syscall(SYS_read, fd, to, size);
}

/* Those of a capture. A wake-up is at most the eight bytes of an eventfd, and no kernel refuses it but with EAGAIN. */
ssize_t write(int fd, const void *from, size_t size)
{
    if (size > 8 && FAULTY(WRITE, INTERRUPTED))
        return FAIL(EINTR);
    if (size > 8 && FAULTY(WRITE, BROKEN))
        return FAIL(ENOSPC, EDQUOT, EIO, EFBIG);
    if (size > 8 && FAULTY(WRITE, SHORT))
        size = part(size);
    return syscall(SYS_write, fd, from, size);
}

int epoll_ctl(int epfd, int what, int fd, struct epoll_event *event)
{
    int stream = what == EPOLL_CTL_ADD && event->events & EPOLLRDHUP;
    if (stream && FAULTY(EPOLL_CTL, BROKEN))
        return FAIL(ENOMEM, ENOSPC);
    int rc = (int)syscall(SYS_epoll_ctl, epfd, what, fd, event);
    if (rc == 0 && stream && registrations) {
        registrations[fd & (REGISTRATIONS - 1)].event = *event;
        registrations[fd & (REGISTRATIONS - 1)].epfd = epfd;
    }
    return rc;
}

int epoll_wait(int epfd, struct epoll_event *events, int room, int timeout)
{
    if (FAULTY(WAIT, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(WAIT, SHORT))
        room = 1;
    return (int)syscall(SYS_epoll_pwait, epfd, events, room, timeout, NULL, 0);
}

int poll(struct pollfd *fds, nfds_t many, int timeout)
{
    if (FAULTY(WAIT, INTERRUPTED))
        return FAIL(EINTR);
    if (FAULTY(WAIT, REFUSED))
        return FAIL(ENOMEM, EAGAIN);
    return (int)syscall(SYS_poll, fds, many, timeout);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (FAULTY(SETSOCKOPT, REFUSED))
        return FAIL(ENOMEM, ENOBUFS, EPERM, EINVAL, ENOPROTOOPT);
    return (int)syscall(SYS_setsockopt, fd, level, name, value, length);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    if (FAULTY(GETSOCKOPT, BROKEN))
        return FAIL(ENOMEM, ENOBUFS, EACCES, ENOPROTOOPT);
    return (int)syscall(SYS_getsockopt, fd, level, name, value, length);
}

int shutdown(int fd, int how)
{
    if (FAULTY(SHUTDOWN, BROKEN))
        return FAIL(ENOBUFS, ENOMEM, EPERM);
    return (int)syscall(SYS_shutdown, fd, how);
}

int close(int fd)
{
    if (registrations && fd >= 0)
        registrations[fd & (REGISTRATIONS - 1)].epfd = 0;
    int rc = (int)syscall(SYS_close, fd);
    if (rc == 0 && FAULTY(CLOSE, REFUSED))
        return FAIL(EINTR, EIO, ENOSPC, EDQUOT);        /* it is closed all the same */
    return rc;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *value = va_arg(rest, void *);
    va_end(rest);
    if (FAULTY(IOCTL, BROKEN))
        return FAIL(EINVAL, ENOTTY, EPERM);
    return (int)syscall(SYS_ioctl, fd, request, value);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t size) { return FAULTY(MEMORY, BROKEN) ? (errno = ENOMEM, NULL) : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return FAULTY(MEMORY, BROKEN) ? (errno = ENOMEM, NULL) : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return FAULTY(MEMORY, BROKEN) ? (errno = ENOMEM, NULL) : __libc_realloc(old, size); }
