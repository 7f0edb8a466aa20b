# Commands of other threads about the connections of a worker: kill and pause. They come by engine_ask.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.loop cimport Loop

cdef struct Kill:               # which connections to end, and how
    const uint64_t *ids         # in ascending order; NULL: all
    uint64_t count              # of ids
    uint64_t last_id            # later connections are not ended
    uint64_t most               # the most connections to end at once: their event records have to fit
    uint64_t killed             # set by the worker: how many it has ended. Fewer than `most`: there are no more
    bint reset                  # RST to both sides; else FIN

cdef void control_kill(Loop *loop, Kill *kill) noexcept nogil
# Pauses these directions (bits as in Loop.paused) from the next turn on, and resumes the others
cdef void control_pause(Loop *loop, uint8_t directions) noexcept nogil
