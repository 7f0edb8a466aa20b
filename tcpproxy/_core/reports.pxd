# Reports about connections. Only this module writes event records, counts connections, and writes their beginnings and ends into
# the tap.
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.events cimport BEGIN
from tcpproxy._core.inbox cimport Message
from tcpproxy._core.loop cimport Loop, Relay
from tcpproxy._core.net cimport net_addr

cdef struct Refusal:        # of a client
    net_addr via            # see EventRecord
    uint8_t begin_size
    uint8_t begin[BEGIN]

cdef void reports_bounds(double *connects, double *durations) noexcept nogil   # BUCKETS - 1 each, in seconds
cdef void reports_accepted(Loop *loop, Relay *relay) noexcept nogil
cdef void reports_connected(Loop *loop, Relay *relay) noexcept nogil
# A client was turned away; `more` may be NULL
cdef void reports_refused(Loop *loop, const Message *accepted, uint8_t reason, int error, const Refusal *more) noexcept nogil
# Only counts a client that was turned away, without an event. `target`: the first one of its forward
cdef void reports_left(Loop *loop, int target, uint8_t reason) noexcept nogil
cdef void reports_failed(Loop *loop, Relay *relay) noexcept nogil      # its upstream was not reached
# A target was not reached, and the next one is tried
cdef void reports_missed(Loop *loop, int target, uint8_t reason) noexcept nogil
cdef void reports_ended(Loop *loop, Relay *relay) noexcept nogil
# A fault acts on a relay for the first time; `up`, `down`: the positions of its directions
cdef void reports_fault(Loop *loop, Relay *relay, uint64_t key, uint64_t up, uint64_t down) noexcept nogil
# EVENT_UPSTREAM_DOWN or EVENT_UPSTREAM_UP of a target; `instead`: the target that is tried instead
cdef void reports_target(Loop *loop, int kind, uint8_t target, uint8_t reason, int error, uint8_t instead) noexcept nogil
cdef void reports_paused(Loop *loop, int kind, int error) noexcept nogil       # EVENT_ACCEPT_ERROR or EVENT_ACCEPT_LIMIT
