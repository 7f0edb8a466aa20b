from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from tcpproxy._core.buffer cimport Buffer, buffer_clear
from tcpproxy._core.outlet cimport TAKE_BYTES, TAKE_CLOSE, TAKE_EOF, TAKE_FAILED, TAKE_NOTHING, TAKE_NO_MEMORY, TAKE_RESET, \
    outlet_due_ns, outlet_take, outlet_verdict
from tcpproxy._core.plan cimport END_CLOSE, END_RESET, END_STALL, PLAN_RULES, RULE_BANDWIDTH, RULE_CUT, RULE_DIAL, RULE_IDLE, \
    RULE_LATENCY, RULE_SLICER, RULE_SLOW_CLOSE, RULE_STALL, RULE_TIMEOUT, Plan, Rule, plan_add, plan_new, plan_release, plan_takes
from tcpproxy._core.shaper cimport CHUNK_BYTES, LINE_BYTES, SOURCE_EOF, SOURCE_FAILED, Shaper, Shaping, shaper_begin, \
    shaper_end, shaper_holds, shaper_put, shaper_room, shaper_waits
from tcpproxy._core.shaping cimport shaping_adopt, shaping_free, shaping_new

from memory cimport memory_give_back, memory_take_all

NEVER = UINT64_MAX
LINE, CHUNK, RULES = LINE_BYTES, CHUNK_BYTES, PLAN_RULES
CUT, TIMEOUT, IDLE, LATENCY, DIAL = RULE_CUT, RULE_TIMEOUT, RULE_IDLE, RULE_LATENCY, RULE_DIAL
SLOW_CLOSE, BANDWIDTH, SLICER, STALL = RULE_SLOW_CLOSE, RULE_BANDWIDTH, RULE_SLICER, RULE_STALL
CLOSE, RESET, HOLD = END_CLOSE, END_RESET, END_STALL
EOF, FAILED = SOURCE_EOF, SOURCE_FAILED
TAKEN = {
    TAKE_NOTHING: "nothing", TAKE_BYTES: "bytes", TAKE_EOF: "eof", TAKE_FAILED: "failed", TAKE_CLOSE: "close",
    TAKE_RESET: "reset", TAKE_NO_MEMORY: "no memory",
}
cdef Rule nothing
NAMES = dict.fromkeys(<object> nothing, 0)


cdef class PlanDoor:
    """Rules, each a dict of the fields that are not 0; `share` is all and `streams` is both unless said."""
    cdef Plan *it

    def __cinit__(self, rules, PlanDoor before=None):
        cdef Rule rule
        self.it = plan_new()
        for number, each in enumerate(rules):
            if unknown := each.keys() - NAMES.keys():
                raise TypeError(f"no fields of Rule: {unknown}")
            rule = {**NAMES, "share": UINT64_MAX, "streams": 3, "key": number + 1, **each}
            if plan_add(self.it, &rule, before.it if before is not None else NULL) < 0:
                raise OverflowError

    def __dealloc__(self):
        plan_release(self.it)

    def takes(self, uint64_t id, uint64_t high=0, uint64_t low=0):
        return plan_takes(self.it, id, high, low)

    def fired(self, int number=0):
        return self.it.tallies[number].fired

    @property
    def users(self):
        return self.it.users


cdef class ShaperDoor:
    """A connection of which one direction is used; time is what the caller says."""
    cdef Shaping *it
    cdef Shaper *shaper
    cdef PlanDoor plan

    def __cinit__(self, PlanDoor plan, uint64_t id=1, uint32_t small=65536, uint64_t now_ns=0, int direction=1,
                  uint64_t passed=0):
        self.it = shaping_new(id, 0, 0, small)
        if self.it == NULL:
            raise MemoryError
        for i in range(2):
            shaper_begin(&self.it.halves[i], passed, now_ns)
        if shaping_adopt(self.it, plan.it, now_ns) < 0:
            raise MemoryError
        self.shaper = &self.it.halves[direction]

    def __dealloc__(self):
        if self.it != NULL:
            shaping_free(self.it)

    def adopt(self, PlanDoor plan, uint64_t now_ns):
        assert shaping_adopt(self.it, plan.it, now_ns) == 0

    def other(self):
        """Uses the other direction from now on."""
        self.shaper = &self.it.halves[1 - self.shaper.direction]

    def put(self, bytes data, uint64_t now_ns, *, bint without_memory=False):
        cdef const char *start = data
        cdef uint32_t size = len(data)
        cdef int rc
        with nogil:
            chain = memory_take_all() if without_memory else NULL
            rc = shaper_put(self.shaper, start, size, now_ns)
            memory_give_back(chain)
        return rc

    def end(self, uint8_t how, uint64_t now_ns):
        shaper_end(self.shaper, how, now_ns)

    def take(self, uint64_t now_ns, uint32_t most=0xFFFFFFF):
        """(what, bytes)"""
        cdef Buffer out
        cdef int what
        out.memory = NULL
        with nogil:
            what = outlet_take(self.shaper, most, &out, now_ns)
        data = out.memory[out.start:out.end] if what == TAKE_BYTES else b""
        buffer_clear(&out)
        return TAKEN[what], data

    def due_ns(self, uint64_t now_ns, *, blocked=False):
        return outlet_due_ns(self.shaper, blocked, now_ns)

    def verdict(self, uint64_t now_ns):
        return TAKEN[outlet_verdict(self.shaper, now_ns)]

    def room(self, uint64_t now_ns):
        return shaper_room(self.shaper, now_ns)

    @property
    def holds(self):
        return shaper_holds(self.shaper)

    @property
    def waits(self):
        return shaper_waits(self.shaper)

    @property
    def over(self):
        return self.shaper.over

    @property
    def held(self):
        return self.shaper.held

    @property
    def discarded(self):
        return self.shaper.discarded

    @property
    def acted(self):
        """Numbers of the rules."""
        return {number for number in range(PLAN_RULES) if self.it.acted >> number & 1}
