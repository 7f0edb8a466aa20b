/* Socket options. A part of net.h, which includes the system's headers before it. */
#ifndef TCPPROXY_SOCKOPT_H
#define TCPPROXY_SOCKOPT_H

/* What a worker's stream sockets have in common. Durations in seconds, keepalive_idle 0: no keepalive; socket_buffer in
 * bytes, 0: the system's choice; ephemeral: the ports that the kernel gives to outgoing connections; source: where those come
 * from, one address of a family, the last one of length 0 if there are fewer. */
typedef struct {
    int keepalive_idle, keepalive_interval, keepalive_count;
    int socket_buffer;
    int ephemeral_first, ephemeral_last;
    net_addr source[2];
} net_tuning;

static inline int net_set_int(net_socket fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, (const char *)&value, sizeof value) == 0 ? 0 : -net_errno();
}

/* Options of a stream socket. Errors are ignored, because a relay works without each of these options: slower, or
 * without noticing a peer that vanished. Without TCP_NODELAY on both sockets a write-write-read exchange costs 25 ms
 * and more. */
static inline void net_no_delay(net_socket fd) { net_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1); }

static inline void net_no_sigpipe(net_socket fd) /* for a system whose send() has no MSG_NOSIGNAL */
{
#ifdef __APPLE__
    net_set_int(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#else
    (void)fd;
#endif
}

/* Keeps the urgent byte in the stream, at its place, so that it is passed on there. */
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

/* Binds a socket that will connect to the source of its family, if there is one: 0, or -errno. Where the system can, connect
 * chooses the port: it then only has to differ for one target, so that an address has all its ports for each of them. */
static inline int net_bind_source(net_socket fd, int family, const net_tuning *tuning)
{
    int i;
    for (i = 0; i < 2 && tuning->source[i].length; i++)
        if (net_family(&tuning->source[i]) == family) {
            const net_addr *from = &tuning->source[i];
#ifdef IP_BIND_ADDRESS_NO_PORT
            net_set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1); /* of IPv6 sockets, too */
#endif
            return bind(fd, (const struct sockaddr *)(const void *)from->bytes, (socklen_t)from->length) == 0 ? 0 : -net_errno();
        }
    return 0;
}

/* Limits the memory of the kernel for one stalled direction. To be called before the handshake, which fixes the window
 * scale. */
static inline void net_bound_buffers(net_socket fd, const net_tuning *tuning)
{
    if (tuning->socket_buffer <= 0)
        return;
    net_set_int(fd, SOL_SOCKET, SO_SNDBUF, tuning->socket_buffer);
    net_set_int(fd, SOL_SOCKET, SO_RCVBUF, tuning->socket_buffer);
}

/* Switches pacing off for bulk to a peer on this machine, where no queue on the way can overflow. BBR, where it is
 * the system's congestion control, sends packets by a timer, and setting that timer makes a virtual machine exit to
 * its host: without it a third more throughput for three quarters of the processor time (docs/decisions.md). "reno"
 * exists in every kernel, and an unprivileged process may select it. */
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

/* Makes the clients of a TCP listener hang (`on`), or no longer: a filter drops each packet that comes for the listener, so
 * their kernels send the first one again and again, and connect() does not return. Connections that are established are
 * other sockets. 0, or -errno; only Linux can do this. */
static inline int net_hang(net_socket fd, int on)
{
#ifdef __linux__
    struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {1, &drop};
    if (setsockopt(fd, SOL_SOCKET, on ? SO_ATTACH_FILTER : SO_DETACH_FILTER, &program, sizeof program) < 0)
        return !on && errno == ENOENT ? 0 : -errno; /* there was no filter */
    return 0;
#else
    (void)fd, (void)on;
    return -EOPNOTSUPP;
#endif
}

/* Those of them that a UNIX socket has. Only its sender's buffer counts. */
static inline void net_tune_unix(net_socket fd, const net_tuning *tuning)
{
    net_oob_inline(fd);
    net_bound_buffers(fd, tuning);
}

/* Sets all options on a listener; accepted sockets inherit them, unless they are UNIX sockets. */
static inline void net_tune(net_socket fd, const net_tuning *tuning)
{
    if (net_speaks_unix(fd))
        return;
    net_no_delay(fd);
    net_oob_inline(fd);
    net_keep_alive(fd, tuning);
    net_bound_buffers(fd, tuning);
}

#endif
