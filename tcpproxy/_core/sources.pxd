# How many connections each source has: one table for the workers of a proxy. A source is an IPv4 address, or the /64 of an
# IPv6 address, which is the least that a site is given: counted by address, one host would be 2^64 sources.
#
# Open addressing, at most half full: no more sources live than connections, and those have a limit. So a flood from any
# number of sources costs no more memory than the table has from its start, and a secret keeps it from aiming at one slot.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr

cdef struct SourceSlot:
    uint64_t source
    uint32_t count              # 0: the slot is free

cdef struct Sources:
    SourceSlot *slots           # NULL: nothing is counted
    uint64_t mask               # slots - 1
    uint64_t secret
    uint64_t lock               # held for some 50 ns
    uint32_t most               # connections of one source at a time

cdef int sources_init(Sources *sources, uint64_t limit, uint32_t most, uint64_t secret) noexcept nogil     # 0 or -ENOMEM
cdef void sources_free(Sources *sources) noexcept nogil
# One connection more; False: that would be one too many. The caller sees to it that no more than `limit` are in.
cdef bint sources_enter(Sources *sources, const net_addr *client) noexcept nogil
cdef void sources_leave(Sources *sources, const net_addr *client) noexcept nogil                           # that one is over
