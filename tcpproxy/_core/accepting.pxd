# The listeners of a worker: registers them with the poller, accepts clients, and gives each client to a worker.
#
# All workers share each listening socket, and each worker has its own descriptor of it. A listener is level-triggered. While
# connections cannot be accepted (EMFILE and the like, or Group.limit) it is not registered, because the loop would spin.
from libc.stdint cimport int64_t, uint8_t, uint32_t
from tcpproxy._core.loop cimport LISTENERS, Loop
from tcpproxy._core.net cimport net_socket

cdef struct NewListeners:       # a command of another thread
    net_socket fds[LISTENERS]   # listening and non-blocking
    uint8_t targets[LISTENERS]  # the upstream of each
    int count                   # 0: the proxy does not listen any more
    bint taken                  # set by the worker, which owns the descriptors from then on

# Adds a listener, which the loop then owns. To be called before the loop runs
cdef void accepting_add(Loop *loop, net_socket fd, int target) noexcept nogil
cdef void accepting_watch(Loop *loop) noexcept nogil                # registers the listeners, unless the proxy stops
cdef void accepting_take_all(Loop *loop) noexcept nogil             # accepts all clients in the backlog
# Accepts all clients in the backlog, closes the listeners, and takes the new ones; if the proxy stops it closes the new ones, too
cdef void accepting_replace(Loop *loop, NewListeners *listeners) noexcept nogil
cdef int64_t accepting_hang(Loop *loop, bint on) noexcept nogil     # net_hang for all listeners: 0, or -errno of one
cdef void accepting_close(Loop *loop) noexcept nogil                # unregisters and closes the listeners
cdef void accepting_event(Loop *loop, uint32_t listener) noexcept nogil
cdef void accepting_freed(Loop *loop) noexcept nogil                # relays have ended: a pause at the limit may end
