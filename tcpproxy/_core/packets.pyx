# TCP/IP packets made from the records of the tap: the model is in packets.pxd.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset
from tcpproxy._core.events cimport REASON_CLIENT_EOF, REASON_CLIENT_RESET, REASON_UPSTREAM_EOF, REASON_UPSTREAM_RESET, \
    events_reason_name
from tcpproxy._core.loop cimport CLIENT, UPSTREAM
from tcpproxy._core.net cimport net_addr, net_format, net_is_v4, net_unpack
from tcpproxy._core.pcapng cimport PCAPNG_COMMENT, PCAPNG_PACKET, PCAPNG_PACKET_FLAGS, PCAPNG_TEXT, pcapng_begin, pcapng_finish, \
    pcapng_option, pcapng_pad, pcapng_put16, pcapng_put32, pcapng_text, pcapng_time
from tcpproxy._core.tap cimport TAP_CONNECTED, TAP_DATA, TAP_DELIVERED, TAP_END, TAP_FIN, TAP_OPEN, TAP_READ, TAP_RST, \
    TapConnected, TapEnd, TapOpen, TapRecord

cdef enum:
    INBOUND = 1                 # PCAPNG_PACKET_FLAGS: towards the client
    OUTBOUND = 2

    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_PSH = 8
    TCP_ACK = 16

    WINDOW = 65535
    WINDOW_SHIFT = 14           # 1 GiB, more than can be unacknowledged: the window is never full
    TTL = 64
    PROTOCOL_TCP = 6
    WAITED_NS = 1000000         # a send that the kernel takes at once is done within 20 us
    COMMENT = PCAPNG_TEXT + 1   # bytes, with a 0 at the end
    PLACE = 166                 # the same, of two addresses
    UNIX_PORT = 65535           # of an upstream that is no IP address

cdef struct Segment:
    uint64_t time_ns
    const uint8_t *data
    const char *comment         # NULL: none
    uint32_t size
    int side                    # who sends it
    int flags


cdef uint64_t _sum(uint8_t *to, const uint8_t *data, size_t size) noexcept nogil:
    # Copies, and adds up for the Internet checksum (RFC 1071), whose sum is the same in any byte order and any width of the
    # words. `to` may be `data`.
    cdef uint64_t low = 0, high = 0, word
    cdef size_t i = 0
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        memcpy(to + i, &word, 8)
        low += <uint32_t> word
        high += word >> 32
        i += 8
    if i < size:
        word = 0
        memcpy(&word, data + i, size - i)
        memcpy(to + i, &word, size - i)
        low += <uint32_t> word
        high += word >> 32
    return low + high


