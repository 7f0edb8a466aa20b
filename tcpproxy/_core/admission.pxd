# Access lists: which clients are served, by their addresses. All workers of a proxy share one table, which is made before they
# run.
#
# A set of networks is a sorted array of bounds: the first bound begins a range of addresses that are in the set, the second one
# is the first address after that range, and so on. So an address is in the set if an odd number of bounds are less than or equal
# to it. A binary search finds that number. IPv4 addresses are stored as IPv4-mapped IPv6 addresses, which dual-stack listeners
# report.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.net cimport net_addr

cdef enum:
    BOUND_BYTES = 16            # size of a packed bound: an IPv6 address in network order

cdef struct Bound:              # an IPv6 address
    uint64_t high
    uint64_t low

cdef struct Networks:
    Bound *bounds               # NULL: there is no list
    uint64_t count

cdef struct Admission:
    Networks admitted           # a client whose address is not among these is reset
    Networks proxies            # peers whose first bytes are a header of the PROXY protocol
    bint unix_proxies           # all peers of UNIX sockets are such proxies, too

# Copies sorted bounds, each BOUND_BYTES long, from `packed`. Returns 0 or -ENOMEM. A count of 0 makes an empty set
cdef int networks_init(Networks *networks, const uint8_t *packed, uint64_t count) noexcept nogil
cdef void networks_free(Networks *networks) noexcept nogil
cdef bint networks_have(const Networks *networks, const net_addr *address) noexcept nogil      # False for a UNIX socket's peer
# May this client connect? The peer of a UNIX socket always may: the permissions of the socket's file decide about it
cdef bint admission_admits(const Admission *admission, const net_addr *client) noexcept nogil
# Must connections of this peer begin with a PROXY header?
cdef bint admission_wants_header(const Admission *admission, const net_addr *peer) noexcept nogil
cdef void admission_free(Admission *admission) noexcept nogil
