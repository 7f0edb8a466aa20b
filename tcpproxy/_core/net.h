/* The socket calls that the core may use, and the project's only platform #ifdef (net_windows.h is a part of it).
 *
 * Every call returns a value >= 0, or -errno. EINTR never leaves this file: an interrupted call is made again.
 * Sockets made here are non-blocking and close-on-exec: from their first moment where the making call can do that
 * (NET_ACCEPT4), elsewhere (macOS, Windows) right after it, so that a fork between the two inherits one.
 */
#ifndef TCPPROXY_NET_H
#define TCPPROXY_NET_H

#ifdef _WIN32
#include "net_windows.h"
/* POLLHUP says that the peer has ended its direction, and is reported for ever, asked for or not. */
#define NET_POLLHUP_STICKY 1
/* Reporting an error may use it up: recv says 0 then, as if it were an end of file. */
#define NET_POLL_CLEARS_ERROR 1
#else

#if !defined(__linux__) && !defined(__APPLE__) && !defined(__FreeBSD__) && !defined(__NetBSD__) && !defined(__OpenBSD__) \
    && !defined(__DragonFly__)
#error "tcpproxy does not know the sockets of this platform: net.h is where to teach it"
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/sockios.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#ifdef __APPLE__ /* an SDK may know MSG_NOSIGNAL, older systems do not: SO_NOSIGPIPE is set on each socket instead */
#undef MSG_NOSIGNAL
#endif
#if defined(__linux__) && !defined(TCP_RTO_MAX_MS)
#define TCP_RTO_MAX_MS 44 /* since Linux 6.15, and later in the headers */
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* Sockets that are non-blocking and close-on-exec from their making: not on macOS. NET_AS_ON_MACOS makes Linux do as macOS
 * does, so that the tests of the kqueue poller run through those lines as well. */
#if defined(SOCK_NONBLOCK) && !defined(__APPLE__) && !defined(NET_AS_ON_MACOS)
#define NET_ACCEPT4
#endif

#ifdef POLLRDHUP
#define NET_POLLRDHUP POLLRDHUP
#else
#define NET_POLLRDHUP 0
#endif
#define NET_POLLPRI POLLPRI
#define NET_POLLHUP_STICKY 0
#define NET_CONNECTING EINPROGRESS
#define NET_POLL_NAME "poll"
#define NET_POLL_CLEARS_ERROR 0

typedef int net_socket;
#define NET_NONE (-1)
#define NET_LENGTH(size) (size)

static inline int net_errno(void) { return errno; }
static inline void thread_yield(void) { sched_yield(); }

/* From now on nobody is interrupted when the calling thread is woken (SCHED_BATCH), or as usual again. 0: not here; or the
 * thread has another policy, which is somebody's choice; or a filter of system calls is in force, which might end the process
 * (services are often allowed no "@resources"). Not by sched_setscheduler(), which does nothing in musl. */
static inline int thread_batch_policy(int on)
{
#ifdef __linux__
    struct sched_param none = {0};
    if (prctl(PR_GET_SECCOMP) > 0 || syscall(SYS_sched_getscheduler, 0) != (on ? SCHED_OTHER : SCHED_BATCH))
        return 0;
    return syscall(SYS_sched_setscheduler, 0, on ? SCHED_BATCH : SCHED_OTHER, &none) == 0;
#else
    (void)on;
    return 0;
#endif
}

static inline void thread_nap_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

/* In the calling thread alone, so that the program around us keeps its own way with the signal. On Linux sigprocmask is
 * the same call, while the symbol pthread_sigmask would ask for glibc 2.32 wherever a newer one was compiled with. */
static inline void thread_block_sigpipe(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
#ifdef __linux__
    sigprocmask(SIG_BLOCK, &set, NULL);
#else
    pthread_sigmask(SIG_BLOCK, &set, NULL);
#endif
}

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Processor time of the calling thread, in a unit of the platform's: for comparing two spans. Always 0: not known. */
static inline uint64_t thread_cpu_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Bytes that a recv would find now. */
static inline int net_unread(net_socket fd)
{
    int bytes = 0;
    return ioctl(fd, FIONREAD, &bytes) < 0 ? 0 : bytes;
}

static inline void net_close(net_socket fd) { close(fd); } /* never again on EINTR: Linux has freed the number */

