# The third door: a Plan as an object of Python.
from tcpproxy._core.dice cimport DICE_VERSION
from tcpproxy._core.plan cimport PLAN_RULES, Rule, plan_add, plan_new, plan_release
from tcpproxy._core.sync cimport sync_load

DICE = DICE_VERSION
MOST_RULES = PLAN_RULES

cdef Rule nothing
_ZEROS = dict.fromkeys(<object> nothing, 0)


cdef class Rulebook:
    """Rules that are in force together, read-only.

    `rules`: for each a dict of the fields of Rule in plan.pxd that are not 0. `before`: the Rulebook that this one replaces; the
    count of `fired` goes on for rules whose key is in both.

    Raises ValueError for more than MOST_RULES, MemoryError.
    """

    def __cinit__(self, rules, Rulebook before=None):
        cdef Rule rule
        self.plan = plan_new()
        if self.plan == NULL:
            raise MemoryError
        if len(rules) > MOST_RULES:
            raise ValueError(f"at most {MOST_RULES} rules")
        for each in rules:
            rule = {**_ZEROS, **each}
            if plan_add(self.plan, &rule, before.plan if before is not None else NULL) < 0:
                raise MemoryError

    def __dealloc__(self):
        plan_release(self.plan)

    def fired(self):
        """Returns on how many connections each rule has acted, in the order of `rules`."""
        return [sync_load(&self.plan.tallies[i].fired) for i in range(self.plan.count)]
