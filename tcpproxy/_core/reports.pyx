# Reports about connections: see reports.pxd.
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from tcpproxy._core.events cimport EVENT_CONNECTED, EVENT_END, EVENT_FAILED, EVENT_FAULT, EVENT_NEW, EVENTS_OUTGOING, \
    EventRecord, events_claim, events_publish, events_wanted
from tcpproxy._core.loop cimport BUCKETS, CLIENT, UPSTREAM, Counters, Histogram, Origin, loop_of_target
from tcpproxy._core.net cimport net_addr, net_own_address, net_socket
from tcpproxy._core.sync cimport sync_bump
from tcpproxy._core.tap cimport TAP_CONNECTED, TAP_END, TAP_OPEN, TapConnected, TapEnd, TapOpen, tap_note


# Upper bounds of the buckets in ns. Connects take some round trips. Connections last from a health check's time to days.
cdef uint64_t[BUCKETS - 1] CONNECTS = [1000000, 5000000, 10000000, 50000000, 100000000, 500000000, 1000000000, 5000000000,
                                       10000000000]
cdef uint64_t[BUCKETS - 1] DURATIONS = [1000000, 10000000, 100000000, 1000000000, 10000000000, 60000000000, 600000000000,
                                        3600000000000, 86400000000000]


cdef void reports_bounds(double *connects, double *durations) noexcept nogil:
    cdef int i
    for i in range(BUCKETS - 1):
        connects[i] = CONNECTS[i] / 1e9
        durations[i] = DURATIONS[i] / 1e9


cdef inline void _observe(Histogram *histogram, const uint64_t *bounds, uint64_t ns) noexcept nogil:
    cdef int bucket = 0
    while bucket < BUCKETS - 1 and ns > bounds[bucket]:
        bucket += 1
    sync_bump(&histogram.counts[bucket], 1)
    sync_bump(&histogram.sum_ns, ns)


cdef EventRecord *_claim(Loop *loop, int kind) noexcept nogil:
    cdef EventRecord *record
    if not events_wanted(&loop.events, <uint64_t> 1 << kind):
        return NULL
    record = events_claim(&loop.events, kind)
    if record != NULL:
        record.at_ns = loop.now_ns
    return record


cdef void reports_accepted(Loop *loop, Relay *relay) noexcept nogil:
    cdef EventRecord *record = _claim(loop, EVENT_NEW)
    cdef Counters *own = loop_of_target(loop, relay.target)
    sync_bump(&loop.counters.accepted, 1)
    if own != NULL:
        sync_bump(&own.accepted, 1)
    if record != NULL:
        record.id = relay.id
        record.client = relay.client
        record.target = relay.target
        if relay.origin != NULL:
            record.via = relay.origin.via
        events_publish(&loop.events)
    if loop.pump.tap != NULL:
        _tap_open(loop, relay.id, &relay.client, relay.origin, relay.sides[CLIENT].watch.fd)


cdef void _tap_open(Loop *loop, uint64_t id, const net_addr *client, const Origin *origin, net_socket fd) noexcept nogil:
    cdef TapOpen opened
    opened.client = client[0]
    opened.via.length = 0
    if origin != NULL:
        opened.via = origin.via
    net_own_address(fd, &opened.listener)
    tap_note(loop.pump.tap, TAP_OPEN, id, CLIENT, 0, &opened, sizeof(opened))


cdef void reports_connected(Loop *loop, Relay *relay) noexcept nogil:
    cdef EventRecord *record
    cdef Counters *own = loop_of_target(loop, relay.target)
    _observe(&loop.counters.connects, CONNECTS, relay.connected_ns - relay.accepted_ns)
    if own != NULL:
        _observe(&own.connects, CONNECTS, relay.connected_ns - relay.accepted_ns)
    if loop.pump.tap != NULL:
        _tap_connected(loop, relay)
    if not events_wanted(&loop.events, 1 << EVENT_CONNECTED | EVENTS_OUTGOING):
        return
    if events_wanted(&loop.events, EVENTS_OUTGOING):
        # Asked now, because a socket that was reset is closed before the end of its relay is reported.
        if relay.origin == NULL:
            relay.origin = <Origin *> calloc(1, sizeof(Origin))
        if relay.origin != NULL:
            net_own_address(relay.sides[UPSTREAM].watch.fd, &relay.origin.outgoing)
    record = _claim(loop, EVENT_CONNECTED)
    if record != NULL:
        _describe(record, relay)
        record.duration_ns = record.connect_ns
        events_publish(&loop.events)


cdef void _tap_connected(Loop *loop, Relay *relay) noexcept nogil:
    cdef TapConnected connected
    connected.upstream = relay.upstream
    net_own_address(relay.sides[UPSTREAM].watch.fd, &connected.local)
    tap_note(loop.pump.tap, TAP_CONNECTED, relay.id, UPSTREAM, 0, &connected, sizeof(connected))


