# The ring buffer of the tap: the model is in tap.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from tcpproxy._core.net cimport net_wake
from tcpproxy._core.sync cimport sync_bump, sync_check, sync_load, sync_peek, sync_swap
from tcpproxy._core.thread cimport clock_ns

cdef enum:
    HEADER = sizeof(TapRecord)
    NO_ROOM = -1


cdef int tap_init(Tap *tap, uint64_t size) noexcept nogil:
    memset(tap, 0, sizeof(Tap))
    tap.memory = <char *> malloc(size)
    tap.size = size
    return 0 if tap.memory != NULL else -ENOMEM


cdef void tap_free(Tap *tap) noexcept nogil:
    cdef Late *late
    while tap.late != NULL:
        late = tap.late
        tap.late = late.next
        free(late)
    free(tap.memory)
    tap.memory = NULL


cdef inline uint32_t _room(uint32_t size) noexcept nogil:
    """Bytes that a record with a body of `size` bytes takes in the ring."""
    return (HEADER + size + TAP_ALIGN - 1) & ~<uint32_t> (TAP_ALIGN - 1)


# --- the writer ---

cdef bint _fits(Tap *tap, uint32_t room, uint64_t *at, uint64_t taken) noexcept nogil:
    """Sets `at` to the position of a record of `room` bytes. False: the reader has to give memory back first."""
    cdef uint64_t written = sync_peek(&tap.written)
    cdef uint64_t rest = tap.size - (written & (tap.size - 1))
    at[0] = written if room <= rest else written + rest     # a record is in one piece
    return at[0] + room - taken <= tap.size


cdef bint _find(Tap *tap, uint32_t room, uint64_t *at) noexcept nogil:
    """As _fits. If there is no room, the reader will wake the worker."""
    if _fits(tap, room, at, sync_load(&tap.taken)):
        return True
    sync_swap(&tap.waiting, 1)      # the pattern of sync.pxd: the reader changes `taken`, then checks `waiting`
    return _fits(tap, room, at, sync_check(&tap.taken))


