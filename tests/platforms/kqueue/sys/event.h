/* <sys/event.h> of the kqueue double: what of kqueue(2) poller_kqueue.pyx uses, over epoll. See kqueue.c. */
#ifndef TCPPROXY_TESTS_KQUEUE_EVENT_H
#define TCPPROXY_TESTS_KQUEUE_EVENT_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* The numbers are FreeBSD's. */
#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EVFILT_USER (-11)

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

#define NOTE_TRIGGER 0x01000000

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    int64_t data;
    void *udata;
};

int kqueue(void);
int kevent(int kq, const struct kevent *changes, int change_count, struct kevent *events, int room,
           const struct timespec *timeout);

/* A kqueue of ours has more descriptors than its own; who includes this closes those with it. */
int kqueue_double_close(int fd);
#ifndef KQUEUE_DOUBLE
#define close(fd) kqueue_double_close(fd)
#endif

#endif
