# Connecting to upstream (RFC 8305, "Happy Eyeballs"): tries the addresses of a list in order, a new one every 250 ms or as soon
# as an attempt has failed. The first connection wins. A Connecting is freed when the relay starts to relay. If the forward has
# several targets, it exists from the start, and goes from one target to the next (fallback.pxd).
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_tuning
from tcpproxy._core.poller cimport Poller, Watch
from tcpproxy._core.timers cimport Alarm

cdef enum:
    ADDRESSES = 14              # the most addresses of a name: attempt n is n + 1 in a tag's low four bits, a listener is 15

cdef struct AddressList:        # the result of one lookup. Belongs to one worker; freed when its last user releases it
    uint32_t users
    uint32_t count              # 0: the lookup has failed
    uint64_t expires_ns         # new connections do not use it after this time
    uint64_t avoided            # the family whose addresses are last; 0: in the order of the lookup
    net_addr addresses[ADDRESSES]

cdef struct Connecting:
    AddressList *list           # NULL: they are not known yet
    const net_tuning *tuning    # the worker's
    uint32_t started            # number of addresses tried so far
    uint32_t pending            # number of attempts in progress
    int32_t error               # errno of the attempt that failed last
    uint32_t last               # index of its address
    Watch attempts[ADDRESSES]   # one per address; fd NET_NONE: not in progress
    uint8_t ready[ADDRESSES]    # READY_ bits reported so far: bits of the winner's side, which the poller does not repeat
    # The rest is for a forward with several targets:
    Alarm share                 # when the present target's time is over; `owner` NULL: the forward has one target
    uint64_t since_ns           # when the present target's time began
    uint32_t tried              # bits of the targets that were tried, by their places in the forward, with the present one
    uint8_t first               # upstream number of the forward's first target
    uint8_t reason              # REASON_ of the present target's failure, until the relay's next turn; 0: it has not failed
    uint8_t passed_over         # the present target is tried although its last connection found no answer

cdef enum:                      # what the functions below return: the number of the attempt that has won, or
    CONNECTING_PENDING = -1
    CONNECTING_FAILED = -2      # `error` and `last` say which attempt failed last

# NULL: no memory. `list` may be NULL
cdef Connecting *connecting_new(AddressList *list, const net_tuning *tuning) noexcept nogil
cdef void connecting_use(Connecting *connecting, AddressList *list) noexcept nogil
cdef void connecting_restart(Connecting *connecting, Poller *poller) noexcept nogil     # as new: no attempt, no list
cdef void connecting_free(Connecting *connecting, Poller *poller) noexcept nogil    # resets attempts in progress
# Starts the next attempt. CONNECTING_FAILED: all addresses have been tried, and none is in progress
cdef int connecting_next(Connecting *connecting, Poller *poller, uint64_t tag) noexcept nogil
# An event of attempt `number`. CONNECTING_FAILED: this attempt has failed
cdef int connecting_event(Connecting *connecting, Poller *poller, uint32_t number, uint32_t ready) noexcept nogil
# Moves the winner's socket out
cdef void connecting_take(Connecting *connecting, Poller *poller, uint32_t number, Watch *to) noexcept nogil
cdef bint connecting_has_more(Connecting *connecting) noexcept nogil           # addresses that were not tried

# A family that gives no answer, like IPv6 on a path that drops it, costs each connection the 250 ms until the next attempt. So
# the family is remembered for the time of RFC 6555, section 4.2, and its addresses are tried last. Group.avoided has a word for
# each upstream: the end of that time in ns, in whose low eight bits is the length of the family's addresses.
#
# connecting_avoids returns the word for the attempt that has won. 0: the first address is of the same family, or its attempt is
# over.
# addresses_avoid returns the list in the new order, which replaces the caller's; it may be the same one
cdef uint64_t connecting_avoids(const Connecting *connecting, uint32_t winner, uint64_t now_ns) noexcept nogil
cdef AddressList *addresses_avoid(AddressList *list, uint64_t avoided) noexcept nogil
cdef void addresses_keep(AddressList *list) noexcept nogil
cdef void addresses_release(AddressList *list) noexcept nogil          # NULL is allowed
