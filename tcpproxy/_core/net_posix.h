/* Sockets where POSIX differs from Winsock. Included by net.h only.
 *
 * The twin of net_windows.h: from net_socket on both files define the same names in the same order.
 */
#ifndef TCPPROXY_NET_POSIX_H
#define TCPPROXY_NET_POSIX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/filter.h>
#include <linux/sockios.h>
#endif
#ifdef __APPLE__ /* new SDKs have MSG_NOSIGNAL, older systems do not: SO_NOSIGPIPE is set on each socket instead */
#undef MSG_NOSIGNAL
#endif
#if defined(__linux__) && !defined(TCP_RTO_MAX_MS)
#define TCP_RTO_MAX_MS 44 /* since Linux 6.15; the headers got it later */
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* Defined where socket() and accept4() make sockets that are non-blocking and close-on-exec from the start: not on
 * macOS. With NET_AS_ON_MACOS Linux does as macOS does, so that the tests of the kqueue poller run those lines as
 * well. */
#if defined(SOCK_NONBLOCK) && !defined(__APPLE__) && !defined(NET_AS_ON_MACOS)
#define NET_ACCEPT4
#endif

#define NET_UNIX

typedef int net_socket;
#define NET_NONE (-1)
#define NET_LENGTH(size) (size)
#define NET_CONNECTING EINPROGRESS /* connect() is in progress */
#ifdef POLLRDHUP
#define NET_POLLRDHUP POLLRDHUP
#else
#define NET_POLLRDHUP 0
#endif
#define NET_POLLPRI POLLPRI
#define NET_POLLHUP_STICKY 0 /* POLLHUP means that both directions have ended */
#define NET_POLL_CLEARS_ERROR 0 /* poll() leaves an error for the next call to report */
#define NET_POLL_NAME "poll"

static inline int net_errno(void) { return errno; }

/* Bytes that a recv would find now; 0 if that cannot be found out. */
static inline int net_unread(net_socket fd)
{
    int bytes = 0;
    return ioctl(fd, FIONREAD, &bytes) < 0 ? 0 : bytes;
}

static inline void net_close(net_socket fd) { close(fd); } /* not repeated after EINTR: Linux has closed it */

static inline int net_prepare(net_socket fd) /* for socket() and accept() without flags for this */
{
    int on = 1;
    return ioctl(fd, FIONBIO, &on) < 0 || ioctl(fd, FIOCLEX) < 0 ? -errno : 0;
}

/* A pair that wakes a poller: net_wake(writer) makes the reader readable until net_drain(reader). Several calls of
 * net_wake may count as one. */
static inline int net_wake_pair(net_socket *reader, net_socket *writer)
{
    int ends[2];
    if (pipe(ends) < 0)
        return -errno;
    *reader = ends[0];
    *writer = ends[1];
    net_prepare(ends[0]);
    net_prepare(ends[1]);
    return 0;
}

static inline void net_wake(net_socket writer)
{
    if (write(writer, "w", 1) < 0) {
        /* a full pipe (EAGAIN) wakes as well */
    }
}

static inline void net_drain(net_socket reader)
{
    char bytes[64];
    while (read(reader, bytes, sizeof bytes) == sizeof bytes) {
    }
}

/* poll(2): the number of entries with events, 0 after the time-out, or -errno. After -EINTR the caller polls once more,
 * without waiting. */
static inline int net_poll(struct pollfd *items, int count, int timeout_ms)
{
    int n = poll(items, (nfds_t)count, timeout_ms);
    return n < 0 ? -errno : n;
}

/* The same with a time-out in ns, of a day at most; it is rounded up to ms where there may be no ppoll (macOS). */
static inline int net_poll_ns(struct pollfd *items, int count, int64_t timeout_ns)
{
#ifdef __linux__
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int n = ppoll(items, (nfds_t)count, &limit, NULL);
    return n < 0 ? -errno : n;
#else
    return net_poll(items, count, (int)((timeout_ns + 999999) / 1000000));
#endif
}

#endif