static inline int net_prepare(net_socket fd) /* where socket() and accept() cannot do it in one call */
{
    int on = 1;
    return ioctl(fd, FIONBIO, &on) < 0 || ioctl(fd, FIOCLEX) < 0 ? -errno : 0;
}

/* Two ends that wake a poller: net_wake on one makes the other readable until net_drain; several may count as one. */
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

static inline int net_poll(struct pollfd *items, int count, int timeout_ms)
{
    int n = poll(items, (nfds_t)count, timeout_ms);
    return n < 0 ? -errno : n;
}

#endif /* what follows is common to all */

/* A socket address, small enough to sit in every relay. Opaque to the rest of the core. */
typedef struct {
    uint32_t length; /* of what is in bytes; 0: no address */
    uint8_t bytes[28];
} net_addr;

/* What each stream socket of ours is given; durations in seconds, 0: keepalive off; a size of 0: the system's choice. */
typedef struct {
    int keepalive_idle, keepalive_interval, keepalive_count;
    int socket_buffer;
} net_tuning;

/* From a raw IPv4 (4) or IPv6 (16) address of `size` bytes, port in host order: 0, or -EINVAL. */
static inline int net_pack(net_addr *to, const void *ip, size_t size, int port, uint32_t scope)
{
    memset(to, 0, sizeof *to);
    if (size == 4) {
        struct sockaddr_in v4;
        memset(&v4, 0, sizeof v4);
        v4.sin_family = AF_INET;
        v4.sin_port = htons((uint16_t)port);
        memcpy(&v4.sin_addr, ip, 4);
        memcpy(to->bytes, &v4, to->length = sizeof v4);
    } else if (size == 16) {
        struct sockaddr_in6 v6;
        memset(&v6, 0, sizeof v6);
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons((uint16_t)port);
        v6.sin6_scope_id = scope;
        memcpy(&v6.sin6_addr, ip, 16);
        memcpy(to->bytes, &v6, to->length = sizeof v6);
    } else {
        return -EINVAL;
    }
    return 0;
}

/* "192.0.2.1:80" or "[2001:db8::1]:80", "" for no address; an IPv4 client of a dual-stack listener reads as IPv4. */
static inline void net_format(const net_addr *from, char text[80])
{
    char ip[INET6_ADDRSTRLEN] = "";
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    text[0] = 0;
    if (from->length == sizeof v4) {
        memcpy(&v4, from->bytes, sizeof v4);
        inet_ntop(AF_INET, &v4.sin_addr, ip, sizeof ip);
        snprintf(text, 80, "%s:%u", ip, ntohs(v4.sin_port));
    } else if (from->length == sizeof v6) {
        memcpy(&v6, from->bytes, sizeof v6);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
            inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], ip, sizeof ip);
            snprintf(text, 80, "%s:%u", ip, ntohs(v6.sin6_port));
        } else {
            inet_ntop(AF_INET6, &v6.sin6_addr, ip, sizeof ip);
            if (v6.sin6_scope_id)
                snprintf(text, 80, "[%s%%%u]:%u", ip, (unsigned)v6.sin6_scope_id, ntohs(v6.sin6_port));
            else
                snprintf(text, 80, "[%s]:%u", ip, ntohs(v6.sin6_port));
        }
    }
}

/* What a limit per source counts: IPv4 by address, also behind a dual-stack listener; IPv6 by its /64. */
static inline uint64_t net_source(const net_addr *from)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    uint64_t source = 0;
    int i, end;
    if (from->length == sizeof v4) {
        memcpy(&v4, from->bytes, sizeof v4);
        source = (uint64_t)0xffff << 32 | ntohl(v4.sin_addr.s_addr);
    } else if (from->length == sizeof v6) {
        memcpy(&v6, from->bytes, sizeof v6);
        i = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) ? 10 : 0;
        for (end = i ? 16 : 8; i < end; i++)
            source = source << 8 | v6.sin6_addr.s6_addr[i];
    }
    return source;
}

static inline int net_set_int(net_socket fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, (const char *)&value, sizeof value) == 0 ? 0 : -net_errno();
}

/* Options of a stream socket; best effort, since the relay works without each of them (only slower, or blind to a
 * peer that vanished). Without TCP_NODELAY on both legs a write-write-read round costs 25 ms and more. */
