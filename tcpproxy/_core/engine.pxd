# What a worker runs: wait for events, give each relay its turn, accept, obey commands. One thread owns an Engine; what
# another thread may touch is `inbox`, `stop`, `view`, Upstream.incoming, the counters and the reader's side of the events.
from libc.stdint cimport int64_t, uint8_t, uint64_t
from tcpproxy._core.bulk cimport Bulk
from tcpproxy._core.handoff cimport Handoff
from tcpproxy._core.net cimport net_addr
from tcpproxy._core.poller cimport Ready, Watch
from tcpproxy._core.relay cimport Loop
from tcpproxy._core.sources cimport Sources
from tcpproxy._core.spin cimport Spin

cdef enum:
    LISTENERS = 16
    WORKERS = 64
    BATCH = 256             # events taken from the poller at once

cdef enum:                  # Engine.stop
    RUN = 0
    DRAIN = 1               # accept nothing, end when the last relay has
    ABORT = 2               # reset every relay and end

cdef struct Listener:
    Watch watch
    int target              # the upstream that its clients want

cdef struct Group:          # the workers of one proxy
    int count
    uint64_t limit          # connections at one time, all workers together
    uint64_t interactive_ns      # when one of them last had a conversation
    Sources sources
    Engine *members[WORKERS]

cdef struct ViewItem:       # one live relay, as another thread sees it
    net_addr client
    net_addr upstream
    uint64_t to_upstream
    uint64_t to_client
    uint64_t age_ns
    uint8_t state

cdef struct View:           # filled by the worker between two batches
    ViewItem *items
    uint64_t room
    uint64_t count          # of live relays; more than `room`: ask again
    uint64_t done

cdef struct Engine:
    Loop loop
    Handoff inbox
    Group *group
    Listener listeners[LISTENERS]
    int listener_count
    int accept_credit           # four times the number to do in a row
    bint accepted           # the last batch had connections too
    bint listening          # the listeners are watched
    uint64_t resume_ns      # when to watch them again, 0: nothing planned
    uint64_t paused_ns      # since when they are not watched
    bint at_limit           # the pause is because of Group.limit: the next relay that ends, ends it
    uint64_t stop
    uint64_t finished       # the loop is over, or about to be: who hands over or wants a view must look elsewhere
    Spin spin
    Bulk bulk
    int last_side             # side of the last event: 0 client, 1 upstream
    void *view
    Ready ready[BATCH]

cdef int engine_run(Engine *engine) noexcept nogil         # until stopped: 0, or -errno of a poller that has failed
cdef void engine_view(Engine *engine, View *view) noexcept nogil       # by another thread; waits for the worker
