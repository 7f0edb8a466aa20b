/* The socket calls that the core may use, the same for every platform. Parts of this file: net_posix.h or
 * net_windows.h, which hold what the platforms do not have in common, address.h (with unix.h) and sockopt.h.
 *
 * Every function returns a value >= 0, or -errno, unless its comment says otherwise. Only net_poll returns -EINTR:
 * every other call that is interrupted is repeated here. Sockets made here are non-blocking and close-on-exec. Where socket() and accept4()
 * take flags for this (NET_ACCEPT4), they are so from the start; elsewhere (macOS, Windows) a second call sets it, so a
 * fork between the two calls inherits the socket.
 */
#ifndef TCPPROXY_NET_H
#define TCPPROXY_NET_H

#ifdef _WIN32
#include "net_windows.h"
#elif defined(__linux__) || defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) \
    || defined(__DragonFly__)
#include "net_posix.h"
#else
#error "tcpproxy does not know the sockets of this platform: add them to net_posix.h"
#endif
#include "address.h"
#include "sockopt.h"

/* Accepts one connection: a net_socket, or -errno. On Linux, the BSDs and macOS it inherits the listener's options
 * (net_tune), which saves up to six system calls a connection. Windows does not promise that: they are set again. */
static inline int64_t net_accept(net_socket listener, net_addr *from, const net_tuning *tuning)
{
    struct sockaddr_storage peer;
    socklen_t length;
    net_socket fd;
    (void)tuning;
    do {
        length = sizeof peer;
#ifdef NET_ACCEPT4
        fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
        fd = accept(listener, (struct sockaddr *)&peer, &length);
#endif
    } while (fd == NET_NONE && net_errno() == EINTR);
    if (fd == NET_NONE)
        return -net_errno();
#ifndef NET_ACCEPT4
    int rc = length ? net_prepare(fd) : -ECONNABORTED; /* no address: reset already, every call would fail */
    if (rc < 0) {
        net_close(fd);
        return rc;
    }
    net_no_sigpipe(fd);
#endif
#ifdef _WIN32
    net_tune(fd, tuning);
#endif
#ifdef NET_UNIX
    if (peer.ss_family == AF_UNIX) { /* it inherits nothing */
        net_tune_unix(fd, tuning);
        net_ask_peer(fd, from);
        return (int64_t)fd;
    }
#endif
    memset(from, 0, sizeof *from);
    if ((size_t)length <= sizeof from->bytes) {
        from->length = (uint32_t)length;
        memcpy(from->bytes, &peer, (size_t)length);
    }
    return (int64_t)fd;
}

/* Opens a stream socket of that address's family, with the options that must be set before connect: a net_socket, or
 * -errno. */
static inline int64_t net_open(const net_addr *to, const net_tuning *tuning)
{
    int family = net_family(to), rc;
#ifdef NET_ACCEPT4
    net_socket fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd == NET_NONE)
        return -net_errno();
#else
    net_socket fd = socket(family, SOCK_STREAM, 0);
    if (fd == NET_NONE)
        return -net_errno();
    if ((rc = net_prepare(fd)) < 0) {
        net_close(fd);
        return rc;
    }
#endif
    net_no_sigpipe(fd);
    net_oob_inline(fd); /* before the first byte: a second urgent byte drops an earlier one that is not inline */
    net_bound_buffers(fd, tuning);
    if (tuning->source[0].length && (rc = net_bind_source(fd, family, tuning)) < 0) {
        net_close(fd);
        return rc;
    }
    return (int64_t)fd;
}

/* 0: connected; -EINPROGRESS: in progress; else -errno. -EAGAIN of a UNIX socket: the server's backlog is full, and no event
 * will tell when it is not. An interrupted connect continues in the kernel, and a second
 * call would return EALREADY: it counts as in progress. */
static inline int net_connect(net_socket fd, const net_addr *to)
{
    int error;
#ifdef NET_UNIX
    uint32_t size;
    const char *path = net_path(to, &size);
    if (path)
        return net_connect_path(fd, path, size) == 0 ? 0 : errno == EINTR ? -EAGAIN : -errno;
#endif
    if (connect(fd, (const struct sockaddr *)(const void *)to->bytes, (socklen_t)to->length) == 0)
        return 0;
    error = net_errno();
    return error == EINTR || error == NET_CONNECTING ? -EINPROGRESS : -error;
}

static inline int64_t net_receive(net_socket fd, void *to, size_t size, int flags)
{
    int64_t n;
    do
        n = recv(fd, (char *)to, NET_LENGTH(size), flags);
    while (n < 0 && net_errno() == EINTR);
    return n < 0 ? -net_errno() : n;
}

