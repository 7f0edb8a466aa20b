# One proxied connection: two sockets (sides), two directions (halves).
#
#   resolving -> connecting -> relaying -> [resetting | lingering] -> dead
#
# Loop is what all relays of one worker share. Nothing in it belongs to another thread but what sync.h guards.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.connecting cimport AddressList, Connecting
from tcpproxy._core.events cimport EventRing
from tcpproxy._core.half cimport Half, Pump, Side
from tcpproxy._core.net cimport net_addr, net_socket, net_tuning
from tcpproxy._core.sources cimport Sources
from tcpproxy._core.timers cimport Timer, Timers

cdef enum:                  # which side; halves[side] carries what that side sends
    CLIENT = 0
    UPSTREAM = 1

cdef enum:                  # Relay.state
    RELAY_FREE = 0
    RELAY_RESOLVING         # waits for the addresses of upstream
    RELAY_CONNECTING
    RELAY_RELAYING
    RELAY_RESETTING         # one side was reset; the other is, as soon as the kernel has sent what it was given
    RELAY_LINGERING         # both ends were passed on, but a peer still sends: read on, or close() would reset it
    RELAY_CLOSED              # closed; its memory rests until the batch is over

cdef enum:
    UPSTREAMS = 16          # in one process: a listener names its upstream by number

cdef struct Relay:
    Relay *next             # of the run queue, or of the free slots
    Relay *next_closed
    Side sides[2]
    Half halves[2]
    Timer deadline          # connect, idle, half-close, linger: whichever applies
    Timer check             # stagger while connecting, settled and silence while relaying, flush while resetting
    Connecting *connecting  # while connecting
    uint64_t accepted_ns
    uint64_t connected_ns
    net_addr client
    net_addr upstream       # connected to, or tried last
    uint32_t index          # its slot in the table
    uint32_t generation     # how often the slot was used; in the tag, so that a stale event finds nobody
    int32_t error           # errno behind the reason
    uint32_t probes_at_ack[2]       # by each side: net_unacked
    uint8_t state
    uint8_t reason
    uint8_t attempt         # of the attempt that won: upstream events come under it
    uint8_t target          # which upstream
    uint8_t queued
    uint8_t last_sender           # the side whose bytes were the last to be delivered

cdef struct Upstream:
    AddressList *list       # the latest answer, or NULL
    void *incoming          # AddressList left here by another thread
    uint64_t asked          # set by the worker, taken by the resolver's thread
    bint waiting            # asked, and no answer yet

cdef struct Counters:       # written by the worker alone, read by anybody
    uint64_t accepted
    uint64_t ended          # relays that are over, for whatever reason
    uint64_t failed         # those whose upstream was not reached
    uint64_t refused        # turned away at once: no memory, or too many connections of that source
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client
    uint64_t wakeups        # returns from poller_wait
    uint64_t accept_errors
    uint64_t active         # relays alive now, of this worker; added to by others that hand one over

cdef struct Table:          # the worker's relays by index; see table.pxd
    Relay *chunks[16384]
    uint32_t size           # slots that exist
    Relay *free

cdef struct Loop:
    Pump pump
    Timers timers
    EventRing events
    Table table
    Counters counters
    Upstream upstreams[UPSTREAMS]
    int upstream_count
    net_tuning tuning
    Sources *sources        # of all workers together
    uint64_t now_ns         # read once a batch
    bint interactive             # a relay had a question and its answer; the engine sets it back
    bint half_close         # False: the first end closes both directions (--half-close-timeout 0)
    net_socket lookup_wakeup   # a byte here wakes the resolver's thread
    Relay *queue_first      # run queue: relays that deserve a turn
    Relay *queue_last
    Relay *closed

cdef void relay_start(Loop *loop, net_socket fd, const net_addr *client, int target) noexcept nogil
cdef void relay_turn_away(Loop *loop, net_socket fd, const net_addr *client, int error) noexcept nogil  # instead
cdef void relay_event(Loop *loop, Relay *relay, uint32_t number, uint32_t bits) noexcept nogil
cdef void relay_timer(Loop *loop, Relay *relay, int kind) noexcept nogil
cdef void relay_turn(Loop *loop, Relay *relay) noexcept nogil           # from the run queue
cdef void relay_answered(Loop *loop, Relay *relay) noexcept nogil       # upstream's addresses have come
cdef void relay_abort(Loop *loop, Relay *relay) noexcept nogil          # the proxy stops: reset both sides
