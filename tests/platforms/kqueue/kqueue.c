/* A double of kqueue(2) over epoll(7), so that the kqueue poller runs, and its whole suite with it, on Linux.
 *
 * It keeps to the manual pages of FreeBSD and macOS, and where they leave room it does what is hardest to live with:
 *
 *   - Reading and writing are two events, each with an edge of its own. There is an epoll for either: with one, bytes that
 *     come would also report room to send, and who forgot a report would be told again.
 *   - Which filter comes first changes from call to call.
 *   - With KQUEUE_DOUBLE=restless in the environment what can be sent to is reported with all that can be read, as where
 *     every acknowledgement does that.
 *   - EVFILT_WRITE reports EV_EOF after the caller's own shutdown. A state change of a connection reports room to send again.
 *   - Every change takes over udata, that of a mere NOTE_TRIGGER too.
 *   - Closing a descriptor drops its filters, whatever copies of it live on. A forked child has no kqueue.
 *   - With room in `events`, a change that fails is an event with EV_ERROR; without, kevent fails and skips the rest.
 *   - `data` is rubbish, except with EV_ERROR: systems count differently.
 *
 * Not as there: `fflags` with EV_EOF is ECONNRESET whatever the error is, since Linux tells which one only to who takes it.
 * What the poller does not use (timers, signals, EV_ONESHOT, EV_DISABLE, ...) is refused with EINVAL.
 */
#define _GNU_SOURCE
#define KQUEUE_DOUBLE
#include "sys/event.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { READ, WRITE, FILTERS, USERS = 4, BATCH = 256, RUBBISH = 0x5a5a5a5a };

struct knote {
    void *udata;
    uint32_t serial; /* 0: none; told apart from one that had the same number before */
    unsigned short flags;
};

struct user {
    uintptr_t ident;
    void *udata;
    unsigned short flags;
    int used, triggered;
};

