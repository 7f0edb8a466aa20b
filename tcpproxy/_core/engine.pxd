# What a worker runs: wait for events, give each relay its turn, fire timers, obey commands of other threads.
#
# A batch is one pass: commands, turns of the run queue, timers, slots of closed relays reclaimed, wait, events. Turns come
# before timers, so that bytes of this batch re-arm their timers first.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.inbox cimport Message
from tcpproxy._core.loop cimport Loop
from tcpproxy._core.net cimport net_addr
from tcpproxy._core.plan cimport PLAN_RULES

cdef struct ViewItem:       # one live relay, as another thread sees it
    uint64_t id
    net_addr client
    net_addr upstream
    net_addr outgoing       # the proxy's own address toward upstream
    net_addr via            # who has named the client in a PROXY header; none: nobody
    uint64_t to_upstream
    uint64_t to_client
    uint64_t waiting[2]     # of each half: bytes that it has read and could not deliver yet
    uint64_t held[2]        # of these, what faults hold
    uint32_t acted          # faults that have acted on it, as bits: those of View.keys
    uint64_t age_ns
    uint64_t connect_ns     # from accept to connected; 0: it is not connected
    uint64_t idle_ns        # since the last turn that moved bytes or passed an end on, or since connected, or since accept
    uint8_t state
    uint8_t target          # index of its upstream

cdef struct View:           # filled by the worker between two batches
    ViewItem *items
    uint64_t room
    uint64_t count          # of live relays; more than `room`: ask again
    uint64_t keys[PLAN_RULES]   # Rule.key of the faults in force

cdef int engine_run(Loop *loop) noexcept nogil             # until stopped: 0, or -errno of a poller that has failed
# From another thread: sends a command and waits until it is carried out. A worker that has ended or is about to leaves a
# View as it is, and has closed its listeners
cdef void engine_ask(Loop *loop, Message *message) noexcept nogil
