# The output of a shaper: which bytes leave its line, and when. The model is in shaper.pxd.
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from tcpproxy._core.bucket cimport bucket_charge, bucket_due_ns, bucket_room
from tcpproxy._core.buffer cimport Buffer, buffer_fill
from tcpproxy._core.dice cimport dice, dice_below
from tcpproxy._core.plan cimport END_CLOSE, END_STALL, RULE_BANDWIDTH, RULE_CUT, RULE_IDLE, RULE_LATENCY, RULE_SLICER, \
    RULE_SLOW_CLOSE, RULE_STALL, RULE_TIMEOUT, Rule
from tcpproxy._core.shaper cimport SOURCE_EOF, SOURCE_FAILED, Chunk, Grip, Shaper, shaper_act, shaper_aim, shaper_clear, \
    shaper_discard, shaper_holds
from tcpproxy._core.sync cimport sync_claim, sync_load

cdef enum:
    CUT = -1                # another value of Next.what, beside TAKE_: Next.grip cuts here

cdef struct Next:           # the next event of the shaper, if nothing is put in
    uint64_t when_ns        # UINT64_MAX: nothing happens
    uint64_t size           # bytes; valid if TAKE_BYTES is due now
    Grip *grip
    int what


# --- when ---

cdef void _end_next(Shaper *shaper, Next *next, uint64_t now_ns) noexcept nogil:
    """Sets `next` to the earliest end of the connection, if it comes before the event in `next`."""
    cdef uint64_t at_ns
    cdef Grip *grip
    cdef uint32_t i
    if shaper.over:
        if shaper.over == END_STALL and shaper.ended == SOURCE_FAILED:
            next.when_ns = now_ns           # a stall discards bytes, but not the failure of the source
            next.what = TAKE_FAILED
        elif shaper.over != END_STALL:
            next.when_ns = shaper.over_ns
            next.what = TAKE_CLOSE if shaper.over == END_CLOSE else TAKE_RESET
        return
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_CUT and not grip.rule.by_bytes:
            at_ns = grip.start_ns + grip.rule.delay_ns
        elif grip.rule.kind == RULE_TIMEOUT and grip.rule.delay_ns:
            at_ns = grip.start_ns + grip.rule.delay_ns
        elif grip.rule.kind == RULE_IDLE and grip.rule.delay_ns:
            at_ns = max(grip.start_ns, shaper.heard_ns) + grip.rule.delay_ns
        else:
            continue
        if at_ns < next.when_ns and (at_ns > now_ns or shaper_act(shaper, grip)):
            next.when_ns = at_ns
            next.what = TAKE_CLOSE if grip.rule.end == END_CLOSE else TAKE_RESET


cdef bint _stalled(Shaper *shaper, uint64_t *size, uint64_t now_ns) noexcept nogil:
    """True: a stall lets nothing leave. Else lowers `size` to the bytes that may leave before the next stall begins."""
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_STALL or grip.start_ns > now_ns or shaper.shaping.spent & grip.bit:
            continue
        if grip.start > shaper.passed:
            size[0] = min(size[0], grip.start - shaper.passed)
        elif shaper_act(shaper, grip):
            return True
    return False


cdef uint64_t _left(const Shaper *shaper, const Grip *grip) noexcept nogil:
    """Bytes that may leave before a cut."""
    cdef uint64_t passed
    if grip.rule.shared:
        passed = sync_load(&grip.tally.passed)
        return grip.rule.after_bytes - passed if passed < grip.rule.after_bytes else 0
    return grip.start - shaper.passed if shaper.passed < grip.start else 0


cdef Grip *_cut_next(Shaper *shaper, uint64_t *size) noexcept nogil:
    """Returns the cut whose position is reached, or NULL. Lowers `size` to the bytes that may leave before the next one."""
    cdef uint64_t left
    cdef Grip *grip
    cdef Grip *at_first = NULL          # a limit_data=0: it waits for the first byte, so other cuts come before it
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_CUT or not grip.rule.by_bytes or shaper.shaping.spent & grip.bit:
            continue
        left = _left(shaper, grip)
        if left:
            size[0] = min(size[0], left)
        elif grip.rule.after_bytes:
            return grip
        elif at_first == NULL:
            at_first = grip
    return at_first


