# Connecting to upstream: the addresses of a list in order, a new attempt every 250 ms or as soon as one has failed; the first
# connection wins (RFC 8305, "Happy Eyeballs"). A Connecting is freed when the relay starts to relay.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_tuning
from tcpproxy._core.poller cimport Poller, Watch

cdef enum:
    ADDRESSES = 14              # addresses of one name at most: attempt n is n + 1 in a tag's low four bits, a listener 15

cdef struct AddressList:        # the result of one lookup. Belongs to one worker; freed when its last user releases it
    uint32_t users
    uint32_t count              # 0: the lookup has failed
    uint64_t expires_ns         # from then on not used for new connections
    net_addr addresses[ADDRESSES]

cdef struct Connecting:
    AddressList *list
    const net_tuning *tuning    # the worker's
    uint32_t started            # number of addresses tried so far
    uint32_t pending            # number of attempts in progress
    int32_t error               # errno of the attempt that failed last
    uint32_t last               # index of its address
    Watch attempts[ADDRESSES]   # one per address; fd NET_NONE: not in progress
    uint8_t ready[ADDRESSES]    # READY_ bits reported so far: bits of the winner's side, which the poller does not repeat

cdef enum:                      # what the functions below return: the number of the attempt that has won, or
    CONNECTING_PENDING = -1
    CONNECTING_FAILED = -2      # `error` and `last` say which attempt failed last

cdef Connecting *connecting_new(AddressList *list, const net_tuning *tuning) noexcept nogil      # NULL: no memory
cdef void connecting_free(Connecting *connecting, Poller *poller) noexcept nogil    # resets attempts in progress
# Starts the next attempt. CONNECTING_FAILED: all addresses have been tried, and none is in progress
cdef int connecting_next(Connecting *connecting, Poller *poller, uint64_t tag) noexcept nogil
# An event of attempt `number`. CONNECTING_FAILED: this attempt has failed
cdef int connecting_event(Connecting *connecting, Poller *poller, uint32_t number, uint32_t ready) noexcept nogil
# Moves the winner's socket out
cdef void connecting_take(Connecting *connecting, Poller *poller, uint32_t number, Watch *to) noexcept nogil
cdef bint connecting_has_more(Connecting *connecting) noexcept nogil           # addresses that were not tried

cdef void addresses_keep(AddressList *list) noexcept nogil
cdef void addresses_release(AddressList *list) noexcept nogil          # NULL is allowed
