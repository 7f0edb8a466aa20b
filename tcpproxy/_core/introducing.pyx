# Connections that begin with a PROXY header: the model is in introducing.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset
from tcpproxy._core.admission cimport admission_admits
from tcpproxy._core.buffer cimport Buffer, buffer_clear, buffer_fill
from tcpproxy._core.closing cimport closing_leave, closing_refuse
from tcpproxy._core.events cimport REASON_DENIED, REASON_LIMIT, REASON_PROXY_HEADER
from tcpproxy._core.header cimport HEADER_ENDED, HEADER_LATE, HEADER_MOST, HEADER_PARTIAL, HeaderAddresses, header_read
from tcpproxy._core.loop cimport CLIENT, RELAY_INTRODUCING, Origin
from tcpproxy._core.half cimport Side
from tcpproxy._core.net cimport ENOMEM, net_peek, net_recv, net_would_block
from tcpproxy._core.poller cimport READY_ERROR, READY_IN, poller_rearm
from tcpproxy._core.reports cimport BEGIN, Refusal
from tcpproxy._core.sources cimport sources_enter
from tcpproxy._core.timers cimport TIMER_HEADER, timers_arm, timers_cancel


cdef void introducing_begin(Loop *loop, Relay *relay) noexcept nogil:
    relay.state = RELAY_INTRODUCING
    timers_arm(&loop.timers, &relay.deadline, TIMER_HEADER, loop.now_ns)


cdef bint introducing_event(Loop *loop, Relay *relay, uint32_t bits) noexcept nogil:
    """Reads until the header is complete or the socket would block.

    The bytes are peeked at (MSG_PEEK), and only those of the header are then consumed. Those of an incomplete header are
    consumed and kept in the half's buffer: a level-triggered poller would report bytes that stay in the socket again and again.
    """
    cdef Side *client = &relay.sides[CLIENT]
    cdef uint8_t data[HEADER_MOST]
    cdef HeaderAddresses said
    cdef int before, size
    cdef int64_t got
    if bits & READY_ERROR:
        client.error_pending = True
    while client.ready & READY_IN:
        before = _copy_held(relay, data)
        got = net_peek(client.watch.fd, data + before, HEADER_MOST - before)
        if net_would_block(got):
            client.ready &= ~READY_IN
            poller_rearm(loop.pump.poller, &client.watch, READY_IN)
            return False
        if got <= 0:
            _ended(loop, relay)
            return False
        size = header_read(data, before + <int> got, &said)
        if size < 0:
            _refuse_header(loop, relay, size, data, before + <int> got)
            return False
        if size != HEADER_PARTIAL:
            got = size - before
        if net_recv(client.watch.fd, data + before, got) != got:
            _ended(loop, relay)
            return False
        if size != HEADER_PARTIAL:
            return _welcome(loop, relay, &said)
        buffer_clear(&relay.halves[CLIENT].buffer)
        if buffer_fill(&relay.halves[CLIENT].buffer, <const char *> data, before + <uint32_t> got) < 0:
            closing_refuse(loop, relay, REASON_LIMIT, ENOMEM, NULL)
            return False
    return False


cdef int _copy_held(const Relay *relay, uint8_t *to) noexcept nogil:
    """Copies the bytes of the header received so far. Returns their number."""
    cdef const Buffer *held = &relay.halves[CLIENT].buffer
    if held.memory != NULL:
        memcpy(to, held.memory, held.end)
    return held.end


cdef bint _welcome(Loop *loop, Relay *relay, const HeaderAddresses *said) noexcept nogil:
    """The header is complete: checks its client against --allow and --deny. False: the client was reset.

    If the header has no client (LOCAL, UNKNOWN), the peer is the client, and is not checked.
    """
    buffer_clear(&relay.halves[CLIENT].buffer)
    if said.client.length:
        relay.origin = <Origin *> calloc(1, sizeof(Origin))
        if relay.origin == NULL:
            closing_refuse(loop, relay, REASON_LIMIT, ENOMEM, NULL)
            return False
        relay.origin.via = relay.client
        relay.origin.destination = said.destination
        relay.client = said.client
        if not admission_admits(loop.group.admission, &relay.client):
            closing_refuse(loop, relay, REASON_DENIED, 0, NULL)
            return False
    if not sources_enter(&loop.group.sources, &relay.client):
        closing_refuse(loop, relay, REASON_LIMIT, 0, NULL)
        return False
    timers_cancel(&loop.timers, &relay.deadline)
    return True


# --- without a header ---

cdef void _ended(Loop *loop, Relay *relay) noexcept nogil:
    """End of file or a failure before the header was complete. Not logged if no byte came: a health check or a port scan."""
    cdef uint8_t data[HEADER_MOST]
    cdef int size = _copy_held(relay, data)
    if size == 0:
        closing_leave(loop, relay, REASON_PROXY_HEADER)
    else:
        _refuse_header(loop, relay, HEADER_ENDED, data, size)


cdef void introducing_timed_out(Loop *loop, Relay *relay) noexcept nogil:
    cdef uint8_t data[HEADER_MOST]
    _refuse_header(loop, relay, HEADER_LATE, data, _copy_held(relay, data))


cdef void _refuse_header(Loop *loop, Relay *relay, int problem, const uint8_t *data, int size) noexcept nogil:
    cdef Refusal refusal
    memset(&refusal, 0, sizeof(refusal))
    refusal.begin_size = <uint8_t> min(size, BEGIN)
    memcpy(refusal.begin, data, refusal.begin_size)
    closing_refuse(loop, relay, REASON_PROXY_HEADER, problem, &refusal)
