# The descriptors and the memory of a loop: made at the beginning of a worker, released at its end.
from tcpproxy._core.loop cimport Loop
from tcpproxy._core.net cimport net_socket

cdef enum:
    NS_PER_SECOND = 1000000000

cdef struct Settings:       # of one worker
    net_socket log_wakeup       # non-blocking sockets: a byte to this one says that there are event records,
    net_socket lookup_wakeup    # a byte to this one that addresses of an upstream are wanted
    int buffer_size             # bytes
    double connect_timeout      # seconds
    double header_timeout       # seconds
    double half_close_timeout   # seconds; 0: the first EOF closes both directions
    double idle_timeout         # seconds; 0: none
    int keepalive               # seconds; 0: off
    int socket_buffer           # bytes; 0: the system's choice
    int ephemeral_first         # ports that the kernel gives to outgoing connections
    int ephemeral_last
    int zero_copy               # ZERO_COPY_ of half.pxd
    int busy_poll_us            # microseconds; 0: none, -1: adaptive
    int tap                     # 1: there is a tap, for a TapReader (capture.pyx)
    int paused                  # Loop.paused at the start
    int upstreams               # number of upstreams
    int send_header             # version of the PROXY header for upstream; 0: none

cdef int resources_init(Loop *loop, const Settings *settings) noexcept nogil       # `loop` is zeroed: 0, -ENOMEM or -EMFILE
cdef void resources_close(Loop *loop) noexcept nogil            # every descriptor; no worker of the group runs any more
cdef void resources_free(Loop *loop) noexcept nogil             # the memory as well
cdef void resources_close_after_fork(Loop *loop) noexcept nogil  # in a forked child: every descriptor, no memory