cdef void _describe(EventRecord *record, const Relay *relay) noexcept nogil:
    """Sets the fields that all records of a connection have."""
    record.id = relay.id
    record.target = relay.target
    record.connect_ns = relay.connected_ns - relay.accepted_ns if relay.connected_ns else 0
    record.client = relay.client
    record.upstream = relay.upstream
    if relay.origin != NULL:
        record.outgoing = relay.origin.outgoing
        record.via = relay.origin.via


cdef void reports_left(Loop *loop, int target, uint8_t reason) noexcept nogil:
    cdef Counters *own = loop_of_target(loop, target)
    sync_bump(&loop.counters.refused, 1)
    sync_bump(&loop.counters.refused_by[reason], 1)
    if own != NULL:
        sync_bump(&own.refused_by[reason], 1)


cdef void reports_refused(Loop *loop, const Message *accepted, uint8_t reason, int error, const Refusal *more) noexcept nogil:
    cdef EventRecord *record = _claim(loop, EVENT_FAILED)
    cdef TapEnd end
    reports_left(loop, accepted.target, reason)
    if record != NULL:
        record.reason = reason
        record.error = error
        record.id = accepted.id
        record.client = accepted.client
        record.target = <uint8_t> accepted.target
        if more != NULL:
            record.via = more.via
            record.begin_size = more.begin_size
            memcpy(record.begin, more.begin, BEGIN)
        events_publish(&loop.events)
    if loop.pump.tap != NULL:
        memset(&end, 0, sizeof(end))
        end.error = error
        end.reason = reason
        _tap_open(loop, accepted.id, &accepted.client, NULL, accepted.fd)
        tap_note(loop.pump.tap, TAP_END, accepted.id, CLIENT, 0, &end, sizeof(end))


cdef void reports_failed(Loop *loop, Relay *relay) noexcept nogil:
    sync_bump(&loop.counters.failed, 1)
    sync_bump(&loop.counters.failed_by[relay.reason], 1)
    reports_missed(loop, relay.target, relay.reason)
    _closed(loop, relay, EVENT_FAILED)


cdef void reports_missed(Loop *loop, int target, uint8_t reason) noexcept nogil:
    cdef Counters *own = loop_of_target(loop, target)
    if own != NULL:
        sync_bump(&own.failed_by[reason], 1)


cdef void reports_ended(Loop *loop, Relay *relay) noexcept nogil:
    _closed(loop, relay, EVENT_END)


cdef void _count_end(Counters *counters, const Relay *relay, uint64_t duration_ns) noexcept nogil:
    sync_bump(&counters.ended, 1)
    sync_bump(&counters.ended_by[relay.reason], 1)
    _observe(&counters.durations, DURATIONS, duration_ns)


cdef void _closed(Loop *loop, Relay *relay, int kind) noexcept nogil:
    cdef EventRecord *record = _claim(loop, kind)
    cdef Counters *own = loop_of_target(loop, relay.target)
    _count_end(&loop.counters, relay, loop.now_ns - relay.accepted_ns)
    if own != NULL:
        _count_end(own, relay, loop.now_ns - relay.accepted_ns)
    if loop.pump.tap != NULL:
        _tap_end(loop, relay)
    if record != NULL:
        _describe(record, relay)
        record.reason = relay.reason
        record.error = relay.error
        record.to_upstream = relay.halves[CLIENT].delivered
        record.to_client = relay.halves[UPSTREAM].delivered
        record.duration_ns = loop.now_ns - relay.accepted_ns
        events_publish(&loop.events)
    if relay.origin != NULL:            # only reports need it, and this was the last one
        free(relay.origin)
        relay.origin = NULL


cdef void _tap_end(Loop *loop, Relay *relay) noexcept nogil:
    cdef TapEnd end
    memset(&end, 0, sizeof(end))
    end.upstream = relay.upstream
    end.to_upstream = relay.halves[CLIENT].delivered
    end.to_client = relay.halves[UPSTREAM].delivered
    end.duration_ns = loop.now_ns - relay.accepted_ns
    end.connect_ns = relay.connected_ns - relay.accepted_ns if relay.connected_ns else 0
    end.error = relay.error
    end.reason = relay.reason
    tap_note(loop.pump.tap, TAP_END, relay.id, CLIENT, 0, &end, sizeof(end))


cdef void reports_fault(Loop *loop, Relay *relay, uint64_t key, uint64_t up, uint64_t down) noexcept nogil:
    cdef EventRecord *record = _claim(loop, EVENT_FAULT)
    if record != NULL:
        _describe(record, relay)
        record.fault = key
        record.to_upstream = up
        record.to_client = down
        record.duration_ns = loop.now_ns - relay.accepted_ns
        events_publish(&loop.events)


cdef void reports_target(Loop *loop, int kind, uint8_t target, uint8_t reason, int error, uint8_t instead) noexcept nogil:
    cdef EventRecord *record = _claim(loop, kind)
    if record != NULL:
        record.target = target
        record.reason = reason
        record.error = error
        record.fault = instead
        events_publish(&loop.events)


cdef void reports_paused(Loop *loop, int kind, int error) noexcept nogil:
    cdef EventRecord *record = _claim(loop, kind)
    if record != NULL:
        record.error = error
        events_publish(&loop.events)
