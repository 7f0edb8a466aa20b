# How many connections each source has: one table for all workers of a proxy. A source is an IPv4 address, or the /64 of an
# IPv6 address: a site gets at least a /64, so if IPv6 addresses were counted singly, one host could be 2^64 sources.
#
# A hash table with open addressing, at most half full: there are never more sources than connections, whose number is
# limited. So a flood from any number of sources uses no more memory than the table has from the start. The hash is keyed
# with a secret, so that an attacker cannot choose sources that collide.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr

cdef struct SourceSlot:
    uint64_t source
    uint32_t count              # 0: the slot is free

cdef struct Sources:
    SourceSlot *slots           # NULL: there is no limit, nothing is counted
    uint64_t mask               # number of slots - 1
    uint64_t secret             # key of the hash
    uint64_t lock               # a spin lock, 1: taken; held for some 50 ns
    uint32_t most               # connections of one source at a time

cdef int sources_init(Sources *sources, uint64_t limit, uint32_t most, uint64_t secret) noexcept nogil     # 0 or -ENOMEM
cdef void sources_free(Sources *sources) noexcept nogil
# Counts one connection more. False: its source has `most` already. The caller ensures that at most `limit` are counted
cdef bint sources_enter(Sources *sources, const net_addr *client) noexcept nogil
cdef void sources_leave(Sources *sources, const net_addr *client) noexcept nogil                           # counts one less
