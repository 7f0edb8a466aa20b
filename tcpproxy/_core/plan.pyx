# Faults that are in force together: the model is in plan.pxd.
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.bucket cimport limit_set
from tcpproxy._core.dice cimport DICE_OF_CONNECTION, dice
from tcpproxy._core.sync cimport sync_add, sync_sub


cdef Plan *plan_new() noexcept nogil:
    cdef Plan *plan = <Plan *> calloc(1, sizeof(Plan))
    if plan != NULL:
        plan.users = 1
    return plan


cdef int plan_add(Plan *plan, const Rule *rule, Plan *before) noexcept nogil:
    cdef Tally *tally = NULL
    cdef uint32_t i
    if plan.count == PLAN_RULES:
        return -1
    if before != NULL:
        for i in range(before.count):
            if before.rules[i].key == rule.key:
                tally = before.tallies[i]
    if tally == NULL:
        tally = <Tally *> calloc(1, sizeof(Tally))
        if tally == NULL:
            return -1
    sync_add(&tally.users, 1)
    plan.rules[plan.count] = rule[0]
    plan.tallies[plan.count] = tally
    if rule.kind == RULE_BANDWIDTH:
        limit_set(&plan.limits[plan.count], rule.rate, rule.burst)
    plan.count += 1
    return 0


cdef uint32_t plan_bit(const Plan *plan, uint64_t key) noexcept nogil:
    cdef uint32_t i
    for i in range(plan.count):
        if plan.rules[i].key == key:
            return <uint32_t> 1 << i
    return 0


cdef void plan_hold(Plan *plan) noexcept nogil:
    sync_add(&plan.users, 1)


cdef void plan_release(Plan *plan) noexcept nogil:
    cdef uint32_t i
    if plan == NULL or sync_sub(&plan.users, 1) != 1:
        return
    for i in range(plan.count):
        if sync_sub(&plan.tallies[i].users, 1) == 1:
            free(plan.tallies[i])
    free(plan)


cdef bint _in_network(const Rule *rule, uint64_t high, uint64_t low) noexcept nogil:
    cdef uint64_t bits = rule.client_bits
    high ^= rule.client_high
    low ^= rule.client_low
    if bits < 64:
        return bits == 0 or high >> (64 - bits) == 0
    return high == 0 and (bits == 64 or low >> (128 - bits) == 0)


cdef bint rule_takes(const Rule *rule, uint64_t id, uint64_t high, uint64_t low) noexcept nogil:
    cdef uint64_t number = id - rule.since      # since the fault is in force
    if id <= rule.since and (not rule.live or rule.first or rule.nth or rule.every):
        return False
    if (rule.first and number > rule.first) or (rule.nth and number != rule.nth) or (rule.every and number % rule.every):
        return False
    if (rule.connection and id != rule.connection) or not _in_network(rule, high, low):
        return False
    return rule.share == UINT64_MAX or dice(rule.seed, rule.fault, id, DICE_OF_CONNECTION, 0) < rule.share


cdef bint plan_takes(const Plan *plan, uint64_t id, uint64_t client_high, uint64_t client_low) noexcept nogil:
    cdef uint32_t i
    for i in range(plan.count):
        if rule_takes(&plan.rules[i], id, client_high, client_low):
            return True
    return False
