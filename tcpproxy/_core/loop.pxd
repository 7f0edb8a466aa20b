# The structs of a worker and its relays. They point at each other, so they are declared together; code is elsewhere.
#
# Loop is the one context: everything that the relays of a worker share. One thread owns a Loop. What other threads access
# is listed in sync.h.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.admission cimport Admission
from tcpproxy._core.bucket cimport Limit
from tcpproxy._core.bulk cimport Bulk
from tcpproxy._core.connecting cimport AddressList, Connecting
from tcpproxy._core.events cimport REASONS, EventRing
from tcpproxy._core.half cimport Half, Pump, Side
from tcpproxy._core.inbox cimport Inbox
from tcpproxy._core.net cimport net_addr, net_socket, net_tuning
from tcpproxy._core.plan cimport Plan
from tcpproxy._core.poller cimport POLLER_BATCH, Ready, Watch
from tcpproxy._core.shaper cimport Shaping
from tcpproxy._core.sources cimport Sources
from tcpproxy._core.spin cimport Spin
from tcpproxy._core.timers cimport Alarm, Timer, Timers

cdef enum:                  # which side; halves[side] carries what that side sends
    CLIENT = 0
    UPSTREAM = 1

cdef enum:                  # Relay.state, in the order of a relay's life
    RELAY_FREE = 0
    RELAY_INTRODUCING       # its PROXY header is read; nobody has been told of it
    RELAY_RESOLVING         # waits for the addresses of upstream
    RELAY_CONNECTING
    RELAY_GREETING          # is connected; upstream has not taken all of the PROXY header yet
    RELAY_RELAYING
    RELAY_RESETTING         # one side was reset; the other is reset once the kernel has sent what it was given
    RELAY_LINGERING         # both FINs were passed on, but a peer still sends: read on, or close() would send RST
    RELAY_CLOSED            # its sockets are closed; its slot waits to be reclaimed

cdef enum:                  # Loop.stop
    RUN = 0
    DRAIN = 1               # accept nothing, end with the last relay
    ABORT = 2               # reset every relay and end

cdef enum:                  # limits of one proxy
    FORWARDS = 64
    TARGETS = 16            # of one forward
    UPSTREAMS = 255         # targets of all forwards: a listener names the first of its own by number
    LISTENERS = 1024        # a name to listen on may have several addresses
    WORKERS = 64
    TABLE_CHUNKS = 16384
    CONNECTIONS = 1000000   # at a time: upper bound, also where the system allows more descriptors

cdef struct Meter:          # what a relay has if there are rates, of each direction; see metering.pxd
    Alarm alarm
    uint64_t used_up_ns[2]  # its own bucket
    uint64_t due_ns[2]      # when the portion may be read
    uint32_t portion[2]     # bytes that are reserved, and were not read yet

cdef struct Origin:         # of a relay; allocated only when somebody wants it
    net_addr outgoing       # the proxy's own address toward upstream; none: not wanted
    net_addr via            # who has sent a PROXY header, and so named the client; none: nobody
    net_addr destination    # that the client has connected to, as the header says
    Meter *meter            # NULL: there are no rates

cdef enum:                  # Relay.queued
    QUEUED_NOT = 0
    QUEUED_TURN             # has a turn coming
    QUEUED_STALLED          # waits for room in the tap

cdef struct RelayList:      # linked by Relay.next
    Relay *first
    Relay *last

cdef struct Relay:          # one proxied connection; its two sockets are `sides`, its two directions `halves`
    # What a turn uses: the first 256 bytes
    Relay *next             # in a RelayList, or of the free slots
    uint32_t index          # its slot in the table
    uint32_t generation     # how often the slot was used: part of the tag, so that a stale event finds no relay
    uint8_t state
    uint8_t reason          # REASON_ of events.pxd
    uint8_t attempt         # upstream's socket in the tag: the number of the attempt that won, plus 1
    uint8_t target          # index of its upstream; while it connects, of the one that is tried
    uint8_t queued          # QUEUED_: in which list it is
    uint8_t bulk            # its last turn beside interactive traffic moved many bytes
    uint8_t last_sender     # the side whose bytes were delivered last
    uint8_t killed          # its end was reported; it lingers and is not counted in `active`
    Side sides[2]
    Half halves[2]
    uint64_t moved_ns       # of the last turn that moved bytes or passed an end on; 0: none has
    Timer deadline          # connect, idle, half-close or linger: the one that applies
    Timer check             # stagger while connecting, keepalive and unacked while relaying, flush while resetting
    # What its beginning and its end use
    Connecting *connecting  # NULL unless connecting
    uint64_t id             # the number of the connection, from 1, in the order of accept
    uint64_t accepted_ns
    uint64_t connected_ns   # 0: not connected
    Origin *origin          # NULL: nothing in it is wanted, or there was no memory for it
    net_addr client         # where its connection comes from, or what a PROXY header says
    net_addr upstream       # connected to, or tried last
    int32_t error           # errno behind the reason
    uint32_t next_closed    # as Loop.closed