cdef uint16_t _fold(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


cdef inline uint8_t *_net16(uint8_t *out, uint16_t value) noexcept nogil:
    out[0] = value >> 8
    out[1] = value & 0xff
    return out + 2


cdef inline uint8_t *_net32(uint8_t *out, uint32_t value) noexcept nogil:
    return _net16(_net16(out, value >> 16), value & 0xffff)


cdef uint8_t *_ip_header(const Flow *flow, int side, uint32_t size, uint8_t *out) noexcept nogil:
    # `size`: of the TCP header and what follows.
    cdef uint8_t *header = out
    if flow.v4:
        out = _net16(_net16(out, 0x4500), 20 + size)
        out = _net16(_net16(out, 0), 0x4000)        # may not be fragmented, and then needs no identification (RFC 6864)
        out = _net16(_net16(out, TTL << 8 | PROTOCOL_TCP), 0)
        memcpy(out, &flow.ip[side][12], 4)
        memcpy(out + 4, &flow.ip[not side][12], 4)
        pcapng_put16(header + 10, ~_fold(_sum(header, header, 20)))
        return header + 20
    out = _net16(_net32(out, 0x60000000), size)
    out = _net16(out, PROTOCOL_TCP << 8 | TTL)
    memcpy(out, flow.ip[side], 16)
    memcpy(out + 16, flow.ip[not side], 16)
    return header + 40


cdef uint8_t *_packet(Flow *flow, const Segment *segment, uint8_t *out) noexcept nogil:
    # An IP packet; changes what `flow` knows of both streams. Returns the end of it.
    cdef int side = segment.side, other = not side
    cdef uint32_t header = 28 if segment.flags & TCP_SYN else 20
    cdef uint8_t length[4]
    cdef uint8_t *tcp = _ip_header(flow, side, header + segment.size, out)
    cdef uint8_t *to = _net16(_net16(tcp, flow.port[side]), flow.port[other])
    to = _net32(to, flow.first[side] + <uint32_t> flow.sent[side])
    to = _net32(to, flow.first[other] + <uint32_t> flow.delivered[other] if segment.flags & TCP_ACK else 0)
    to = _net32(_net16(_net16(to, header << 10 | segment.flags), WINDOW), 0)
    if segment.flags & TCP_SYN:
        to = _net32(to, 2 << 24 | 4 << 16 | TAP_READ)           # maximum segment size
        to = _net32(to, 1 << 24 | 3 << 16 | 3 << 8 | WINDOW_SHIFT)
    _net32(length, header + segment.size)
    cdef uint64_t total = flow.sum + _sum(length, length, 4) + _sum(tcp, tcp, header)
    pcapng_put16(tcp + 16, ~_fold(total + _sum(to, segment.data, segment.size)))
    flow.sent[side] += segment.size + (1 if segment.flags & (TCP_SYN | TCP_FIN) else 0)
    if segment.flags & TCP_ACK:
        flow.acked[other] = flow.delivered[other]
        flow.segments[other] = 0
    return to + segment.size


cdef uint8_t *_write(Packets *packets, Flow *flow, const Segment *segment, uint8_t *out) noexcept nogil:
    # An enhanced packet block. Returns the end of it.
    cdef uint32_t flags = OUTBOUND if segment.side == CLIENT else INBOUND
    cdef uint8_t *to = pcapng_put32(pcapng_begin(out, PCAPNG_PACKET), flow.interface)
    to = pcapng_time(to, segment.time_ns + packets.wall_ns)
    cdef uint8_t *end = _packet(flow, segment, to + 8)
    cdef uint32_t size = end - to - 8
    pcapng_put32(pcapng_put32(to, size), size)          # in the file, and on the wire
    to = pcapng_option(pcapng_pad(end, size), PCAPNG_PACKET_FLAGS, &flags, 4)
    if segment.comment != NULL:
        to = pcapng_text(to, PCAPNG_COMMENT, segment.comment)
    packets.count += 1
    return out + pcapng_finish(out, to)


cdef uint8_t *_write_flags(Packets *packets, Flow *flow, int side, int flags, uint64_t now_ns, const char *comment,
                           uint8_t *out) noexcept nogil:
    # A packet without bytes.
    cdef Segment segment
    memset(&segment, 0, sizeof(segment))
    segment.side = side
    segment.flags = flags
    segment.time_ns = now_ns
    segment.comment = comment
    return _write(packets, flow, &segment, out)


cdef uint8_t *_acknowledge(Packets *packets, Flow *flow, int side, uint64_t now_ns, uint8_t *out) noexcept nogil:
    # A pure ACK of what `side` has sent, if it says something new: the same number again would be a duplicate ACK.
    if flow.acked[side] == flow.delivered[side]:
        return out
    return _write_flags(packets, flow, not side, TCP_ACK, now_ns, NULL, out)


# --- from records to packets ---

cdef void _set_address(Flow *flow, int side, const net_addr *addr) noexcept nogil:
    if net_unpack(addr, flow.ip[side], &flow.port[side]):
        return
    memset(flow.ip[side], 0, 16)        # until the family of the other side is known: _set_other_address
    flow.port[side] = 0
    if addr.length:
        flow.port[side] = 1024 + flow.id % 64512 if side == CLIENT else UNIX_PORT


cdef void _set_other_address(Flow *flow, int side) noexcept nogil:
    # An address that is no IP address becomes the loopback address of the other side's family, and one that is not known 0.0.0.0
    # or ::.
    cdef uint8_t none[16]
    memset(none, 0, 16)
    if memcmp(flow.ip[side], none, 16):
        return
    if net_is_v4(flow.ip[not side]) or not memcmp(flow.ip[not side], none, 16):
        memset(&flow.ip[side][10], 0xff, 2)
        flow.ip[side][12] = 127 if flow.port[side] else 0
    flow.ip[side][15] = flow.port[side] != 0


cdef void _open(Flow *flow, const TapRecord *record, const TapOpen *body) noexcept nogil:
    flow.id = record.id
    flow.opened_ns = record.time_ns
    flow.listener = body.listener
    flow.via = body.via
    _set_address(flow, CLIENT, &body.client)
    # Different for all connections, since the factor is odd: a client's port that is used again begins a new stream in
    # Wireshark, which takes an ISN near 0 for such a port, too.
    flow.first[CLIENT] = <uint32_t> record.id * <uint32_t> 2654435761
    if flow.first[CLIENT] < 256:
        flow.first[CLIENT] += 256
    flow.first[UPSTREAM] = flow.first[CLIENT] ^ 0x40000000


cdef void _set_upstream(Flow *flow, const net_addr *addr) noexcept nogil:
    # Both addresses are known now.
    cdef uint8_t protocol[2]
    cdef int skip, side
    _set_address(flow, UPSTREAM, addr)
    _set_other_address(flow, CLIENT)
    _set_other_address(flow, UPSTREAM)
    flow.v4 = net_is_v4(flow.ip[CLIENT]) and net_is_v4(flow.ip[UPSTREAM])
    skip = 12 if flow.v4 else 0
    _net16(protocol, PROTOCOL_TCP)
    cdef uint64_t total = _sum(protocol, protocol, 2)
    for side in range(2):
        total += _sum(&flow.ip[side][skip], &flow.ip[side][skip], 16 - skip)
    flow.sum = _fold(total)


cdef void _describe_place(const Flow *flow, char *to) noexcept nogil:
    """Writes where the connection came in, and who has named its client in a PROXY header, if anybody has."""
    cdef char listener[80]
    cdef char via[80]
    net_format(&flow.listener, listener)
    net_format(&flow.via, via)
    snprintf(to, PLACE, "%s%s%s", listener, <const char *> b", via " if flow.via.length else <const char *> b"", via)


cdef uint8_t *_connected(Packets *packets, Flow *flow, const TapRecord *record, const TapConnected *body,
                         uint8_t *out) noexcept nogil:
    cdef char comment[COMMENT]
    cdef char place[PLACE]
    cdef char local[80]
    _set_upstream(flow, &body.upstream)
    _describe_place(flow, place)
    net_format(&body.local, local)
    cdef uint64_t tenths = (record.time_ns - flow.opened_ns) / 100000
    if snprintf(comment, COMMENT, "#%llu listened on %s, left from %s, connected in %llu.%llu ms",
                <unsigned long long> flow.id, place, local,
                <unsigned long long> tenths / 10, <unsigned long long> tenths % 10) < 0:
        comment[0] = 0
    out = _write_flags(packets, flow, CLIENT, TCP_SYN, flow.opened_ns, comment, out)
    flow.delivered[CLIENT] = 1
    out = _write_flags(packets, flow, UPSTREAM, TCP_SYN | TCP_ACK, record.time_ns, NULL, out)
    flow.delivered[UPSTREAM] = 1
    flow.connected = True
    return _write_flags(packets, flow, CLIENT, TCP_ACK, record.time_ns, NULL, out)


cdef uint8_t *_data(Packets *packets, Flow *flow, const TapRecord *record, const void *body, uint8_t *out) noexcept nogil:
    cdef Segment segment
    cdef int side = record.side
    if record.size == 0:
        return out
    # Upstream's window is 65,535 until its first ACK, as windows of a SYN are not scaled. Bytes up to its very end would be
    # a full window.
    if side == CLIENT and flow.acked[CLIENT] <= 1 and record.offset + record.size >= WINDOW:
        out = _acknowledge(packets, flow, side, record.time_ns, out)
    flow.sent[side] = record.offset + 1
    segment.time_ns = flow.read_ns[side] = record.time_ns
    segment.data = <const uint8_t *> body
    segment.size = record.size
    segment.side = side
    segment.flags = TCP_PSH | TCP_ACK
    segment.comment = NULL
    flow.segments[side] += flow.segments[side] < 2
    return _write(packets, flow, &segment, out)


cdef uint8_t *_delivered(Packets *packets, Flow *flow, const TapRecord *record, uint8_t *out) noexcept nogil:
    cdef int side = record.side
    _set_delivered(flow, side, record.offset)
    if flow.segments[side] < 2 and record.time_ns - flow.read_ns[side] < WAITED_NS:
        return out
    return _acknowledge(packets, flow, side, record.time_ns, out)


cdef void _set_delivered(Flow *flow, int side, uint64_t offset) noexcept nogil:
    flow.delivered[side] = max(flow.delivered[side], min(offset + 1, flow.sent[side]))


cdef uint8_t *_fin(Packets *packets, Flow *flow, int side, uint64_t now_ns, uint8_t *out) noexcept nogil:
    # The ACK of the second FIN is the last packet, and waits for the record that says how the connection ended.
    out = _write_flags(packets, flow, side, TCP_FIN | TCP_ACK, now_ns, NULL, out)
    flow.finished[side] = True
    flow.delivered[side] = flow.sent[side]
    return out if flow.finished[not side] else _acknowledge(packets, flow, side, now_ns, out)


cdef void _set_reset(Flow *flow, int side, uint64_t now_ns) noexcept nogil:
    # This side reset the connection. The proxy closes both sockets with a reset then, but only the other side is told.
    cdef uint64_t reset_ns = max(flow.reset_ns[CLIENT], flow.reset_ns[UPSTREAM])
    flow.reset_ns[side] = reset_ns or now_ns
    flow.reset_ns[not side] = 0


cdef bint _client_left(const TapEnd *body) noexcept nogil:
    return body.reason == REASON_CLIENT_EOF or body.reason == REASON_CLIENT_RESET


cdef uint8_t *_end(Packets *packets, Flow *flow, const TapRecord *record, const TapEnd *body, uint8_t *out) noexcept nogil:
    # The packets that wait for this record, the last one with a comment. Resets have the time of their own records.
    cdef char comment[COMMENT]
    cdef int side, last
    cdef uint64_t micros = (record.time_ns - flow.opened_ns) / 1000
    snprintf(comment, COMMENT, "#%llu %s after %llu.%06llu s, %llu bytes to upstream, %llu bytes to the client",
             <unsigned long long> flow.id, events_reason_name(body.reason), <unsigned long long> micros / 1000000,
             <unsigned long long> micros % 1000000, <unsigned long long> body.to_upstream, <unsigned long long> body.to_client)
    if not flow.connected:
        return _never_connected(packets, flow, record, body, comment, out)
    _set_delivered(flow, CLIENT, body.to_upstream)
    _set_delivered(flow, UPSTREAM, body.to_client)
    if body.reason in (REASON_CLIENT_RESET, REASON_UPSTREAM_RESET):
        _set_reset(flow, CLIENT if body.reason == REASON_CLIENT_RESET else UPSTREAM, record.time_ns)
    elif not flow.reset_ns[CLIENT] and not flow.reset_ns[UPSTREAM]:
        if flow.finished[CLIENT] and flow.finished[UPSTREAM] or body.reason in (REASON_CLIENT_EOF, REASON_UPSTREAM_EOF):
            return _finished(packets, flow, record.time_ns, comment, out)
        flow.reset_ns[CLIENT] = flow.reset_ns[UPSTREAM] = record.time_ns
    last = UPSTREAM if flow.reset_ns[UPSTREAM] else CLIENT
    for side in range(2):
        if not flow.reset_ns[not side]:     # whose RST would say it
            out = _acknowledge(packets, flow, side, flow.reset_ns[side], out)
    for side in range(2):
        if flow.reset_ns[side]:
            out = _write_flags(packets, flow, side, TCP_RST | TCP_ACK, flow.reset_ns[side],
                               comment if side == last else NULL, out)
    return out


cdef uint8_t *_finished(Packets *packets, Flow *flow, uint64_t now_ns, const char *comment, uint8_t *out) noexcept nogil:
    # Both FINs, those that were not passed on before the sockets were closed too, and the ACK of the last one.
    cdef int side
    for side in range(2):
        if not flow.finished[side]:
            out = _fin(packets, flow, side, now_ns, out)
    side = CLIENT if flow.acked[CLIENT] != flow.delivered[CLIENT] else UPSTREAM
    return _write_flags(packets, flow, not side, TCP_ACK, now_ns, comment, out)


cdef uint8_t *_never_connected(Packets *packets, Flow *flow, const TapRecord *record, const TapEnd *body, const char *comment,
                               uint8_t *out) noexcept nogil:
    # A SYN that upstream refuses, or that the client gives up.
    cdef char opened[COMMENT]
    cdef char place[PLACE]
    cdef uint64_t reset_ns = max(flow.reset_ns[CLIENT], flow.reset_ns[UPSTREAM])
    if not reset_ns:
        reset_ns = record.time_ns
    _set_upstream(flow, &body.upstream)
    _describe_place(flow, place)
    snprintf(opened, COMMENT, "#%llu listened on %s", <unsigned long long> flow.id, place)
    out = _write_flags(packets, flow, CLIENT, TCP_SYN, flow.opened_ns, opened, out)
    if _client_left(body):
        return _write_flags(packets, flow, CLIENT, TCP_RST, reset_ns, comment, out)
    flow.delivered[CLIENT] = 1
    flow.first[UPSTREAM] = 0
    return _write_flags(packets, flow, UPSTREAM, TCP_RST | TCP_ACK, reset_ns, comment, out)


cdef size_t packets_append(Packets *packets, Flow *flow, const TapRecord *record, const void *body, uint8_t *out) noexcept nogil:
    cdef uint8_t *end = out
    if record.kind == TAP_OPEN:
        _open(flow, record, <const TapOpen *> body)
    elif flow.id == 0:
        pass
    elif record.kind == TAP_END:
        end = _end(packets, flow, record, <const TapEnd *> body, out)
    elif record.kind == TAP_CONNECTED:
        end = _connected(packets, flow, record, <const TapConnected *> body, out)
    elif record.kind == TAP_RST:
        if not flow.reset_ns[record.side]:
            flow.reset_ns[record.side] = record.time_ns
    elif not flow.connected:
        pass
    elif record.kind == TAP_DATA:
        end = _data(packets, flow, record, body, out)
    elif record.kind == TAP_DELIVERED:
        end = _delivered(packets, flow, record, out)
    elif record.kind == TAP_FIN and not flow.finished[record.side]:
        flow.sent[record.side] = record.offset + 1
        end = _fin(packets, flow, record.side, record.time_ns, out)
    return end - out
