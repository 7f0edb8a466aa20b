from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset
from tcpproxy._core.events cimport REASONS, events_reason_name
from tcpproxy._core.net cimport net_addr, net_pack
from tcpproxy._core.packets cimport PACKETS_ROOM, Flow, Packets, packets_append
from tcpproxy._core.pcapng cimport PCAPNG_BLOCK, PCAPNG_TEXT, pcapng_end, pcapng_interface, pcapng_name, pcapng_start
from tcpproxy._core.tap cimport TAP_CONNECTED, TAP_DATA, TAP_DELIVERED, TAP_END, TAP_FIN, TAP_OPEN, TAP_READ, TAP_RST, \
    TapConnected, TapEnd, TapOpen, TapRecord

READ, TEXT = TAP_READ, PCAPNG_TEXT

cdef uint8_t out[PACKETS_ROOM + 8]
# A test has one thread.


cdef int pack(net_addr *to, address) except -1:
    """address: (bytes of an IP address, port), or None; with no bytes at all an address that is no IP address."""
    memset(to, 0, sizeof(net_addr))
    if address is None:
        return 0
    cdef bytes ip = address[0]
    if not ip:
        to.length = 2
        return 0
    return net_pack(to, <const char *> ip, len(ip), address[1], 0)


cdef bytes taken(size_t size, size_t room):
    assert size <= room
    return out[:size]


def start(bytes application, bytes system):
    return taken(pcapng_start(out, application, system), PCAPNG_BLOCK)


def interface(bytes name, bytes description):
    return taken(pcapng_interface(out, name, description), PCAPNG_BLOCK)


def name(address, bytes text):
    cdef net_addr addr
    pack(&addr, address)
    return taken(pcapng_name(out, &addr, text), PCAPNG_BLOCK)


def end(int number, uint64_t since_ns, uint64_t until_ns, uint64_t count):
    return taken(pcapng_end(out, number, since_ns, until_ns, count), PCAPNG_BLOCK)


cdef class CaptureDoor:
    """Counts packets, as a reader of the tap does for all its flows."""
    cdef Packets it

    def __cinit__(self, int64_t wall_ns=0):
        self.it.wall_ns = wall_ns

    @property
    def count(self):
        return self.it.count


cdef class FlowDoor:
    """One connection. Its methods are the kinds of records, and return what is appended to the file."""
    cdef CaptureDoor capture
    cdef Flow it
    cdef uint64_t id

    def __cinit__(self, CaptureDoor capture, uint64_t id, int interface=0):
        self.capture = capture
        self.id = id
        self.it.interface = interface

    @property
    def known(self):
        return self.it.id != 0

    cdef bytes append(self, int kind, uint64_t time_ns, int side, uint64_t offset, const void *body, size_t size):
        cdef TapRecord record
        cdef int i
        memset(&record, 0, sizeof(record))
        memset(out, 0xee, sizeof(out))      # padding has to be written
        record.id = self.id
        record.kind = kind
        record.time_ns = time_ns
        record.side = side
        record.offset = offset
        record.size = size
        appended = taken(packets_append(&self.capture.it, &self.it, &record, body, out), PACKETS_ROOM)
        for i in range(8):
            assert out[PACKETS_ROOM + i] == 0xee
        return appended

    def open(self, time_ns, client, listener):
        cdef TapOpen body
        body.via.length = 0
        pack(&body.client, client)
        pack(&body.listener, listener)
        return self.append(TAP_OPEN, time_ns, 0, 0, &body, sizeof(body))

    def connected(self, time_ns, upstream, local):
        cdef TapConnected body
        pack(&body.upstream, upstream)
        pack(&body.local, local)
        return self.append(TAP_CONNECTED, time_ns, 1, 0, &body, sizeof(body))

    def data(self, time_ns, side, offset, bytes payload):
        return self.append(TAP_DATA, time_ns, side, offset, <const char *> payload, len(payload))

    def delivered(self, time_ns, side, offset):
        return self.append(TAP_DELIVERED, time_ns, side, offset, NULL, 0)

    def fin(self, time_ns, side, offset):
        return self.append(TAP_FIN, time_ns, side, offset, NULL, 0)

    def rst(self, time_ns, side):
        return self.append(TAP_RST, time_ns, side, 0, NULL, 0)

    def end(self, time_ns, str reason, to_upstream=0, to_client=0, upstream=None):
        cdef TapEnd body
        memset(&body, 0, sizeof(body))
        pack(&body.upstream, upstream)
        body.to_upstream = to_upstream
        body.to_client = to_client
        names = [events_reason_name(number).decode() for number in range(REASONS)]
        body.reason = names.index(reason)
        return self.append(TAP_END, time_ns, 0, 0, &body, sizeof(body))