cdef struct Table:          # relays by index; see table.pxd
    Relay *chunks[TABLE_CHUNKS]
    uint32_t size           # slots that exist
    Relay *free

cdef struct Upstream:           # one target of a forward; those that follow it are numbered on
    AddressList *list       # the latest answer, or NULL
    void *incoming          # AddressList that another thread left here; the latest one wins
    net_addr places[2]      # what its clients of IPv4 and of IPv6 connect to, if that is one address; none: ask the kernel
    uint8_t place_counts[2]     # listeners of each family
    uint64_t asked          # set by the worker, taken by the lookup thread
    bint waiting            # asked, and no answer yet
    int targets             # of the forward's first: how many it has
    int first               # the forward's first

cdef enum:
    BUCKETS = 10            # of a Histogram: one more than its bounds

cdef struct Histogram:      # of times; the bounds are in reports.pyx
    uint64_t counts[BUCKETS]    # in the order of the bounds: how many were at most that, and not in an earlier bucket
    uint64_t sum_ns

cdef struct Counters:       # of a worker, or of one target; written by the worker, except `active`; read by any thread
    uint64_t accepted
    uint64_t ended          # relays that are over, for whatever reason
    uint64_t failed         # those whose upstream was not reached
    uint64_t refused        # turned away at once: not admitted, no memory, or too many connections of that source
    uint64_t to_upstream    # bytes delivered
    uint64_t to_client
    uint64_t wakeups        # batches: returns of the engine's _wait
    uint64_t spliced        # of one target: bytes among these that never left the kernel; of a worker it is in Pump
    uint64_t accept_errors
    uint64_t throttled_ns   # for which directions have waited for a rate, added up
    uint64_t active         # relays alive now, and connections that are being accepted or handed over: for limits
    uint64_t ended_by[REASONS]      # `ended`, by reason
    uint64_t failed_by[REASONS]     # `failed`, by reason
    uint64_t refused_by[REASONS]    # `refused`, by reason
    Histogram connects      # from accept to connected
    Histogram durations     # from accept to the end, of all that are over

cdef struct Listener:
    Watch watch
    int target              # the first upstream of its clients

cdef enum:                  # for Accepting.lifetime_ns
    LIFETIME_MOST_NS = 1000000000   # counted of a connection, so that one long-lived one does not decide for long
    LIFETIME_SHIFT = 3              # the average reaches back 8 connections

cdef struct Accepting:      # see accepting.pxd
    Listener listeners[LISTENERS]
    int count
    int credit              # the number of connections to accept in a row, times BATCHES_PER_ACCEPT of accepting.pyx
    bint found              # the last batch accepted a connection
    bint watched            # the listeners are registered with the poller
    uint64_t resume_ns      # when to register them again; 0: nothing planned
    uint64_t paused_ns      # since when they are not registered
    bint at_limit           # paused because of Group.limit: a relay that ends shortens the pause
    uint64_t reserved       # a connection is counted in `active` that may or may not be accepted
    int64_t lifetime_ns     # of this worker's connections: a moving average, from LIFETIME_MOST_NS on

cdef struct Group:          # what the workers of one proxy share
    int count
    uint64_t limit          # connections at a time, all workers together
    uint64_t last_id        # of the connection that was accepted last, by any worker; the first one has 1
    uint64_t interactive_ns     # when one of them last saw interactive traffic
    Admission *admission    # NULL: clients may come from anywhere
    Sources sources
    Limit rate[2]           # of all relays, of each direction; rate 0: none
    uint64_t used_up_ns[2]  # its bucket
    Limit each[2]           # of each relay
    uint32_t portion[2]     # see metering.pxd
    uint64_t down[UPSTREAMS]    # see fallback.pxd
    uint64_t avoided[UPSTREAMS]     # see addresses_avoid of connecting.pxd
    Loop *members[WORKERS]

