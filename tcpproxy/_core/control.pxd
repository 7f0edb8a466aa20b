# What other threads tell a worker to do with its connections: to pause them, to end them. engine_ask brings the command.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.loop cimport Loop

cdef struct Kill:               # which connections to end, and how
    const uint64_t *ids         # in ascending order; NULL: all
    uint64_t count              # of ids
    uint64_t last_id            # those that were accepted later live on
    uint64_t most               # to end at once: their event records have to fit
    uint64_t killed             # set by the worker: how many it has ended. Fewer than `most`: there are no more
    bint reset                  # RST to both sides; else FIN

cdef void control_kill(Loop *loop, Kill *kill) noexcept nogil
# From the next turn on these directions rest (bits as in Loop.paused), and others that rested go on
cdef void control_pause(Loop *loop, uint8_t directions) noexcept nogil
