# Which clients are served, by their addresses: one table for all workers of a proxy, made before they run.
#
# A set of networks is a sorted array of bounds, at each of which the answer changes: the first bound begins a range of addresses
# that are in the set, the second one ends it, and so on. So an address is in the set if an odd number of bounds are not above
# it, which a binary search tells. All IPv4 addresses are in it as IPv4-mapped ones, those of dual-stack listeners too.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.net cimport net_addr

cdef enum:
    BOUND_BYTES = 16            # of a bound, as it is given: an IPv6 address in network order

cdef struct Bound:              # an IPv6 address
    uint64_t high
    uint64_t low

cdef struct Networks:
    Bound *bounds               # NULL: there is no list
    uint64_t count

cdef struct Admission:
    Networks admitted           # a client whose address is not among these is reset
    Networks proxies            # peers whose first bytes are a header of the PROXY protocol
    bint unix_proxies           # so are those of every peer of a UNIX socket

# Takes sorted bounds, each BOUND_BYTES long, from `packed`: 0 or -ENOMEM. No bounds are a list, too, of nobody
cdef int networks_init(Networks *networks, const uint8_t *packed, uint64_t count) noexcept nogil
cdef void networks_free(Networks *networks) noexcept nogil
cdef bint networks_have(const Networks *networks, const net_addr *address) noexcept nogil      # False for a UNIX socket's peer
# May this client connect? The peer of a UNIX socket may: who may write to the socket's file is the list of those
cdef bint admission_admits(const Admission *admission, const net_addr *client) noexcept nogil
# Is a header to come from this peer?
cdef bint admission_wants_header(const Admission *admission, const net_addr *peer) noexcept nogil
cdef void admission_free(Admission *admission) noexcept nogil