cdef inline bint _works(Shaper *shaper, Grip *grip, uint64_t *size, uint64_t now_ns) noexcept nogil:
    """Has a rate or a slicer begun? If not, lowers `size` to the bytes that may leave before it begins."""
    if grip.start_ns > now_ns or shaper.shaping.spent & grip.bit:
        return False
    if shaper.passed < grip.start:
        size[0] = min(size[0], grip.start - shaper.passed)
        return False
    return True


cdef uint64_t _slice(Shaper *shaper, Grip *grip, uint64_t *size) noexcept nogil:
    """Lowers `size` to the rest of the slice. Returns when that is due. The dice of its first position give its length."""
    cdef const Rule *rule = grip.rule
    cdef uint64_t number, left
    if grip.slice_end <= shaper.passed:
        number = dice(rule.seed, rule.fault, shaper.shaping.id, shaper.direction, shaper.passed)
        grip.slice_end = shaper.passed + rule.size - rule.variation + dice_below(number, 2 * rule.variation + 1)
    left = grip.slice_end - shaper.passed
    if left < size[0] and shaper_act(shaper, grip):
        size[0] = left
    return grip.slice_ns


cdef uint64_t _before_latency(const Shaper *shaper) noexcept nogil:
    """Bytes that may leave before the next position at which a latency begins."""
    cdef const Grip *grip
    cdef uint64_t size = UINT64_MAX
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_LATENCY and shaper.passed < grip.start:
            size = min(size, grip.start - shaper.passed)
    return size


cdef uint64_t *_bucket(Grip *grip) noexcept nogil:
    return &grip.tally.bucket if grip.rule.shared else &grip.bucket


cdef uint64_t _pace(Shaper *shaper, uint64_t due_ns, uint64_t *size, uint64_t now_ns) noexcept nogil:
    """Lowers `size` to the bytes that rates and slicers let leave at once. Returns when these may leave: `due_ns` or later."""
    cdef uint64_t at_ns
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_SLICER or not _works(shaper, grip, size, now_ns):
            continue
        at_ns = _slice(shaper, grip, size)
        if at_ns > now_ns and (due_ns > now_ns or shaper_act(shaper, grip)):
            due_ns = max(due_ns, at_ns)
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_BANDWIDTH or not _works(shaper, grip, size, now_ns):
            continue
        at_ns = bucket_due_ns(_bucket(grip), grip.limit, size[0], now_ns)
        if at_ns > now_ns:
            if due_ns > now_ns or shaper_act(shaper, grip):
                due_ns = max(due_ns, at_ns)
        elif not shaper.shaping.spent & grip.bit:
            size[0] = min(size[0], bucket_room(_bucket(grip), grip.limit, now_ns))
    return due_ns


cdef void _next(Shaper *shaper, Next *next, uint64_t now_ns) noexcept nogil:
    cdef uint64_t size = UINT64_MAX, due_ns = shaper.due_ns
    cdef Grip *cut
    cdef uint32_t i
    next.when_ns = UINT64_MAX
    next.what = TAKE_NOTHING
    _end_next(shaper, next, now_ns)
    if shaper.over or next.when_ns <= now_ns:
        return
    cut = _cut_next(shaper, &size)
    if cut != NULL and cut.rule.after_bytes:            # the last byte before the cut has left
        next.when_ns = now_ns
        next.what = CUT
        next.grip = cut
        return
    if not shaper_holds(shaper) or _stalled(shaper, &size, now_ns):
        return
    next.size = 0
    if shaper.first == NULL:
        if shaper.ended == SOURCE_EOF and shaper_discard(shaper, now_ns):
            return
        if shaper.ended == SOURCE_EOF:
            for i in range(shaper.count):
                if shaper.grips[i].rule.kind == RULE_SLOW_CLOSE and shaper_act(shaper, &shaper.grips[i]):
                    due_ns = max(due_ns, max(shaper.due_ns, shaper.left_ns) + shaper.grips[i].rule.delay_ns)
        _sooner(next, due_ns, TAKE_EOF if shaper.ended == SOURCE_EOF else TAKE_FAILED)
    elif cut != NULL:                                   # a limit_data=0 acts when the first byte is due
        next.grip = cut
        _sooner(next, due_ns, CUT)
    else:
        size = min(_before_latency(shaper), min(size, <uint64_t> (shaper.first.buffer.end - shaper.first.buffer.start)))
        due_ns = _pace(shaper, due_ns, &size, now_ns)
        next.size = size
        _sooner(next, due_ns, TAKE_BYTES)