static inline int64_t net_recv(net_socket fd, void *to, size_t size) { return net_receive(fd, to, size, 0); }
static inline int64_t net_peek(net_socket fd, void *to, size_t size) { return net_receive(fd, to, size, MSG_PEEK); }

static inline int64_t net_transmit(net_socket fd, const void *from, size_t size, int flags)
{
    int64_t n;
    do
        n = send(fd, (const char *)from, NET_LENGTH(size), flags);
    while (n < 0 && net_errno() == EINTR);
#ifdef __APPLE__
    if (n < 0 && errno == EPROTOTYPE) /* macOS, while a reset is processed; a retry would spin */
        return -ECONNRESET;
#endif
    return n < 0 ? -net_errno() : n;
}

static inline int64_t net_send(net_socket fd, const void *from, size_t size) { return net_transmit(fd, from, size, MSG_NOSIGNAL); }

#ifdef MSG_MORE
#define NET_HOLDS 1
static inline int64_t net_send_held(net_socket fd, const void *from, size_t size)
{
    return net_transmit(fd, from, size, MSG_NOSIGNAL | MSG_MORE);
}
#else
#define NET_HOLDS 0
#define net_send_held net_send
#endif

/* Returns the pending error of a socket (SO_ERROR) and clears it: a positive errno, 0 if there is none. */
static inline int net_take_error(net_socket fd)
{
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, (char *)&error, &length) != 0 ? net_errno() : error;
}

/* Returns 0 if the socket is connected, else why not, as a positive errno. */
static inline int net_unconnected(net_socket fd)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 ? 0 : net_errno();
}

/* Has the kernel connected this socket to itself? It may do so where nobody listens at a local port that it gives to
 * outgoing connections: it gives that very port to ours, and the SYN meets its own socket (simultaneous open, RFC 9293,
 * section 3.5). Asked only for such a port, so that other upstreams do not pay for the call. */
static inline int net_met_itself(net_socket fd, const net_addr *to, const net_tuning *tuning)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    int port = to->bytes[2] << 8 | to->bytes[3]; /* at the same place in both families */
    if (port < tuning->ephemeral_first || port > tuning->ephemeral_last || net_is_unix(to))
        return 0;
    if (getsockname(fd, (struct sockaddr *)&own, &length) != 0 || (uint32_t)length != to->length)
        return 0;
    if (own.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)&own;
        return ntohs(v4->sin_port) == port && memcmp(&v4->sin_addr, to->bytes + 4, 4) == 0;
    }
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)&own;
    return ntohs(v6->sin6_port) == port && memcmp(&v6->sin6_addr, to->bytes + 8, 16) == 0;
}

/* No address where the system does not know it, nor for a UNIX socket. */
static inline void net_own_address(net_socket fd, net_addr *to)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    to->length = 0;
    if (getsockname(fd, (struct sockaddr *)&own, &length) == 0 && (size_t)length <= sizeof to->bytes
        && (own.ss_family == AF_INET || own.ss_family == AF_INET6)) {
        memcpy(to->bytes, &own, (size_t)length);
        to->length = (uint32_t)length;
    }
}

static inline int net_shut_write(net_socket fd) { return shutdown(fd, SHUT_WR) == 0 ? 0 : -net_errno(); }

static inline void net_reset(net_socket fd) /* closes with RST */
{
    struct linger now = {1, 0};
    struct sockaddr nobody;
    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, (const char *)&now, sizeof now) != 0) {
        memset(&nobody, 0, sizeof nobody); /* close() would send FIN; on Linux this connect sends RST */
        nobody.sa_family = AF_UNSPEC;
        connect(fd, &nobody, sizeof nobody);
    }
    net_close(fd);
}

/* Returns how many bytes are in the send queue that the kernel has not sent yet; a reset would destroy them. 0 where
 * the system has no such call. Not SIOCOUTQ: that counts unacknowledged bytes too, which a delayed ACK keeps there
 * for 40 ms. But a UNIX socket has only that: what its peer has not read yet, with the kernel's overhead. */
static inline int net_unsent(net_socket fd)
{
    int bytes = 0;
#if defined(SIOCOUTQNSD) && !defined(NET_AS_ON_MACOS)
    return ioctl(fd, SIOCOUTQNSD, &bytes) < 0 && ioctl(fd, SIOCOUTQ, &bytes) < 0 ? 0 : bytes;
#elif defined(SO_NWRITE) /* macOS; this and the next ones count unacknowledged bytes too: there is no better one */
    socklen_t length = sizeof bytes;
    return getsockopt(fd, SOL_SOCKET, SO_NWRITE, &bytes, &length) < 0 ? 0 : bytes;
#elif defined(FIONWRITE) /* FreeBSD, NetBSD, DragonFly */
    return ioctl(fd, FIONWRITE, &bytes) < 0 ? 0 : bytes;
#elif defined(SIOCOUTQ)
    return ioctl(fd, SIOCOUTQ, &bytes) < 0 ? 0 : bytes;
#else
    (void)fd;
    return bytes;
#endif
}

