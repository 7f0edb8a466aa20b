# The records of a dump, on their way to the log thread: the model is in pieces.pxd.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from tcpproxy._core.sync cimport sync_bump, sync_load, sync_peek
from tcpproxy._core.tap cimport TAP_DATA, TAP_END, TAP_FIN, TAP_GAP, TAP_LOST, TAP_RST, TapEnd, tap_body, tap_copy, \
    tap_free, tap_init
from tcpproxy._core.thread cimport clock_ns


cdef int pieces_init(Pieces *pieces, uint32_t most) noexcept nogil:
    memset(pieces, 0, sizeof(Pieces))
    pieces.most = most
    return tap_init(&pieces.ring, PIECES_SIZE) if most else 0


cdef void pieces_free(Pieces *pieces) noexcept nogil:
    while pieces.first != NULL:
        _forget(pieces, pieces.first)
    tap_free(&pieces.ring)


cdef void pieces_add(Pieces *pieces, Missing **missing, const TapRecord *record) noexcept nogil:
    if record.kind == TAP_DATA:
        sync_bump(&pieces.total, record.size)
    elif record.kind not in (TAP_FIN, TAP_RST, TAP_END):
        return
    if not _tell(pieces, record):
        _miss(pieces, missing, record)


cdef bint _tell(Pieces *pieces, const TapRecord *record) noexcept nogil:
    cdef TapRecord piece = record[0]
    if pieces.full:
        return False
    piece.whole = record.size
    if record.kind == TAP_DATA and record.size > pieces.most:
        piece.size = pieces.most
    pieces.full = not tap_copy(&pieces.ring, &piece, tap_body(record))
    return not pieces.full


# --- what is missing ---

cdef void _miss(Pieces *pieces, Missing **place, const TapRecord *record) noexcept nogil:
    cdef Missing *missing = place[0]
    if missing == NULL:
        missing = _begin(pieces, place, record)
    if missing == NULL:                                 # no memory
        pieces.lost_bytes += record.size if record.kind == TAP_DATA else 0
        pieces.lost_connections += record.kind == TAP_END
    elif record.kind == TAP_DATA:
        if missing.bytes[record.side] == 0:
            missing.offsets[record.side] = record.offset
        missing.bytes[record.side] += record.size
    elif record.kind == TAP_END:
        missing.reason = (<const TapEnd *> tap_body(record)).reason
        _ended(pieces, missing)
    else:
        missing.kinds[record.side] = record.kind
        missing.ends[record.side] = record.offset


cdef Missing *_begin(Pieces *pieces, Missing **place, const TapRecord *record) noexcept nogil:
    cdef Missing *missing = <Missing *> calloc(1, sizeof(Missing))
    if missing == NULL:
        return NULL
    missing.id, missing.time_ns = record.id, record.time_ns
    missing.owner = place
    place[0] = missing
    missing.before = pieces.last
    if pieces.last == NULL:
        pieces.first = missing
    else:
        pieces.last.after = missing
    pieces.last = missing
    return missing


cdef void _ended(Pieces *pieces, Missing *missing) noexcept nogil:
    """Keeps the gap of a connection that has ended. Sums it instead if ENDED are kept: output may stand still for days."""
    if pieces.ended >= ENDED:
        pieces.lost_connections += 1
        pieces.lost_bytes += missing.bytes[0] + missing.bytes[1]
        _forget(pieces, missing)
        return
    missing.owner[0] = NULL
    missing.owner = NULL
    pieces.ended += 1


cdef void _forget(Pieces *pieces, Missing *missing) noexcept nogil:
    if missing.owner != NULL:
        missing.owner[0] = NULL
    else:
        pieces.ended -= 1
    if missing.before == NULL:
        pieces.first = missing.after
    else:
        missing.before.after = missing.after
    if missing.after == NULL:
        pieces.last = missing.before
    else:
        missing.after.before = missing.before
    free(missing)


cdef void pieces_catch_up(Pieces *pieces) noexcept nogil:
    if not pieces.full or sync_peek(&pieces.ring.written) - sync_load(&pieces.ring.taken) > pieces.ring.size // 2:
        return
    pieces.full = False
    while pieces.first != NULL:
        if not _tell_missing(pieces, pieces.first):
            return
        _forget(pieces, pieces.first)
    if pieces.lost_connections or pieces.lost_bytes:
        if _note(pieces, TAP_LOST, 0, 0, clock_ns(), pieces.lost_connections, &pieces.lost_bytes, sizeof(uint64_t)):
            pieces.lost_connections = pieces.lost_bytes = 0


cdef bint _tell_missing(Pieces *pieces, Missing *missing) noexcept nogil:
    """Writes a gap. False: there is no room for all of it, and the rest is written later."""
    cdef TapEnd end
    cdef int side
    for side in range(2):
        if missing.bytes[side]:
            if not _note(pieces, TAP_GAP, missing.id, <uint8_t> side, missing.time_ns, missing.offsets[side],
                         &missing.bytes[side], sizeof(uint64_t)):
                return False
            missing.bytes[side] = 0
        if missing.kinds[side]:
            if not _note(pieces, missing.kinds[side], missing.id, <uint8_t> side, missing.time_ns, missing.ends[side], NULL, 0):
                return False
            missing.kinds[side] = 0
    if missing.owner != NULL:
        return True
    memset(&end, 0, sizeof(end))
    end.reason = missing.reason
    return _note(pieces, TAP_END, missing.id, 0, missing.time_ns, 0, &end, sizeof(end))


cdef bint _note(Pieces *pieces, int kind, uint64_t id, uint8_t side, uint64_t time_ns, uint64_t offset,
                const void *body, uint32_t size) noexcept nogil:
    cdef TapRecord piece
    memset(&piece, 0, sizeof(piece))
    piece.kind, piece.id, piece.side, piece.time_ns, piece.offset, piece.size = <uint8_t> kind, id, side, time_ns, offset, size
    pieces.full = not tap_copy(&pieces.ring, &piece, body)
    return not pieces.full
