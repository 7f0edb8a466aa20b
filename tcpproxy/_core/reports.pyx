# What the core reports of its connections: the model is in reports.pxd.
from tcpproxy._core.events cimport EVENT_END, EVENT_FAILED, EVENT_NEW, REASON_LIMIT, EventRecord, events_claim, \
    events_publish
from tcpproxy._core.loop cimport CLIENT, UPSTREAM
from tcpproxy._core.sync cimport sync_bump


cdef void reports_accepted(Loop *loop, Relay *relay) noexcept nogil:
    cdef EventRecord *record = events_claim(&loop.events, EVENT_NEW)
    sync_bump(&loop.counters.accepted, 1)
    if record != NULL:
        record.id = relay.id
        record.client = relay.client
        events_publish(&loop.events)


cdef void reports_refused(Loop *loop, const Message *accepted, int error) noexcept nogil:
    cdef EventRecord *record = events_claim(&loop.events, EVENT_FAILED)
    sync_bump(&loop.counters.refused, 1)
    if record != NULL:
        record.reason = REASON_LIMIT
        record.error = error
        record.id = accepted.id
        record.client = accepted.client
        events_publish(&loop.events)


cdef void reports_failed(Loop *loop, Relay *relay) noexcept nogil:
    sync_bump(&loop.counters.failed, 1)
    _closed(loop, relay, EVENT_FAILED)


cdef void reports_ended(Loop *loop, Relay *relay) noexcept nogil:
    _closed(loop, relay, EVENT_END)


cdef void _closed(Loop *loop, Relay *relay, int kind) noexcept nogil:
    cdef EventRecord *record = events_claim(&loop.events, kind)
    sync_bump(&loop.counters.ended, 1)
    if record == NULL:
        return
    record.id = relay.id
    record.reason = relay.reason
    record.error = relay.error
    record.to_upstream = relay.halves[CLIENT].delivered
    record.to_client = relay.halves[UPSTREAM].delivered
    record.duration_ns = loop.now_ns - relay.accepted_ns
    record.connect_ns = relay.connected_ns - relay.accepted_ns if relay.connected_ns else 0
    record.client = relay.client
    record.upstream = relay.upstream
    events_publish(&loop.events)


cdef void reports_paused(Loop *loop, int kind, int error) noexcept nogil:
    cdef EventRecord *record = events_claim(&loop.events, kind)
    if record != NULL:
        record.error = error
        events_publish(&loop.events)