static inline void net_no_delay(net_socket fd) { net_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1); }

static inline void net_no_sigpipe(net_socket fd) /* where send cannot be told */
{
#ifdef __APPLE__
    net_set_int(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#else
    (void)fd;
#endif
}

/* The urgent byte stays in the stream, where the other peer would have found it. */
static inline void net_oob_inline(net_socket fd) { net_set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1); }

static inline void net_keep_alive(net_socket fd, const net_tuning *tuning)
{
    if (tuning->keepalive_idle <= 0)
        return;
    net_set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    net_set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, tuning->keepalive_idle);
#elif defined(TCP_KEEPALIVE)
    net_set_int(fd, IPPROTO_TCP, TCP_KEEPALIVE, tuning->keepalive_idle);
#endif
#ifdef TCP_KEEPINTVL
    net_set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, tuning->keepalive_interval);
    net_set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, tuning->keepalive_count);
#endif
}

/* The kernel's part of what a stalled direction holds. Before the handshake, which settles how the window is counted. */
static inline void net_bound_buffers(net_socket fd, const net_tuning *tuning)
{
    if (tuning->socket_buffer <= 0)
        return;
    net_set_int(fd, SOL_SOCKET, SO_SNDBUF, tuning->socket_buffer);
    net_set_int(fd, SOL_SOCKET, SO_RCVBUF, tuning->socket_buffer);
}

/* Bulk for a peer on this machine is not paced: nothing on the way there can overflow. BBR, where it is the system's choice,
 * sends each packet by a timer, which a virtual machine asks its host for: without it a third more throughput, for
 * three quarters of the processor time. "reno" is what every kernel has and everybody may choose. */
static inline void net_pacing_off(net_socket fd)
{
#ifdef __linux__
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } ours = {{0}}, its = {{0}};
    socklen_t ours_length = sizeof ours, its_length = sizeof its, control_length;
    char control[16] = "";
    int near = 0;
    if (getsockname(fd, &ours.any, &ours_length) < 0 || getpeername(fd, &its.any, &its_length) < 0)
        return;
    if (its.any.sa_family == AF_INET)
        near = its.v4.sin_addr.s_addr == ours.v4.sin_addr.s_addr || ntohl(its.v4.sin_addr.s_addr) >> 24 == 127;
    else if (its.any.sa_family == AF_INET6)
        near = IN6_ARE_ADDR_EQUAL(&its.v6.sin6_addr, &ours.v6.sin6_addr);
    control_length = sizeof control - 1;
    if (near && getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control, &control_length) == 0 && !strncmp(control, "bbr", 3))
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
#else
    (void)fd;
#endif
}

/* All of them, for a listener: what it accepts inherits them. */
static inline void net_tune(net_socket fd, const net_tuning *tuning)
{
    net_no_delay(fd);
    net_oob_inline(fd);
    net_keep_alive(fd, tuning);
    net_bound_buffers(fd, tuning);
}

/* The accepted socket, or -errno. It inherits the listener's options (net_tune) on Linux, BSD and macOS alike, which
 * saves up to six system calls a connection; Windows promises less, and is told again. */
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
    int rc = length ? net_prepare(fd) : -ECONNABORTED; /* no address: it is gone already, and every call would fail */
    if (rc < 0) {
        net_close(fd);
        return rc;
    }
    net_no_sigpipe(fd);
#endif
#ifdef _WIN32
    net_tune(fd, tuning);
#endif
    memset(from, 0, sizeof *from);
    if ((size_t)length <= sizeof from->bytes) {
        from->length = (uint32_t)length;
        memcpy(from->bytes, &peer, (size_t)length);
    }
    return (int64_t)fd;
}

/* A stream socket fit to reach that address, or -errno. */
static inline int64_t net_open(const net_addr *to, const net_tuning *tuning)
{
    int family = ((const struct sockaddr *)(const void *)to->bytes)->sa_family;
#ifdef NET_ACCEPT4
    net_socket fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd == NET_NONE)
        return -net_errno();
#else
    net_socket fd = socket(family, SOCK_STREAM, 0);
    int rc;
    if (fd == NET_NONE)
        return -net_errno();
    if ((rc = net_prepare(fd)) < 0) {
        net_close(fd);
        return rc;
    }
