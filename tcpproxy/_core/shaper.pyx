# The input of a shaper: which bytes go into its line, and when they are due. The model is in shaper.pxd.
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.buffer cimport buffer_clear, buffer_fill
from tcpproxy._core.dice cimport dice, dice_normal, dice_uniform
from tcpproxy._core.plan cimport RULE_LATENCY, RULE_TIMEOUT
from tcpproxy._core.sync cimport sync_add, sync_sub


cdef void shaper_begin(Shaper *shaper, uint64_t passed, uint64_t now_ns) noexcept nogil:
    shaper.passed = passed
    shaper.heard_ns = shaper.left_ns = now_ns


cdef bint shaper_act(Shaper *shaper, Grip *grip) noexcept nogil:
    """Records that a rule acts on this connection. False: it must not, because other connections have used up `times`."""
    cdef Shaping *shaping = shaper.shaping
    if shaping.acted & grip.bit:
        return True
    if shaping.spent & grip.bit:
        return False
    if grip.rule.times and sync_add(&grip.tally.fired, 1) >= grip.rule.times:
        sync_sub(&grip.tally.fired, 1)
        shaping.spent |= grip.bit
        return False
    if not grip.rule.times:
        sync_add(&grip.tally.fired, 1)
    shaping.acted |= grip.bit
    return True


# --- in ---

cdef uint32_t shaper_room(Shaper *shaper, uint64_t now_ns) noexcept nogil:
    cdef uint64_t used = shaper.held + (shaper.chunks + 1) * CHUNK_BYTES
    cdef uint64_t room
    if shaper.over or shaper_discards(shaper, now_ns):
        return UINT32_MAX
    if shaper.held >= shaper.bound or used >= LINE_BYTES:
        return 0
    room = shaper.bound - shaper.held
    return <uint32_t> (room if room < LINE_BYTES - used else LINE_BYTES - used)


cdef bint shaper_discard(Shaper *shaper, uint64_t now_ns) noexcept nogil:
    """As shaper_discards, for bytes or an end that are discarded now: records that the rules act."""
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_TIMEOUT and grip.start_ns <= now_ns:
            shaper_act(shaper, grip)
    return shaper_discards(shaper, now_ns)


cdef bint shaper_discards(Shaper *shaper, uint64_t now_ns) noexcept nogil:
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_TIMEOUT and not shaper.shaping.spent & grip.bit:
            if grip.start_ns <= now_ns or shaper.discarded:     # after a gap nothing may pass, even if `after` was raised
                return True
    return False


cdef int shaper_put(Shaper *shaper, const char *data, uint32_t size, uint64_t now_ns) noexcept nogil:
    cdef Chunk *chunk
    shaper.heard_ns = now_ns
    if shaper.over or shaper_discard(shaper, now_ns):
        shaper.discarded += size
        return 0
    chunk = <Chunk *> calloc(1, sizeof(Chunk))
    if chunk == NULL:
        return -1
    if buffer_fill(&chunk.buffer, data, size) < 0:
        free(chunk)
        return -1
    chunk.arrival_ns = now_ns
    if shaper.last != NULL:
        shaper.last.next = chunk
    else:
        shaper.first = chunk
    shaper.last = chunk
    shaper.held += size
    shaper.chunks += 1
    if shaper.first == chunk:
        shaper_aim(shaper)
    return 0


cdef void shaper_end(Shaper *shaper, uint8_t how, uint64_t now_ns) noexcept nogil:
    shaper.ended = how
    shaper.ended_ns = now_ns
    if shaper.first == NULL:
        shaper_aim(shaper)


cdef void shaper_clear(Shaper *shaper) noexcept nogil:
    cdef Chunk *chunk
    while shaper.first != NULL:
        chunk = shaper.first
        shaper.first = chunk.next
        buffer_clear(&chunk.buffer)
        free(chunk)
    shaper.last = NULL
    shaper.held = shaper.chunks = 0
    shaper.ended = 0


# --- due ---

cdef uint64_t _latency_ns(Shaper *shaper, uint64_t position, uint64_t arrival_ns) noexcept nogil:
    """The sum of all latencies for the first entry of the line, whose chunk began at `position`. If a latency begins inside the
    chunk, the rest of the chunk has the jitter of that position, as if it had been read separately.
    """
    cdef uint64_t total = 0, number
    cdef int64_t delay
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_LATENCY or shaper.passed < grip.start or arrival_ns < grip.start_ns:
            continue
        delay = <int64_t> grip.rule.delay_ns
        if grip.rule.jitter_ns:
            number = dice(grip.rule.seed, grip.rule.fault, shaper.shaping.id, shaper.direction, max(position, grip.start))
            if grip.rule.normal:
                delay += dice_normal(number, grip.rule.jitter_ns)
            else:
                delay += dice_uniform(number, grip.rule.jitter_ns)
        if delay > 0 and shaper_act(shaper, grip):
            total += delay
    return total


cdef void shaper_aim(Shaper *shaper) noexcept nogil:
    """Sets due_ns for the first entry of the line: bytes, or the end of the source. Only the first entry leaves, so an entry that
    is due before its predecessor waits for it.
    """
    cdef uint64_t position = shaper.passed, arrival_ns = shaper.ended_ns
    if shaper.first != NULL:
        position -= shaper.first.buffer.start       # the beginning of the chunk, a part of which may have left
        arrival_ns = shaper.first.arrival_ns
    elif not shaper.ended:
        return
    shaper.due_ns = arrival_ns + _latency_ns(shaper, position, arrival_ns)