/* Unacknowledged bytes? 0: none; 1: some; -ETIMEDOUT: some, and the peer has answered nothing for the keepalive time: the peer is
 * dead. The caller calls this every keepalive_interval, and keeps `probes_at_ack`: probes sent up to the last ACK.
 *
 * While bytes are unacknowledged, TCP sends no keepalive probes: retransmissions go on for 15 minutes, probes of a
 * closed window for 30. TCP_USER_TIMEOUT would end both, but also a peer that answers every probe and does not read
 * for that long (seen with Linux 6.18: tcp_probe_timer counts since the window was closed); a direct connection
 * keeps such a peer for ever. So keepalive's rule is applied here: no ACK for keepalive_idle + keepalive_count *
 * keepalive_interval seconds, and at least keepalive_count unanswered probes. The kernel sends probes and
 * retransmissions at growing intervals, up to two minutes after a window was closed for long; TCP_RTO_MAX_MS
 * bounds them where the kernel knows it. */
static inline int net_unacked(net_socket fd, const net_tuning *tuning, uint32_t *probes_at_ack)
{
#ifdef __linux__
    struct tcp_info info;
    socklen_t length = sizeof info;
    int bytes = 0, most = tuning->keepalive_idle < 240 ? tuning->keepalive_idle * 500 : 120000;
    uint32_t silent, asked, interval = (uint32_t)tuning->keepalive_interval * 1000;
    if (ioctl(fd, SIOCOUTQ, &bytes) < 0 || bytes == 0)
        return 0;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return 0;
    silent = info.tcpi_last_ack_recv < info.tcpi_last_data_recv ? info.tcpi_last_ack_recv : info.tcpi_last_data_recv;
    /* Three counts, since none includes all: retransmissions into a closed window; retransmissions whose predecessor
     * still waits for a neighbour's address (ARP); probes. An ACK may set the latter two back to 0. */
    asked = info.tcpi_total_retrans + info.tcpi_retransmits + info.tcpi_probes;
    if (silent < interval + 100) /* an ACK has come since the last call */
        *probes_at_ack = asked;
    else
        net_set_int(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, most > 1000 ? most : 1000);
    if ((int32_t)(asked - *probes_at_ack) < tuning->keepalive_count)
        return 1;
    return silent < (uint32_t)tuning->keepalive_idle * 1000 + (uint32_t)tuning->keepalive_count * interval ? 1 : -ETIMEDOUT;
#else
    (void)fd, (void)tuning, (void)probes_at_ack;
    return 0;
#endif
}

/* Waits until there is something to read or to accept, at most timeout_ms (-1: any time). Returns 0 if there is not. */
static inline int net_await_input(net_socket fd, int timeout_ms)
{
    struct pollfd item = {0};
    item.fd = fd;
    item.events = POLLIN;
    return net_poll(&item, 1, timeout_ms) > 0;
}

/* Waits until net_wake(writer) was called since the last time, at most timeout_ms (-1: any time). Returns 0 if it was not. */
static inline int net_await_wake(net_socket reader, int timeout_ms)
{
    if (!net_await_input(reader, timeout_ms))
        return 0;
    net_drain(reader);
    return 1;
}

/* Errors are of three kinds: would block, out of resources (descriptors or memory), and a failure of this socket. */
static inline int net_would_block(int64_t rc) { return rc == -EAGAIN || rc == -EWOULDBLOCK; }
static inline int net_out_of_resources(int64_t rc) { return rc == -EMFILE || rc == -ENFILE || rc == -ENOBUFS || rc == -ENOMEM; }

/* accept(2) also reports errors of the connection that it would have returned. After these the next accept may
 * succeed. */
static inline int net_accept_transient(int rc)
{
    switch (-rc) {
    case ECONNABORTED: case EPROTO: case EPERM: case ENETDOWN: case ENOPROTOOPT: case EHOSTDOWN: case EHOSTUNREACH:
    case EOPNOTSUPP: case ENETUNREACH: case ETIMEDOUT: case ECONNRESET:
#ifdef ENONET
    case ENONET:
#endif
        return 1;
    }
    return 0;
}

/* Was there a connection before this errno? Yes if it was reset afterwards; a reset in SYN_SENT is ECONNREFUSED. */
static inline int net_was_connected(int error)
{
    return error == ECONNRESET || error == ECONNABORTED || error == EPIPE;
}

#endif