cdef inline void _sooner(Next *next, uint64_t when_ns, int what) noexcept nogil:
    if when_ns < next.when_ns:
        next.when_ns = when_ns
        next.what = what


cdef uint64_t outlet_due_ns(Shaper *shaper, bint blocked, uint64_t now_ns) noexcept nogil:
    cdef Next next
    if blocked:
        next.when_ns = UINT64_MAX
        _end_next(shaper, &next, now_ns)
    else:
        _next(shaper, &next, now_ns)
    return next.when_ns


cdef int outlet_verdict(Shaper *shaper, uint64_t now_ns) noexcept nogil:
    cdef Next next
    next.when_ns = UINT64_MAX
    _end_next(shaper, &next, now_ns)
    return next.what if next.when_ns <= now_ns and next.what != TAKE_FAILED else TAKE_NOTHING


# --- out ---

cdef int outlet_take(Shaper *shaper, uint32_t most, Buffer *out, uint64_t now_ns) noexcept nogil:
    cdef Next next
    while True:
        _next(shaper, &next, now_ns)
        if next.when_ns > now_ns:
            return TAKE_NOTHING
        if next.what == CUT:
            _cut(shaper, next.grip, now_ns)
        elif next.what != TAKE_BYTES:
            if next.what == TAKE_EOF or next.what == TAKE_FAILED:
                shaper.ended = 0
            return next.what
        else:
            next.size = _claim(shaper, min(next.size, <uint64_t> most))
            if next.size:
                return _take_bytes(shaper, <uint32_t> next.size, out, now_ns)


cdef void _cut(Shaper *shaper, Grip *grip, uint64_t now_ns) noexcept nogil:
    if not shaper_act(shaper, grip):
        return
    shaper.over = <uint8_t> grip.rule.end
    shaper.over_ns = now_ns + grip.rule.delay_ns
    shaper.discarded += shaper.held
    shaper_clear(shaper)


cdef uint64_t _claim(Shaper *shaper, uint64_t size) noexcept nogil:
    """Takes up to `size` bytes from the limits that connections share. Returns how many; 0: others have used up a limit."""
    cdef uint64_t passed, rest
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind != RULE_CUT or not grip.rule.shared or shaper.shaping.spent & grip.bit:
            continue
        while True:
            passed = sync_load(&grip.tally.passed)
            rest = grip.rule.after_bytes - passed if passed < grip.rule.after_bytes else 0
            size = min(size, rest)
            if sync_claim(&grip.tally.passed, passed, passed + size):
                break
    return size


cdef int _take_bytes(Shaper *shaper, uint32_t size, Buffer *out, uint64_t now_ns) noexcept nogil:
    cdef Chunk *chunk = shaper.first
    cdef Grip *grip
    cdef uint32_t i
    if size == chunk.buffer.end - chunk.buffer.start:
        out[0] = chunk.buffer
        shaper.first = chunk.next
        if shaper.first == NULL:
            shaper.last = NULL
        shaper.chunks -= 1
        free(chunk)
        chunk = NULL
    elif buffer_fill(out, chunk.buffer.memory + chunk.buffer.start, size) < 0:
        return TAKE_NO_MEMORY
    else:
        chunk.buffer.start += size
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_BANDWIDTH and grip.start_ns <= now_ns and grip.start <= shaper.passed:
            bucket_charge(_bucket(grip), grip.limit, size, now_ns)
        elif grip.rule.kind == RULE_SLICER and grip.slice_end == shaper.passed + size:
            grip.slice_ns = now_ns + grip.rule.delay_ns
    shaper.passed += size
    shaper.held -= size
    shaper.left_ns = now_ns
    shaper_aim(shaper)
    return TAKE_BYTES
