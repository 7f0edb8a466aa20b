# The listeners of a worker: when they are registered with the poller, and what happens to a connection that was accepted.
#
# All workers share each listening socket, and each has its own descriptor of it. A listener is level-triggered: while
# connections cannot be accepted (EMFILE and the like, or Group.limit) it is not registered, or the loop would spin.
from libc.stdint cimport uint32_t
from tcpproxy._core.loop cimport Loop

cdef void accepting_watch(Loop *loop) noexcept nogil                # registers the listeners, unless the proxy stops
cdef void accepting_close(Loop *loop) noexcept nogil                # unregisters and closes the listeners
cdef void accepting_event(Loop *loop, uint32_t listener) noexcept nogil
cdef void accepting_freed(Loop *loop) noexcept nogil                # relays have ended: there is room for others
