from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from tcpproxy._core.pieces cimport ENDED, PIECES_SIZE, Missing, Pieces, pieces_add, pieces_catch_up, pieces_free, pieces_init
from tcpproxy._core.tap cimport TAP_CONNECTED, TAP_DATA, TAP_DELIVERED, TAP_END, TAP_FIN, TAP_GAP, TAP_LOST, TAP_OPEN, TAP_RST, \
    TapEnd, TapRecord, tap_body, tap_done, tap_next, tap_release

KEPT, SIZE = ENDED, PIECES_SIZE
OTHERS = [TAP_OPEN, TAP_CONNECTED, TAP_DELIVERED]
NAMES = {TAP_DATA: "data", TAP_FIN: "fin", TAP_RST: "rst", TAP_END: "end", TAP_GAP: "gap", TAP_LOST: "lost"}
KINDS = {name: kind for kind, name in NAMES.items()}

cdef enum:
    IDS = 8192
    ROOM = 8224             # words of a record and its body


cdef class PiecesDoor:
    cdef Pieces it
    cdef Missing *missing[IDS]
    cdef uint64_t memory[ROOM]

    def __cinit__(self, uint32_t most):
        if pieces_init(&self.it, most) < 0:
            raise MemoryError

    def __dealloc__(self):
        pieces_free(&self.it)

    def add(self, int kind, uint64_t id, uint8_t side=0, uint64_t offset=0, bytes body=b"", uint8_t reason=0):
        cdef TapRecord *record = <TapRecord *> self.memory
        cdef TapEnd *end = <TapEnd *> tap_body(record)
        memset(self.memory, 0, sizeof(self.memory))
        record.kind = <uint8_t> kind
        record.id = id
        record.side = side
        record.offset = offset
        record.time_ns = 1000 + offset
        record.size = <uint32_t> len(body)
        memcpy(<char *> tap_body(record), <const char *> body, len(body))
        if kind == TAP_END:
            record.size = sizeof(TapEnd)
            end.reason = reason
        pieces_add(&self.it, &self.missing[id], record)

    def take(self):
        """(kind, id, side, offset, bytes of the read or gap, body) of the next piece, or None."""
        cdef const TapRecord *record = tap_next(&self.it.ring)
        cdef TapRecord copy
        cdef uint64_t size
        if record == NULL:
            return None
        memcpy(&copy, record, sizeof(TapRecord))
        size = copy.whole
        body = PyBytes_FromStringAndSize(tap_body(record), copy.size)
        if copy.kind == TAP_END:
            size = (<TapEnd *> tap_body(record)).reason
            body = b""
        elif copy.kind == TAP_GAP or copy.kind == TAP_LOST:
            memcpy(&size, tap_body(record), sizeof(size))
            body = b""
        tap_done(&self.it.ring, record)
        return NAMES[copy.kind], copy.id, copy.side, copy.offset, size, body

    def release(self):
        return bool(tap_release(&self.it.ring))

    def catch_up(self):
        pieces_catch_up(&self.it)

    @property
    def total(self):
        return self.it.total

    @property
    def remembered(self):
        """Connections of which something is missing."""
        cdef Missing *missing = self.it.first
        count = 0
        while missing != NULL:
            count += 1
            missing = missing.after
        return count