struct kqueue {
    struct kqueue *next;
    int epoll[FILTERS]; /* the first one's number is that of the kqueue */
    int bell;           /* eventfd: readable while a user event is triggered */
    int first;          /* the filter to report first next time */
    int restless;       /* room to send is reported more often than it becomes true */
    uint32_t serial;
    struct knote *notes[FILTERS]; /* by descriptor */
    int size;
    struct user users[USERS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct kqueue *all;

static struct kqueue *find(int kq)
{
    struct kqueue *it = all;
    while (it && it->epoll[READ] != kq)
        it = it->next;
    return it;
}

static void discard(struct kqueue *it)
{
    for (int filter = 0; filter < FILTERS; filter++) {
        if (it->epoll[filter] >= 0)
            close(it->epoll[filter]);
        free(it->notes[filter]);
    }
    if (it->bell >= 0)
        close(it->bell);
    free(it);
}

/* --- fork: the queue is not inherited by a child --- */

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_in_parent(void) { pthread_mutex_unlock(&lock); }
static void after_in_child(void)
{
    while (all) {
        struct kqueue *it = all;
        all = it->next;
        discard(it);
    }
    pthread_mutex_init(&lock, NULL);
}
static void prepare(void) { pthread_atfork(before_fork, after_in_parent, after_in_child); }

int kqueue(void)
{
    struct kqueue *it = calloc(1, sizeof *it);
    if (!it)
        return -1;
    pthread_once(&once, prepare);
    const char *mood = getenv("KQUEUE_DOUBLE");
    it->restless = mood && !strcmp(mood, "restless");
    for (int filter = 0; filter < FILTERS; filter++)
        it->epoll[filter] = epoll_create1(EPOLL_CLOEXEC);
    it->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (it->epoll[READ] < 0 || it->epoll[WRITE] < 0 || it->bell < 0) {
        int error = errno;
        discard(it);
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&lock);
    it->next = all;
    all = it;
    pthread_mutex_unlock(&lock);
    return it->epoll[READ];
}

int kqueue_double_close(int fd)
{
    pthread_mutex_lock(&lock);
    struct kqueue **place = &all, *it;
    while (*place && (*place)->epoll[READ] != fd)
        place = &(*place)->next;
    if ((it = *place))
        *place = it->next;
    pthread_mutex_unlock(&lock);
    if (!it)
        return close(fd);
    discard(it);
    return 0;
}

/* --- changes: 0, or an errno --- */

static int grow(struct kqueue *it, int fd)
{
    int size = it->size ? it->size : 64;
    while (size <= fd)
        size *= 2;
    for (int filter = 0; filter < FILTERS; filter++) {
        struct knote *notes = realloc(it->notes[filter], size * sizeof *notes);
        if (!notes)
            return ENOMEM;
        memset(notes + it->size, 0, (size - it->size) * sizeof *notes);
        it->notes[filter] = notes;
    }
    it->size = size;
    return 0;
}

static int change_file(struct kqueue *it, const struct kevent *change, int filter)
{
    int fd = (int)change->ident;
    if (fd < 0 || fcntl(fd, F_GETFD) < 0)
        return EBADF;
    if (fd >= it->size && grow(it, fd))
        return ENOMEM;
    struct knote *note = &it->notes[filter][fd];
    struct epoll_event event = {0};
    /* Is the filter still that of the file which has this number now? */
    event.events = filter == READ ? EPOLLIN | EPOLLRDHUP : EPOLLOUT;
    if (note->flags & EV_CLEAR)
        event.events |= EPOLLET;
    event.data.u64 = (uint64_t)note->serial << 32 | (uint32_t)fd;
    if (note->serial && change->flags & EV_DELETE) {
        note->serial = 0;
        return epoll_ctl(it->epoll[filter], EPOLL_CTL_DEL, fd, &event) < 0 ? ENOENT : 0;
    }
    if (note->serial && epoll_ctl(it->epoll[filter], EPOLL_CTL_MOD, fd, &event) < 0)
        note->serial = 0;
    if (note->serial) { /* "re-adding an existing event will modify the parameters of the original event" */
        note->udata = change->udata;
        return 0;
    }
    if (!(change->flags & EV_ADD))
        return ENOENT;
    event.events &= ~EPOLLET;
    if (change->flags & EV_CLEAR)
        event.events |= EPOLLET;
    if (!++it->serial)
        it->serial = 1;
    event.data.u64 = (uint64_t)it->serial << 32 | (uint32_t)fd;
    if (epoll_ctl(it->epoll[filter], EPOLL_CTL_ADD, fd, &event) < 0)
        return errno;
    *note = (struct knote){change->udata, it->serial, change->flags};
    return 0;
}

static int change_user(struct kqueue *it, const struct kevent *change)
{
    struct user *user = NULL, *unused = NULL;
    for (int i = 0; i < USERS; i++) {
        if (it->users[i].used && it->users[i].ident == change->ident)
            user = &it->users[i];
        else if (!it->users[i].used)
            unused = &it->users[i];
    }
    if (change->fflags & ~NOTE_TRIGGER)
        return EINVAL;
    if (!user) {
        if (!(change->flags & EV_ADD))
            return ENOENT;
        if (!unused)
            return ENOMEM;
        user = unused;
        *user = (struct user){change->ident, NULL, change->flags, 1, 0};
    } else if (change->flags & EV_DELETE) {
        user->used = user->triggered = 0;
        return 0;
    }
    user->udata = change->udata;
    if (change->fflags & NOTE_TRIGGER) {
        user->triggered = 1;
        eventfd_write(it->bell, 1);
    }
    return 0;
}

static int change_one(struct kqueue *it, const struct kevent *change)
{
    if (change->flags & ~(EV_ADD | EV_DELETE | EV_CLEAR))
        return EINVAL;
    switch (change->filter) {
    case EVFILT_READ: return change->fflags ? EINVAL : change_file(it, change, READ);
    case EVFILT_WRITE: return change->fflags ? EINVAL : change_file(it, change, WRITE);
    case EVFILT_USER: return change_user(it, change);
    }
    return EINVAL;
}

/* --- events --- */

/* Can nothing more be sent through it: shut by its owner, or its connection gone? */
static int send_ended(int fd, uint32_t events)
{
    struct tcp_info info;
    socklen_t length = sizeof info;
    if (events & EPOLLHUP || getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return (events & EPOLLHUP) != 0;
    switch (info.tcpi_state) {
    case TCP_FIN_WAIT1: case TCP_FIN_WAIT2: case TCP_CLOSING: case TCP_LAST_ACK: case TCP_TIME_WAIT: case TCP_CLOSE:
        return 1;
    }
    return 0;
}

static void report(struct kqueue *it, int filter, int fd, uint32_t events, struct kevent *event)
{
    struct knote *note = &it->notes[filter][fd];
    int ended = filter == READ ? (events & (EPOLLRDHUP | EPOLLHUP)) != 0 : send_ended(fd, events);
    event->ident = (uintptr_t)fd;
    event->filter = filter == READ ? EVFILT_READ : EVFILT_WRITE;
    event->flags = (note->flags & EV_CLEAR) | (ended ? EV_EOF : 0);
    event->fflags = ended && events & EPOLLERR ? ECONNRESET : 0;
    event->data = RUBBISH;
    event->udata = note->udata;
}

static int collect_files(struct kqueue *it, int filter, struct kevent *to, int room)
{
    struct epoll_event found[BATCH];
    int count = 0, n = epoll_wait(it->epoll[filter], found, room < BATCH ? room : BATCH, 0);
    for (int i = 0; i < n; i++) {
        int fd = (int)(uint32_t)found[i].data.u64;
        if (it->notes[filter][fd].serial != found[i].data.u64 >> 32)
            continue;
        if (fcntl(fd, F_GETFD) < 0) { /* closed, but a copy of it lives on */
            it->notes[filter][fd].serial = 0;
            continue;
        }
        if (found[i].events == EPOLLERR) /* Linux's "unreachable" amid connect(), which goes on: no event there */
            continue;
        report(it, filter, fd, found[i].events, &to[count++]);
        struct pollfd writable = {fd, POLLOUT, 0};
        if (it->restless && filter == READ && it->notes[WRITE][fd].serial && count + n - i - 1 < room
            && poll(&writable, 1, 0) > 0)
            report(it, WRITE, fd, (uint32_t)writable.revents, &to[count++]);
    }
    return count;
}

static int collect_users(struct kqueue *it, struct kevent *to, int room)
{
    int count = 0, left = 0;
    eventfd_t unused;
    for (int i = 0; i < USERS; i++) {
        struct user *user = &it->users[i];
        if (user->triggered && count < room) {
            to[count++] = (struct kevent){user->ident, EVFILT_USER, user->flags & EV_CLEAR, 0, RUBBISH, user->udata};
            user->triggered = !(user->flags & EV_CLEAR);
        }
        left |= user->triggered;
    }
    if (!left)
        eventfd_read(it->bell, &unused);
    return count;
}

static int collect(int kq, struct kevent *to, int room)
{
    pthread_mutex_lock(&lock);
    struct kqueue *it = find(kq);
    int count = it ? collect_users(it, to, room) : 0;
    if (it) {
        for (int turn = 0; turn < FILTERS && count < room; turn++)
            count += collect_files(it, it->first ^ turn, to + count, room - count);
        it->first ^= 1;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

/* What is left of the time until `end`; NULL: for ever. */
static const struct timespec *rest(const struct timespec *end, struct timespec *left)
{
    struct timespec now;
    if (!end)
        return NULL;
    clock_gettime(CLOCK_MONOTONIC, &now);
    left->tv_sec = end->tv_sec - now.tv_sec;
    left->tv_nsec = end->tv_nsec - now.tv_nsec;
    if (left->tv_nsec < 0) {
        left->tv_nsec += 1000000000;
        left->tv_sec--;
    }
    if (left->tv_sec < 0)
        left->tv_sec = left->tv_nsec = 0;
    return left;
}

static int wait_for_some(struct pollfd *fds, int kq, struct kevent *to, int room, const struct timespec *timeout)
{
    struct timespec end, left;
    if (timeout) {
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_sec += timeout->tv_sec;
        end.tv_nsec += timeout->tv_nsec;
        if (end.tv_nsec >= 1000000000) {
            end.tv_nsec -= 1000000000;
            end.tv_sec++;
        }
    }
    for (;;) {
        int n = ppoll(fds, 3, rest(timeout ? &end : NULL, &left), NULL);
        if (n <= 0)
            return n;
        n = collect(kq, to, room);
        if (n || (timeout && !left.tv_sec && !left.tv_nsec))
            return n;
    }
}

int kevent(int kq, const struct kevent *changes, int change_count, struct kevent *events, int room,
           const struct timespec *timeout)
{
    struct pollfd fds[3];
    int failed = 0;
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_sec > 100000000 || timeout->tv_nsec < 0
                    || timeout->tv_nsec >= 1000000000)) {
        errno = EINVAL;
        return -1;
    }
    pthread_mutex_lock(&lock);
    struct kqueue *it = find(kq);
    int error = it ? 0 : EBADF;
    for (int i = 0; i < change_count && !error; i++) {
        error = change_one(it, &changes[i]);
        if (error && failed < room) {
            events[failed] = changes[i];
            events[failed].flags = EV_ERROR;
            events[failed++].data = error;
            error = 0;
        }
    }
    for (int i = 0; i < 3 && it; i++)
        fds[i] = (struct pollfd){i < FILTERS ? it->epoll[i] : it->bell, POLLIN, 0};
    pthread_mutex_unlock(&lock);
    if (error) {
        errno = error;
        return -1;
    }
    if (failed || room <= 0) /* "when nevents is zero, kevent() will return immediately" */
        return failed;
    return wait_for_some(fds, kq, events, room, timeout);
}
