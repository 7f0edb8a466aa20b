# Reaching upstream: every address of a list in turn, a new attempt each 250 ms or as soon as one has failed, the first
# connection wins (RFC 8305, "Happy Eyeballs"). Exists only until the relay relays.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_tuning
from tcpproxy._core.poller cimport Poller, Watch

cdef enum:
    ADDRESSES = 14              # of one name: attempt n reports as n + 1 in a tag's four bits, and 15 is a listener's

cdef struct AddressList:        # one answer to "where is upstream?"; of one worker, counted by its users there
    uint32_t users
    uint32_t count              # 0: the look-up failed
    uint64_t expires_ns         # not to be used for new connections from then on
    net_addr addresses[ADDRESSES]

cdef struct Connecting:
    AddressList *list
    const net_tuning *tuning    # of the worker
    uint32_t started            # addresses tried so far
    uint32_t pending            # attempts under way
    int32_t error               # errno of the attempt that failed last
    uint32_t last               # its address
    Watch attempts[ADDRESSES]   # one per address; fd NET_NONE: not under way
    uint8_t ready[ADDRESSES]    # READY_ bits reported so far: what is read first may come before "connected"

cdef enum:                      # what the calls below return: the number of the attempt that has won, or
    CONNECTING_PENDING = -1
    CONNECTING_FAILED = -2      # all addresses tried: `error`, `last`

cdef Connecting *connecting_new(AddressList *list, const net_tuning *tuning) noexcept nogil      # NULL: no memory
cdef void connecting_free(Connecting *connecting, Poller *poller) noexcept nogil    # closes every attempt under way
cdef int connecting_next(Connecting *connecting, Poller *poller, uint64_t tag) noexcept nogil
cdef int connecting_event(Connecting *connecting, Poller *poller, uint32_t number, uint32_t ready) noexcept nogil
cdef void connecting_take(Connecting *connecting, Poller *poller, uint32_t number, Watch *to) noexcept nogil  # the winner
cdef bint connecting_has_more(Connecting *connecting) noexcept nogil

cdef void addresses_keep(AddressList *list) noexcept nogil
cdef void addresses_release(AddressList *list) noexcept nogil          # NULL is allowed
