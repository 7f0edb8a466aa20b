# Faults that are in force together, compiled to rules of numbers, and which connections they take.
#
# A plan is complete before others know it, and then read-only; a change is another plan. Relays of all workers use it, and the
# last user frees it. What has happened is counted in the Tally of each rule, which the next plan takes over.
#
# Whether a connection has a rule depends on its id and address alone: it is so for ever, for both directions, on any worker. A
# fault that counts connections counts ids, so it needs no counter: `since` is the last id before it was in force.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.bucket cimport Limit

cdef enum:
    PLAN_RULES = 32

cdef enum:                  # Rule.kind
    RULE_CUT = 1            # limit_data, reset_peer, close: ends the connection at a position or at a time
    RULE_TIMEOUT            # discards, and ends the connection
    RULE_IDLE               # ends the connection after a silence
    RULE_LATENCY
    RULE_SLOW_CLOSE
    RULE_BANDWIDTH
    RULE_SLICER
    RULE_STALL
    RULE_DIAL               # of a new connection: upstream is connected to later, or never

cdef enum:                  # Rule.end
    END_CLOSE = 1           # an end of file for both peers
    END_RESET
    END_STALL               # no end: what follows is discarded

cdef enum:                  # Rule.streams, as bits
    STREAM_UP = 1           # what the client sends
    STREAM_DOWN = 2

cdef struct Rule:           # numbers only, so that a mapping of Python converts to it
    uint64_t key            # of the fault, not of its values: what a direction knows of the rule is kept by it
    uint64_t kind
    uint64_t streams
    uint64_t fault          # the number of its name, for the dice
    uint64_t seed
    # which connections; 0: any
    uint64_t since          # the last id before the fault was in force
    uint64_t live           # those up to `since` as well, unless it counts
    uint64_t first
    uint64_t nth
    uint64_t every
    uint64_t connection
    uint64_t client_high    # a network, as an IPv6 address
    uint64_t client_low
    uint64_t client_bits
    uint64_t share          # of 2^64 - 1
    uint64_t times
    # when
    uint64_t by_bytes       # from `after_bytes` on, which may be 0
    uint64_t after_bytes
    uint64_t after_ns       # since it has taken the connection
    # what
    uint64_t shared         # all connections share the rate or the limit
    uint64_t end
    uint64_t delay_ns       # latency, or until the end, or between slices. RULE_TIMEOUT, RULE_IDLE, RULE_DIAL: 0 is never
    uint64_t jitter_ns
    uint64_t normal         # distribution of the jitter
    uint64_t size           # of a slice
    uint64_t variation
    uint64_t rate
    uint64_t burst          # 0: the usual one

cdef struct Tally:          # what a fault has done. Threads share it; it outlives a plan if another one has the same fault
    uint64_t users
    uint64_t fired          # connections on which it has acted
    uint64_t bucket         # `shared`: see bucket.pxd
    uint64_t passed         # `shared`: bytes

cdef struct Plan:           # rules that are in force together. Read-only once others know it; freed by its last user
    uint64_t users
    uint32_t count
    Rule rules[PLAN_RULES]
    Limit limits[PLAN_RULES]
    Tally *tallies[PLAN_RULES]

cdef Plan *plan_new() noexcept nogil                                # without rules, one user; NULL: no memory
cdef int plan_add(Plan *plan, const Rule *rule, Plan *before) noexcept nogil    # `before`: the plan it replaces, or NULL. 0 or -1
cdef uint32_t plan_bit(const Plan *plan, uint64_t key) noexcept nogil           # of the rule with this key; 0: there is none
cdef void plan_hold(Plan *plan) noexcept nogil
cdef void plan_release(Plan *plan) noexcept nogil
cdef bint plan_takes(const Plan *plan, uint64_t id, uint64_t client_high, uint64_t client_low) noexcept nogil
cdef bint rule_takes(const Rule *rule, uint64_t id, uint64_t client_high, uint64_t client_low) noexcept nogil
