# The Shaping of a connection: it gets the rules of a plan, and is freed. What the rules do is in shaper.pxd.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.plan cimport Plan
from tcpproxy._core.shaper cimport Shaping

# Has no plan before shaping_adopt. NULL: no memory
cdef Shaping *shaping_new(uint64_t id, uint64_t client_high, uint64_t client_low, uint32_t small) noexcept nogil
cdef int shaping_adopt(Shaping *shaping, Plan *plan, uint64_t now_ns) noexcept nogil    # 0, or -1: no memory, nothing has changed
# The time from which on the relay may connect to upstream; UINT64_MAX: never
cdef uint64_t shaping_dial_ns(Shaping *shaping) noexcept nogil
cdef void shaping_free(Shaping *shaping) noexcept nogil
