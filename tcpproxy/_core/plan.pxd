# A plan: the faults in force, as rules, and which connections a rule takes.
#
# A plan is complete before other threads see it, and read-only from then on; a change makes another plan. Relays of all workers
# use it, and its last user frees it. The Tally of a rule counts what the fault has done; the next plan takes it over.
#
# Whether a rule takes a connection depends only on the connection's id and the client's address. So the answer is the same at any
# time, for both directions, on any worker. A fault like first=N needs no counter: ids are in the order of accept, and `since` is
# the last id before the fault was in force.
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
    RULE_DIAL               # blackhole, connect_delay: upstream is connected to never, or later

cdef enum:                  # Rule.end
    END_CLOSE = 1           # an end of file for both peers
    END_RESET
    END_STALL               # the connection stays: later bytes are discarded

cdef enum:                  # Rule.streams, as bits
    STREAM_UP = 1           # what the client sends
    STREAM_DOWN = 2

cdef struct Rule:           # numbers only, so that a mapping of Python converts to it
    uint64_t key            # the fault's key. An updated fault keeps it, so that the new rule gets the state of the old one
    uint64_t kind
    uint64_t streams
    uint64_t fault          # the hash of its name, for the dice
    uint64_t seed
    # which connections the rule takes; 0: no condition
    uint64_t since          # the last id before the fault was in force
    uint64_t live           # also ids up to `since`, unless first, nth or every is set
    uint64_t first
    uint64_t nth
    uint64_t every
    uint64_t connection
    uint64_t client_high    # a network, as an IPv6 address
    uint64_t client_low
    uint64_t client_bits
    uint64_t share          # of the connections, in units of 2^-64; 2^64 - 1: all
    uint64_t times          # the most connections on which it acts; 0: no limit
    # when it begins
    uint64_t by_bytes       # RULE_CUT: at a position, `after_bytes`, which may be 0; else at a time
    uint64_t after_bytes
    uint64_t after_ns       # ns after it has taken the connection
    # its effect
    uint64_t shared         # all connections share the rate or the limit
    uint64_t end            # END_
    uint64_t delay_ns       # latency, or until the end, or between slices. RULE_TIMEOUT, RULE_IDLE, RULE_DIAL: 0 is never
    uint64_t jitter_ns
    uint64_t normal         # the jitter is distributed normally, else uniformly
    uint64_t size           # the average bytes of a slice
    uint64_t variation      # by how many bytes a slice may be larger or smaller
    uint64_t rate           # bytes per second
    uint64_t burst          # bytes; 0: the default

cdef struct Tally:          # counts of a fault. Threads share it; it outlives a plan if the next one has the same fault
    uint64_t users          # plans
    uint64_t fired          # connections on which it has acted
    uint64_t bucket         # `shared`: see bucket.pxd
    uint64_t passed         # `shared`: bytes of all connections

cdef struct Plan:
    uint64_t users          # loops, relays and Rulebooks
    uint32_t count
    Rule rules[PLAN_RULES]
    Limit limits[PLAN_RULES]
    Tally *tallies[PLAN_RULES]

cdef Plan *plan_new() noexcept nogil                                # has no rules and one user; NULL: no memory
# `before`: the plan that this one replaces, or NULL. 0, or -1: the plan is full, or there is no memory
cdef int plan_add(Plan *plan, const Rule *rule, Plan *before) noexcept nogil
cdef uint32_t plan_bit(const Plan *plan, uint64_t key) noexcept nogil           # of the rule with this key; 0: there is none
cdef void plan_hold(Plan *plan) noexcept nogil              # one more user
cdef void plan_release(Plan *plan) noexcept nogil           # one user less; NULL: nothing
cdef bint plan_takes(const Plan *plan, uint64_t id, uint64_t client_high, uint64_t client_low) noexcept nogil
cdef bint rule_takes(const Rule *rule, uint64_t id, uint64_t client_high, uint64_t client_low) noexcept nogil
