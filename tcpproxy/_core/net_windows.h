/* Sockets where Winsock differs from POSIX. Included by net.h only.
 *
 * The twin of net_posix.h: from net_socket on both files define the same names in the same order.
 *
 * A SOCKET is an unsigned handle, not a small int, but 64-bit Windows keeps handles within 32 bits: net.h returns a
 * socket as int64_t, which leaves room for -errno. Errors come from WSAGetLastError and have the numbers of Python's
 * errno module on Windows: Winsock's own numbers, except for the six errors that have the same name in C.
 *
 * Written for MSVC as well as mingw: no GNU extensions.
 */
#ifndef TCPPROXY_NET_WINDOWS_H
#define TCPPROXY_NET_WINDOWS_H

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SHUT_WR SD_SEND
#define MSG_NOSIGNAL 0      /* there is no SIGPIPE */

/* <errno.h> has other numbers for these, which no socket function of Windows returns. */
#undef EADDRINUSE
#undef EADDRNOTAVAIL
#undef ECONNABORTED
#undef ECONNREFUSED
#undef ECONNRESET
#undef EHOSTDOWN
#undef EHOSTUNREACH
#undef EINPROGRESS
#undef ENETDOWN
#undef ENETUNREACH
#undef ENOBUFS
#undef ENOPROTOOPT
#undef EOPNOTSUPP
#undef ETIMEDOUT
#undef EWOULDBLOCK
#define EADDRINUSE WSAEADDRINUSE
#define EADDRNOTAVAIL WSAEADDRNOTAVAIL
#define ECONNABORTED WSAECONNABORTED
#define ECONNREFUSED WSAECONNREFUSED
#define ECONNRESET WSAECONNRESET
#define EHOSTDOWN WSAEHOSTDOWN
#define EHOSTUNREACH WSAEHOSTUNREACH
#define EINPROGRESS WSAEINPROGRESS
#define ENETDOWN WSAENETDOWN
#define ENETUNREACH WSAENETUNREACH
#define ENOBUFS WSAENOBUFS
#define ENOPROTOOPT WSAENOPROTOOPT
#define EOPNOTSUPP WSAEOPNOTSUPP
#define ETIMEDOUT WSAETIMEDOUT
#define EWOULDBLOCK WSAEWOULDBLOCK

typedef SOCKET net_socket;
#define NET_NONE INVALID_SOCKET
#define NET_LENGTH(size) ((int)(size))
#define NET_CONNECTING EWOULDBLOCK
#define NET_POLLRDHUP 0     /* does not exist; see NET_POLLHUP_STICKY */
#define NET_POLLPRI 0       /* WSAPoll refuses it */
/* POLLHUP means that the peer has ended its direction. It is reported in every call from then on, requested or not. */
#define NET_POLLHUP_STICKY 1
/* WSAPoll may clear the error that it reports: recv then returns 0, as at an end of file. */
#define NET_POLL_CLEARS_ERROR 1
#define NET_POLL_NAME "WSAPoll"

static inline int net_errno(void)
{
    int error = WSAGetLastError();
    switch (error) {
    case WSAEINTR: case WSAEBADF: case WSAEACCES: case WSAEFAULT: case WSAEINVAL: case WSAEMFILE:
        return error - WSABASEERR;
    }
    return error;
}

static inline int net_unread(net_socket fd)
{
    u_long bytes = 0;
    return ioctlsocket(fd, FIONREAD, &bytes) != 0 ? 0 : (int)bytes;
}

static inline void net_close(net_socket fd) { closesocket(fd); }

static inline int net_prepare(net_socket fd)
{
    u_long on = 1;
    if (ioctlsocket(fd, FIONBIO, &on) != 0)
        return -net_errno();
    SetHandleInformation((HANDLE)fd, HANDLE_FLAG_INHERIT, 0);
    return 0;
}

/* WSAPoll takes no pipes: two UDP sockets on loopback, connected to each other so that no other socket can send to
 * them. A datagram is dropped only if the queue is full, and then the reader is readable anyway. */
static inline int net_wake_pair(net_socket *reader, net_socket *writer)
{
    net_socket ends[2] = {INVALID_SOCKET, INVALID_SOCKET};
    struct sockaddr_in names[2];
    int i, length, error = 0;
    for (i = 0; i < 2 && !error; i++) {
        memset(&names[i], 0, sizeof names[i]);
        names[i].sin_family = AF_INET;
        names[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        length = sizeof names[i];
        ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (ends[i] == INVALID_SOCKET || net_prepare(ends[i]) < 0
            || bind(ends[i], (const struct sockaddr *)&names[i], length) != 0
            || getsockname(ends[i], (struct sockaddr *)&names[i], &length) != 0)
            error = net_errno();
    }
    for (i = 0; i < 2 && !error; i++)
        if (connect(ends[i], (const struct sockaddr *)&names[1 - i], sizeof names[0]) != 0)
            error = net_errno();
    if (error) {
        for (i = 0; i < 2; i++)
            if (ends[i] != INVALID_SOCKET)
                closesocket(ends[i]);
        return -error;
    }
    *reader = ends[0];
    *writer = ends[1];
    return 0;
}

static inline void net_wake(net_socket writer) { send(writer, "w", 1, 0); }

static inline void net_drain(net_socket reader)
{
    char bytes[64];
    while (recv(reader, bytes, sizeof bytes, 0) > 0) {
    }
}

/* WSAPoll marks an entry that is left out (INVALID_SOCKET) with POLLNVAL, and its result counts such entries
 * (documented). The caller searches for as many events as the result says, so only real entries are counted here. */
static inline int net_poll(struct pollfd *items, int count, int timeout_ms)
{
    int i, n = WSAPoll(items, (ULONG)count, timeout_ms), found = 0;
    if (n == SOCKET_ERROR)
        return -net_errno();
    for (i = 0; n > 0 && i < count; i++)
        found += items[i].fd != INVALID_SOCKET && items[i].revents != 0;
    return found;
}

/* The same with a time-out in ns, of a day at most, which is rounded up to ms: the shortest that Windows has. */
static inline int net_poll_ns(struct pollfd *items, int count, int64_t timeout_ns)
{
    return net_poll(items, count, (int)((timeout_ns + 999999) / 1000000));
}

#endif