cdef void _publish(Tap *tap, uint64_t at, TapRecord *record) noexcept nogil:
    """Makes a complete record at position `at` visible to the reader, and wakes the reader if it waits for it."""
    cdef uint64_t written = sync_peek(&tap.written)
    cdef TapRecord *skip = <TapRecord *> (tap.memory + (written & (tap.size - 1)))
    cdef uint64_t asleep
    if at - written >= HEADER:          # where less than a header is left the reader needs no TAP_SKIP
        skip.kind = TAP_SKIP
        skip.room = <uint32_t> (at - written)
    sync_swap(&tap.written, at + record.room)
    asleep = sync_check(&tap.asleep)
    if asleep == TAP_AWAKE or (asleep == TAP_GATHERS and at - sync_load(&tap.taken) < tap.size // 2):
        return
    if sync_swap(&tap.asleep, TAP_AWAKE):
        net_wake(tap.wakeup)


cdef char *tap_claim(Tap *tap, uint32_t most) noexcept nogil:
    if tap.late != NULL or not _find(tap, _room(most), &tap.claimed):
        return NULL
    return tap.memory + (tap.claimed & (tap.size - 1)) + HEADER


cdef void tap_commit(Tap *tap, uint8_t side, uint64_t offset, uint32_t size) noexcept nogil:
    cdef TapRecord *record = <TapRecord *> (tap.memory + (tap.claimed & (tap.size - 1)))
    _fill(record, TAP_DATA, tap.id, side, offset, size)
    _publish(tap, tap.claimed, record)


cdef void _fill(TapRecord *record, uint8_t kind, uint64_t id, uint8_t side, uint64_t offset, uint32_t size) noexcept nogil:
    record.id = id
    record.time_ns = clock_ns()
    record.offset = offset
    record.size = size
    record.room = _room(size)
    record.kind = kind
    record.side = side


cdef void tap_note(Tap *tap, uint8_t kind, uint64_t id, uint8_t side, uint64_t offset,
                   const void *body, uint32_t size) noexcept nogil:
    cdef TapRecord *record
    cdef Late *late = NULL
    cdef uint64_t at
    if tap.late == NULL and _find(tap, _room(size), &at):
        record = <TapRecord *> (tap.memory + (at & (tap.size - 1)))
    else:
        late = <Late *> malloc(sizeof(Late) + size)
        if late == NULL:
            sync_bump(&tap.lost, 1)
            return
        record = &late.record
    _fill(record, kind, id, side, offset, size)
    if size:
        memcpy(<char *> tap_body(record), body, size)
    if late == NULL:
        _publish(tap, at, record)
        return
    late.next = NULL
    if tap.late == NULL:
        tap.late = late
    else:
        tap.late_last.next = late
    tap.late_last = late


cdef bint tap_copy(Tap *tap, const TapRecord *record, const void *body) noexcept nogil:
    cdef TapRecord *copy
    cdef uint64_t at
    if not _find(tap, _room(record.size), &at):
        return False
    copy = <TapRecord *> (tap.memory + (at & (tap.size - 1)))
    copy[0] = record[0]
    copy.room = _room(record.size)
    if record.size:
        memcpy(<char *> tap_body(copy), body, record.size)
    _publish(tap, at, copy)
    return True


cdef bint tap_catch_up(Tap *tap) noexcept nogil:
    cdef Late *late
    cdef uint64_t at
    while tap.late != NULL:
        late = tap.late
        if not _find(tap, late.record.room, &at):
            return False
        memcpy(tap.memory + (at & (tap.size - 1)), &late.record, HEADER + late.record.size)
        tap.late = late.next
        free(late)
        _publish(tap, at, <TapRecord *> (tap.memory + (at & (tap.size - 1))))
    return True


cdef void tap_close(Tap *tap) noexcept nogil:
    sync_swap(&tap.waiting, 0)
    sync_swap(&tap.closed, 1)
    if sync_swap(&tap.asleep, TAP_AWAKE):
        net_wake(tap.wakeup)


# --- the reader ---

cdef const TapRecord *tap_next(Tap *tap) noexcept nogil:
    cdef bint closed = sync_load(&tap.closed) != 0      # before `written`: the last records come before it is set
    cdef uint64_t written = sync_load(&tap.written), rest
    cdef TapRecord *record
    while tap.reading != written:
        rest = tap.size - (tap.reading & (tap.size - 1))
        record = <TapRecord *> (tap.memory + (tap.reading & (tap.size - 1)))
        if rest >= HEADER and record.kind != TAP_SKIP:
            return record
        tap.reading += rest
    return &tap.late.record if closed and tap.late != NULL else NULL


cdef void tap_done(Tap *tap, const TapRecord *record) noexcept nogil:
    cdef Late *late = tap.late if sync_load(&tap.closed) else NULL
    if late != NULL and record == &late.record:
        tap.late = late.next
        free(late)
    else:
        tap.reading += record.room


cdef bint tap_release(Tap *tap) noexcept nogil:
    if sync_peek(&tap.taken) != tap.reading:
        sync_swap(&tap.taken, tap.reading)
    # Do not wake the writer for each record, but when half of the ring is free.
    if not sync_check(&tap.waiting):
        return False
    if sync_load(&tap.written) - tap.reading > tap.size // 2:
        return False
    return sync_swap(&tap.waiting, 0) != 0


cdef bint tap_sleep(Tap *tap, uint64_t how) noexcept nogil:
    sync_swap(&tap.asleep, how)
    if sync_check(&tap.written) == tap.reading and not (sync_check(&tap.closed) and tap.late != NULL):
        return True
    tap_awake(tap)
    return False


cdef void tap_awake(Tap *tap) noexcept nogil:
    sync_swap(&tap.asleep, TAP_AWAKE)
