# The output of a shaper: which bytes leave its line, and when. The model is in shaper.pxd.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.buffer cimport Buffer
from tcpproxy._core.shaper cimport Shaper

cdef enum:                  # results of outlet_take
    TAKE_NOTHING = 0        # before outlet_due_ns
    TAKE_BYTES              # `out` has them
    TAKE_EOF                # the end of file of the source, after the last byte
    TAKE_FAILED             # the failure of the source, after the last byte
    TAKE_CLOSE              # end the connection: an end of file for both peers
    TAKE_RESET              # end the connection: reset both peers
    TAKE_NO_MEMORY          # there is no memory to take bytes out

# Takes up to `most` bytes into the empty `out`, or the end of the source. Returns TAKE_
cdef int outlet_take(Shaper *shaper, uint32_t most, Buffer *out, uint64_t now_ns) noexcept nogil
cdef int outlet_verdict(Shaper *shaper, uint64_t now_ns) noexcept nogil         # TAKE_CLOSE, TAKE_RESET or TAKE_NOTHING
# When to call outlet_take again; with `blocked` (the sink takes nothing), when to call outlet_verdict. UINT64_MAX: never
cdef uint64_t outlet_due_ns(Shaper *shaper, bint blocked, uint64_t now_ns) noexcept nogil
