# The Shaping of a connection: the model is in shaper.pxd.
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.bucket cimport bucket_takes_ns
from tcpproxy._core.plan cimport END_RESET, RULE_BANDWIDTH, RULE_DIAL, RULE_LATENCY, plan_bit, plan_hold, plan_release, rule_takes
from tcpproxy._core.shaper cimport LINE_BYTES, Grip, Shaper, shaper_act, shaper_aim, shaper_clear, shaper_discards

cdef enum:
    NORMAL_MOST = 5         # sigmas: dice_normal gives no more


cdef Shaping *shaping_new(uint64_t id, uint64_t client_high, uint64_t client_low, uint32_t small) noexcept nogil:
    cdef Shaping *shaping = <Shaping *> calloc(1, sizeof(Shaping))
    cdef uint32_t i
    if shaping == NULL:
        return NULL
    shaping.id = id
    shaping.client_high = client_high
    shaping.client_low = client_low
    for i in range(2):
        shaping.halves[i].shaping = shaping
        shaping.halves[i].direction = i
        shaping.halves[i].small = small
    return shaping


cdef int shaping_adopt(Shaping *shaping, Plan *plan, uint64_t now_ns) noexcept nogil:
    cdef Plan *before = shaping.plan
    cdef Grip *grips[2]
    cdef uint32_t acted = 0, told = 0, spent = 0, bit, i, j
    for i in range(2):
        grips[i] = <Grip *> calloc(plan.count + 1, sizeof(Grip))
    if grips[0] == NULL or grips[1] == NULL:
        free(grips[0])
        free(grips[1])
        return -1
    for i in range(before.count if before != NULL else 0):
        bit = plan_bit(plan, before.rules[i].key)
        acted |= bit if shaping.acted & <uint32_t> 1 << i else 0
        told |= bit if shaping.told & <uint32_t> 1 << i else 0
        spent |= bit if shaping.spent & <uint32_t> 1 << i else 0
    plan_hold(plan)
    for j in range(2):
        _adopt(&shaping.halves[j], plan, grips[j], now_ns)
    shaping.plan = plan
    shaping.acted = acted
    shaping.told = told
    shaping.spent = spent
    for j in range(2):
        shaper_aim(&shaping.halves[j])
    plan_release(before)
    return 0


cdef void _adopt(Shaper *shaper, Plan *plan, Grip *grips, uint64_t now_ns) noexcept nogil:
    cdef Shaping *shaping = shaper.shaping
    cdef Grip *old
    cdef Grip *grip
    cdef uint32_t count = 0, i, j
    for i in range(plan.count):
        if not plan.rules[i].streams & <uint64_t> 1 << shaper.direction:
            continue
        if not rule_takes(&plan.rules[i], shaping.id, shaping.client_high, shaping.client_low):
            continue
        grip = &grips[count]
        grip.start = shaper.passed + plan.rules[i].after_bytes
        grip.start_ns = now_ns + plan.rules[i].after_ns
        for j in range(shaper.count):
            old = &shaper.grips[j]
            if old.rule.key == plan.rules[i].key:
                grip[0] = old[0]
                grip.start += plan.rules[i].after_bytes - old.rule.after_bytes
                grip.start_ns += plan.rules[i].after_ns - old.rule.after_ns
        grip.rule = &plan.rules[i]
        grip.limit = &plan.limits[i]
        grip.tally = plan.tallies[i]
        grip.bit = <uint32_t> 1 << i
        count += 1
    free(shaper.grips)
    shaper.grips = grips
    shaper.count = count
    if shaper.discarded and not shaper.over and not shaper_discards(shaper, now_ns):
        shaper.over = END_RESET         # the timeout that has discarded bytes is gone: after a gap nothing may pass
        shaper.over_ns = now_ns
    shaper.bound = _bound(shaper)


cdef uint64_t _bound(Shaper *shaper) noexcept nogil:
    cdef uint64_t latency_ns = 0, bound = LINE_BYTES
    cdef Grip *grip
    cdef uint32_t i
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_LATENCY:
            latency_ns += grip.rule.delay_ns + grip.rule.jitter_ns * (NORMAL_MOST if grip.rule.normal else 1)
    if not latency_ns:
        return shaper.small
    for i in range(shaper.count):
        grip = &shaper.grips[i]
        if grip.rule.kind == RULE_BANDWIDTH and latency_ns < bucket_takes_ns(grip.limit, bound):
            bound = latency_ns * grip.limit.rate // <uint64_t> 1000000000 + shaper.small
    return bound if bound < LINE_BYTES else LINE_BYTES


cdef void shaping_free(Shaping *shaping) noexcept nogil:
    cdef uint32_t i
    for i in range(2):
        shaper_clear(&shaping.halves[i])
        free(shaping.halves[i].grips)
    plan_release(shaping.plan)
    free(shaping)


cdef uint64_t shaping_dial_ns(Shaping *shaping) noexcept nogil:
    cdef uint64_t result = 0
    cdef Shaper *shaper
    cdef Grip *grip
    cdef uint32_t i, j
    for j in range(2):
        shaper = &shaping.halves[j]
        for i in range(shaper.count):
            grip = &shaper.grips[i]
            if grip.rule.kind == RULE_DIAL and shaper_act(shaper, grip):
                result = max(result, grip.start_ns + grip.rule.delay_ns if grip.rule.delay_ns else UINT64_MAX)
    return result
