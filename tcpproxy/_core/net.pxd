# The socket calls that the core may use. Each returns a value >= 0, or -errno; net.h has the details.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "net.h" nogil:
    ctypedef int net_socket         # the platform's type, signed or not: compare it with NET_NONE only
    net_socket NET_NONE
    bint NET_POLL_CLEARS_ERROR      # the poller may clear the error it reports: recv then returns 0 for a reset

    ctypedef struct net_addr:
        uint32_t length             # used part of `bytes`; 0: no address
        uint8_t bytes[28]

    ctypedef struct net_tuning:
        int keepalive_idle          # seconds; 0: off
        int keepalive_interval      # seconds
        int keepalive_count         # unanswered probes that end a connection
        int socket_buffer           # bytes, of each direction; 0: the system's choice
        int ephemeral_first         # ports that the kernel gives to outgoing connections
        int ephemeral_last
        net_addr source[2]          # where outgoing connections come from; length 0: the system's choice

    int net_pack_path(net_addr *to, const char *path, size_t size)      # of a UNIX socket; the caller keeps `path`
    bint net_is_unix(const net_addr *addr)
    const char *net_path(const net_addr *addr, uint32_t *size)
    bint net_may_be_own(const net_addr *peer)                   # is it a UNIX socket of this process?
    bint net_leads_to(const net_addr *to, net_socket listener)  # is the path `to` the file of this listener?
    int net_pack(net_addr *to, const void *ip, size_t size, int port, uint32_t scope)
    bint net_unpack(const net_addr *addr, uint8_t *ip, uint16_t *port)     # ip: 16 bytes. False: no IP address
    void net_format(const net_addr *addr, char *text)           # text: 80 bytes
    uint64_t net_source(const net_addr *addr)
    bint net_speaks_v6(const net_addr *addr)                    # the address of an IPv6 socket, IPv4-mapped ones too

    int64_t net_accept(net_socket listener, net_addr *peer, const net_tuning *tuning)       # a net_socket, or -errno
    int64_t net_open(const net_addr *to, const net_tuning *tuning)                          # the same
    int net_connect(net_socket fd, const net_addr *to)          # 0, -EINPROGRESS, or another -errno
    int net_take_error(net_socket fd)                           # a positive errno, or 0
    int net_unconnected(net_socket fd)                          # a positive errno, or 0
    bint net_met_itself(net_socket fd, const net_addr *to, const net_tuning *tuning)
    void net_own_address(net_socket fd, net_addr *to)
    int64_t net_recv(net_socket fd, void *to, size_t size)
    int64_t net_peek(net_socket fd, void *to, size_t size)
    int64_t net_send(net_socket fd, const void *data, size_t size)
    bint NET_HOLDS                                              # net_send_held does hold
    int64_t net_send_held(net_socket fd, const void *data, size_t size)     # with the next send, or 0.2 s later
    int net_shut_write(net_socket fd)                           # sends FIN after the queued bytes
    void net_close(net_socket fd)
    int net_hang(net_socket fd, int on)
    void net_reset(net_socket fd)                               # closes with RST

    void net_no_delay(net_socket fd)
    void net_oob_inline(net_socket fd)
    void net_pacing_off(net_socket fd)
    void net_keep_alive(net_socket fd, const net_tuning *tuning)
    void net_tune(net_socket fd, const net_tuning *tuning)

    int net_unread(net_socket fd)                               # bytes in the receive queue
    int net_unsent(net_socket fd)                               # bytes in the send queue that the kernel has not sent yet
    int net_unacked(net_socket fd, const net_tuning *tuning, uint32_t *probes_at_ack)       # 0, 1, or -ETIMEDOUT

    bint net_would_block(int64_t rc)
    bint net_out_of_resources(int64_t rc)
    bint net_accept_transient(int rc)
    bint net_was_connected(int error)

    # errno.h's, or Winsock's numbers for them
    int EINPROGRESS, EADDRNOTAVAIL, ECONNREFUSED, ECONNRESET, ETIMEDOUT, ENOENT, ENOMEM, EINVAL, EDEADLK

    # a pair that wakes a thread: see net_posix.h
    int net_wake_pair(net_socket *reader, net_socket *writer)   # 0 or -errno
    void net_wake(net_socket writer)
    bint net_await_input(net_socket fd, int timeout_ms)         # False: timeout_ms (-1: none) was over first
    bint net_await_wake(net_socket reader, int timeout_ms)      # the same


cdef inline bint net_is_v4(const uint8_t *ip) noexcept nogil:
    """Is this address, of 16 bytes, an IPv4-mapped one?"""
    cdef int i
    for i in range(10):
        if ip[i]:
            return False
    return ip[10] == 0xff and ip[11] == 0xff