#endif
    net_no_sigpipe(fd);
    net_oob_inline(fd); /* before the first byte: a second urgent byte would drop an earlier one that is not inline */
    net_bound_buffers(fd, tuning);
    return (int64_t)fd;
}

/* 0: connected; -EINPROGRESS: under way; else why not. An interrupted connect goes on by itself, and asking again
 * would answer EALREADY: it counts as under way. */
static inline int net_connect(net_socket fd, const net_addr *to)
{
    int error;
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

static inline int64_t net_send(net_socket fd, const void *from, size_t size)
{
    int64_t n;
    do
        n = send(fd, (const char *)from, NET_LENGTH(size), MSG_NOSIGNAL);
    while (n < 0 && net_errno() == EINTR);
#ifdef __APPLE__
    if (n < 0 && errno == EPROTOTYPE) /* what macOS says amid a reset; trying again would spin */
        return -ECONNRESET;
#endif
    return n < 0 ? -net_errno() : n;
}

/* The pending error of a socket as a positive errno, 0 if there is none; asking takes it away. */
static inline int net_take_error(net_socket fd)
{
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, (char *)&error, &length) != 0 ? net_errno() : error;
}

/* 0: it is connected; else why not, as a positive errno. */
static inline int net_unconnected(net_socket fd)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 ? 0 : net_errno();
}

static inline int net_shut_write(net_socket fd) { return shutdown(fd, SHUT_WR) == 0 ? 0 : -net_errno(); }

static inline void net_reset(net_socket fd) /* closes with RST */
{
    struct linger now = {1, 0};
    struct sockaddr nobody;
    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, (const char *)&now, sizeof now) != 0) {
        memset(&nobody, 0, sizeof nobody); /* a mere close would look like a proper end; this resets too, on Linux */
        nobody.sa_family = AF_UNSPEC;
        connect(fd, &nobody, sizeof nobody);
    }
    net_close(fd);
}

/* Bytes that the kernel has accepted for this socket and not yet put on the wire; a reset would destroy them.
 * Not SIOCOUTQ: that counts sent bytes too, which a delayed ACK keeps there for 40 ms. 0 where it cannot be asked. */
static inline int net_unsent(net_socket fd)
{
    int bytes = 0;
#if defined(SIOCOUTQNSD) && !defined(NET_AS_ON_MACOS)
    return ioctl(fd, SIOCOUTQNSD, &bytes) < 0 ? 0 : bytes;
#elif defined(SO_NWRITE) /* macOS; this and the next count sent bytes too: there is nothing better */
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

/* Does something that was sent to this peer wait for its answer? 0: no; 1: it does; -ETIMEDOUT: and the peer is dead.
 *
 * While bytes wait, keepalive asks nothing: retransmissions go on for 15 minutes, probes of a closed window for 30.
 * TCP_USER_TIMEOUT would end both, and with them a peer that answers every probe and merely does not read for so long
 * (seen with 6.18: tcp_probe_timer counts since the window was closed), whom a direct connection keeps for ever.
 * So keepalive's rule is applied here: silence for as long, and as many questions without an answer. Questions come at
 * growing intervals, up to two minutes behind a long closed window, unless the kernel lets us bound them.
 * `probes_at_ack`: questions put up to the last sign of life; the caller keeps it, and calls every keepalive_interval. */
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
    /* Three counts, since none has all: of retransmissions into a closed window, of those that find their predecessor
     * still waiting for a neighbour's address (ARP), and of probes. An answer may set the latter two back to 0. */
    asked = info.tcpi_total_retrans + info.tcpi_retransmits + info.tcpi_probes;
    if (silent < interval + 100) /* it has answered since the last look */
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

/* Three kinds of "no", after EINTR: would block, out of something, and the end of this socket. */
static inline int net_would_block(int64_t rc) { return rc == -EAGAIN || rc == -EWOULDBLOCK; }
static inline int net_out_of_resources(int64_t rc) { return rc == -EMFILE || rc == -ENFILE || rc == -ENOBUFS || rc == -ENOMEM; }

/* accept(2) reports errors of the connection that it would have returned: they say nothing about the next one. */
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

/* Did a connect that ends with this errno get as far as a connection? A reset in SYN_SENT is ECONNREFUSED. */
static inline int net_was_connected(int error)
{
    return error == ECONNRESET || error == ECONNABORTED || error == EPIPE;
}

#endif