cdef struct Loop:
    Pump pump
    Timers timers
    EventRing events
    Table table
    Counters counters
    Counters *by_target     # of each upstream, without `active` and `wakeups`; NULL: there is only one
    Inbox inbox             # commands of other threads
    Group *group
    Accepting accepting
    Plan *plan              # faults; NULL: there were none yet
    Upstream upstreams[UPSTREAMS]
    int upstream_count
    net_tuning tuning
    uint64_t now_ns         # updated once a batch, at the end of the wait
    bint interactive        # a relay had interactive traffic; the engine clears it
    bint beside_interactive     # a relay of any worker had it lately: bulk takes small steps
    uint32_t turn_bytes     # the budget of a turn otherwise
    bint metered            # there are rates
    bint half_close         # False: the first EOF closes both directions (--half-close-timeout 0)
    uint8_t paused          # bit 1 << side: what that side sends is neither read nor delivered, nor is its end
    uint64_t lingering      # relays that were killed or cut, and linger: the loop does not end before
    net_socket lookup_wakeup    # a byte sent here wakes the lookup thread
    RelayList queue         # run queue: relays that have something to do,
    RelayList bulk_queue    # and those of them that are bulk (Relay.bulk): their turns come after the others
    RelayList stalled       # relays that wait for room in the tap, in the order in which they asked for it
    uint32_t closed         # the last one that was closed and is to be reclaimed: its index, plus 1; 0: there is none
    Spin spin
    Bulk bulk
    int send_header         # version of the PROXY protocol that upstream is sent a header of; 0: none
    int last_side           # of the last event: CLIENT or UPSTREAM
    uint64_t stop
    uint64_t asking         # threads that send a question or wait for its answer; the loop does not end before it is 0
    uint64_t finished       # the loop has ended or is about to: it takes neither connections nor questions any more
    Ready ready[POLLER_BATCH]


cdef inline void relays_append(RelayList *relays, Relay *relay) noexcept nogil:
    relay.next = NULL
    if relays.last != NULL:
        relays.last.next = relay
    else:
        relays.first = relay
    relays.last = relay


cdef inline Relay *relays_pop(RelayList *relays) noexcept nogil:
    """Takes the first one out. There is at least one."""
    cdef Relay *relay = relays.first
    relays.first = relay.next
    if relays.first == NULL:
        relays.last = NULL
    return relay


cdef inline void loop_enqueue(Loop *loop, Relay *relay) noexcept nogil:
    """Gives a relay a turn, at the end of its run queue; once, however often it is called before the turn."""
    if relay.queued != QUEUED_NOT:
        return
    relay.queued = QUEUED_TURN
    relays_append(&loop.bulk_queue if relay.bulk else &loop.queue, relay)


cdef inline void loop_bury(Loop *loop, Relay *relay) noexcept nogil:
    """Lets a closed relay wait until its slot is reclaimed."""
    relay.next_closed = loop.closed
    loop.closed = relay.index + 1


cdef inline Counters *loop_of_target(Loop *loop, int target) noexcept nogil:
    """NULL: there is only one target, and Loop.counters says all."""
    return &loop.by_target[target] if loop.by_target != NULL else NULL


cdef inline void loop_stall(Loop *loop, Relay *relay) noexcept nogil:
    """Lets a relay wait for room in the tap. It has no turn until then, whatever happens to its sockets."""
    if relay.queued != QUEUED_NOT:
        return                      # it has a turn coming, and will ask for room again
    relay.queued = QUEUED_STALLED
    relays_append(&loop.stalled, relay)


cdef inline void loop_resume(Loop *loop) noexcept nogil:
    """Gives the stalled relays their turns."""
    cdef Relay *relay
    while loop.stalled.first != NULL:
        relay = relays_pop(&loop.stalled)
        relay.queued = QUEUED_NOT
        loop_enqueue(loop, relay)


cdef inline Shaping *relay_shaping(const Relay *relay) noexcept nogil:
    """NULL: no fault has taken hold of the relay."""
    if relay.halves[CLIENT].shaper != NULL:
        return relay.halves[CLIENT].shaper.shaping
    return relay.halves[UPSTREAM].shaper.shaping if relay.halves[UPSTREAM].shaper != NULL else NULL


cdef inline bint relay_alive(const Relay *relay) noexcept nogil:
    return relay.state != RELAY_FREE and relay.state != RELAY_CLOSED
