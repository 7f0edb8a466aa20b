"""Shaper, in any order of calls: against a model that knows only single bytes, and by what must hold with rates."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

DOOR = "shaper"
LATER = 10**9
Rule = dict[str, Any]


class Model:
    """When each byte of one direction leaves, and which end comes after them. Written for clarity, not for speed."""

    def __init__(self, door: ModuleType, rules: list[Rule]) -> None:
        self.door = door
        self.rules: dict[int, tuple[Rule, int, int]] = {}  # with the position and the time from which they act
        self.now = self.heard = self.left_at = self.passed = self.discarded = 0
        self.line: list[int] = []  # of each byte: when it arrived
        self.ended = self.over = None
        self.ended_at = self.over_at = 0
        self.log: list[tuple[int, str]] = []
        self.adopt(rules)

    def adopt(self, rules: list[Rule]) -> None:
        kept = {rule["key"] for rule in rules}
        gone = [rule for key, (rule, _, _) in self.rules.items() if key not in kept]
        if self.discarded and not self.over and any(rule["kind"] == self.door.TIMEOUT for rule in gone):
            self.over, self.over_at = self.door.RESET, self.now
        before, self.rules = self.rules, {}
        for rule in rules:
            position, time = rule.get("after_bytes", 0), rule.get("after_ns", 0)
            if rule["key"] in before:
                old, start, start_at = before[rule["key"]]
                start, start_at = start - old.get("after_bytes", 0), start_at - old.get("after_ns", 0)
            else:
                start, start_at = self.passed, self.now
            self.rules[rule["key"]] = rule, start + position, start_at + time

    def of(self, kind: str) -> list[tuple[Rule, int, int]]:
        return [each for each in self.rules.values() if each[0]["kind"] == getattr(self.door, kind)]

    def discards(self) -> bool:
        return any(at <= self.now or self.discarded for _, _, at in self.of("TIMEOUT"))

    def put(self, size: int) -> None:
        self.heard = self.now
        if self.over or self.discards():
            self.discarded += size
        else:
            self.line += [self.now] * size

    def end(self, how: int) -> None:
        self.ended, self.ended_at = how, self.now

    def due(self, arrival: int, position: int) -> int:
        acts = [rule for rule, start, at in self.of("LATENCY") if position >= start and arrival >= at]
        return arrival + sum(rule["delay_ns"] for rule in acts)

    def next(self) -> tuple[int, str]:
        """What comes next, and when; it may be late."""
        if self.over:
            ends = {self.door.CLOSE: "close", self.door.RESET: "reset"}
            if self.over not in ends:
                return (self.now, "failed") if self.ended == self.door.FAILED else (LATER, "")
            return self.over_at, ends[self.over]
        found: list[tuple[int, str]] = []
        for rule, _, at in self.rules.values():
            end = "close" if rule.get("end") == self.door.CLOSE else "reset"
            if rule["kind"] == self.door.CUT and not rule.get("by_bytes"):
                found.append((at + rule["delay_ns"], end))
            if rule["kind"] == self.door.TIMEOUT and rule["delay_ns"]:
                found.append((at + rule["delay_ns"], end))
            if rule["kind"] == self.door.IDLE and rule["delay_ns"]:
                found.append((max(at, self.heard) + rule["delay_ns"], end))
        found.sort(key=lambda each: each[0])
        if found and found[0][0] <= self.now:
            return found[0]
        cuts = [(rule, start) for rule, start, _ in self.of("CUT") if rule.get("by_bytes")]
        reached = [rule for rule, start in cuts if self.passed >= start]
        if any(rule["after_bytes"] for rule in reached):
            return self.now, "cut"
        held = any(at <= self.now and self.passed >= start for _, start, at in self.of("STALL"))
        if not held:
            found.append(self.entry("cut" if reached else "byte"))
        return min(found, key=lambda each: each[0], default=(LATER, ""))

    def entry(self, of_bytes: str) -> tuple[int, str]:
        """The first one of the line."""
        if self.line:
            return self.due(self.line[0], self.passed), of_bytes
        if not self.ended or (self.discards() and self.ended != self.door.FAILED):
            return LATER, ""
        due = self.due(self.ended_at, self.passed)
        if self.ended == self.door.FAILED:
            return due, "failed"
        slow = [rule["delay_ns"] for rule, _, _ in self.of("SLOW_CLOSE")]
        return (max(due, self.left_at) + max(slow) if slow else due), "eof"

    def run(self, until: int) -> None:
        while True:
            when, what = self.next()
            if max(when, self.now) > until or (self.log[-1:] and self.log[-1][1] in ("close", "reset")):
                break
            self.now = max(when, self.now)
            when, what = self.next()
            if when > self.now:
                continue  # a stall begins in the same moment
            if what == "cut":
                cuts = [
                    (rule, start) for rule, start, _ in self.of("CUT") if rule.get("by_bytes") and self.passed >= start
                ]
                rule = next((rule for rule, _ in cuts if rule["after_bytes"]), cuts[0][0])
                self.over, self.over_at = rule["end"], self.now + rule["delay_ns"]
                self.discarded += len(self.line)
                self.line, self.ended = [], None
                continue
            self.log.append((self.now, what))
            if what == "byte":
                del self.line[0]
                self.passed += 1
                self.left_at = self.now
            elif what in ("eof", "failed"):
                self.ended = None
        self.now = max(self.now, until)


class Driven:
    """The shaper, driven as a half does it; its log has a line for each byte."""

    def __init__(self, door: ModuleType, rules: list[Rule]) -> None:
        self.door = door
        self.plan = door.PlanDoor(rules)
        self.it = door.ShaperDoor(self.plan)
        self.now = 0
        self.log: list[tuple[int, str]] = []
        self.sent, self.got = b"", b""
        self.pieces: list[tuple[int, int]] = []

    def over(self) -> bool:
        return bool(self.log) and self.log[-1][1] in ("close", "reset")

    def put(self, size: int) -> None:
        data = bytes((len(self.sent) + at) % 251 for at in range(size))
        self.sent += data
        assert self.it.put(data, self.now) == 0

    def adopt(self, rules: list[Rule]) -> None:
        self.plan = self.door.PlanDoor(rules, self.plan)
        self.it.adopt(self.plan, self.now)

    def take(self) -> None:
        while not self.over():
            what, data = self.it.take(self.now)
            if what == "nothing":
                break
            self.got += data
            self.log += [(self.now, "byte")] * len(data) if data else [(self.now, what)]
            if data:
                self.pieces.append((self.now, len(data)))

    def run(self, until: int) -> None:
        self.take()
        while not self.over() and (due := self.it.due_ns(self.now)) <= until:
            assert due > self.now, "it was taken already"
            self.now = due
            self.take()
        self.now = until


# --- any calls ---

short = st.integers(0, 40)
position = st.integers(0, 12)


def rule(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Rule]:
    return st.fixed_dictionaries({"kind": st.just(kind), **fields})


end = st.sampled_from(["CLOSE", "RESET"])
by_bytes = {"by_bytes": st.just(1), "after_bytes": position}
KINDS: dict[int, st.SearchStrategy[Rule]] = {
    1: rule("CUT", end=st.sampled_from(["CLOSE", "RESET", "HOLD"]), delay_ns=short, **by_bytes),
    2: rule("CUT", end=end, delay_ns=st.integers(0, 200), after_ns=short),
    3: rule("TIMEOUT", end=end, delay_ns=st.sampled_from([0, 10, 100]), after_ns=short),
    4: rule("IDLE", end=end, delay_ns=st.sampled_from([0, 30, 100])),
    5: rule("LATENCY", delay_ns=short),
    6: rule("LATENCY", delay_ns=short, **by_bytes),
    7: rule("LATENCY", delay_ns=short, after_ns=short),
    8: rule("SLOW_CLOSE", delay_ns=short),
    9: rule("STALL", after_ns=short),
    10: rule("STALL", **by_bytes),
    11: rule("CUT", end=end, delay_ns=st.just(0), **by_bytes),
}
"""The key of a rule tells its kind, because a fault keeps its."""
PACED = {
    12: rule("BANDWIDTH", rate=st.sampled_from([10**7, 10**8, 10**9]), burst=st.integers(1, 20)),
    13: rule("BANDWIDTH", rate=st.just(10**8), burst=st.integers(2, 5), shared=st.just(1), after_ns=short),
    14: rule("SLICER", size=st.integers(2, 5), variation=st.integers(0, 1), delay_ns=short, seed=short),
}


def plans(kinds: dict[int, st.SearchStrategy[Rule]]) -> st.SearchStrategy[list[Rule]]:
    keys = st.lists(st.sampled_from(sorted(kinds)), max_size=4, unique=True)
    return keys.flatmap(
        lambda some: st.tuples(*(kinds[key].map(lambda it, key=key: {**it, "key": key}) for key in some))
    ).map(list)  # type: ignore[misc]


def calls(kinds: dict[int, st.SearchStrategy[Rule]]) -> st.SearchStrategy[list[tuple[str, Any]]]:
    call = st.one_of(
        st.tuples(st.just("put"), st.integers(1, 9)),
        st.tuples(st.just("put"), st.integers(1, 9)),
        st.tuples(st.just("wait"), short),
        st.tuples(st.just("wait"), short),
        st.tuples(st.just("adopt"), plans(kinds)),
        st.tuples(st.just("end"), st.sampled_from(["EOF", "FAILED"])),
    )
    return st.lists(call, max_size=25)


def numbers(door: ModuleType, rules: list[Rule]) -> list[Rule]:
    """Names of kinds and ends are known only to the door."""
    return [{key: getattr(door, it) if isinstance(it, str) else it for key, it in rule.items()} for rule in rules]


@settings(max_examples=600, deadline=None)
@given(plans(KINDS), calls(KINDS))
def test_as_the_model(door: ModuleType, first: list[Rule], steps: list[tuple[str, Any]]) -> None:
    """Each byte leaves when the model says, and the same end comes at the same time."""
    model, driven = Model(door, numbers(door, first)), Driven(door, numbers(door, first))
    ended = False
    for name, value in [*steps, ("wait", 1000)]:
        if name == "wait":
            model.run(model.now + value)
            driven.run(driven.now + value)
        elif name == "adopt":
            model.adopt(numbers(door, value))
            driven.adopt(numbers(door, value))
        elif not ended and name == "put":
            model.put(value)
            driven.put(value)
        elif not ended and name == "end":
            ended = True
            model.end(getattr(door, value))
            driven.it.end(getattr(door, value), driven.now)
        model.run(model.now)
        driven.run(driven.now)
        assert driven.log == model.log
        assert driven.sent.startswith(driven.got)
        assert driven.it.discarded == model.discarded
        if driven.over():
            break


@settings(max_examples=400, deadline=None)
@given(plans(KINDS | PACED), calls(KINDS | PACED))
def test_with_rates(door: ModuleType, first: list[Rule], steps: list[tuple[str, Any]]) -> None:
    """What comes out is the beginning of what went in; without rules all the rest comes, then the end."""
    driven = Driven(door, numbers(door, first))
    ended = ""
    for name, value in steps:
        if name == "wait":
            driven.run(driven.now + value)
        elif name == "adopt":
            driven.adopt(numbers(door, value))
        elif not ended and name == "put":
            driven.put(value)
        elif not ended and name == "end":
            ended = value
            driven.it.end(getattr(door, value), driven.now)
        driven.run(driven.now)
        assert driven.sent.startswith(driven.got)
        assert len(driven.sent) == len(driven.got) + driven.it.held + driven.it.discarded
        kinds = [what for _, what in driven.log if what != "byte"]
        assert kinds in ([], ["close"], ["reset"], [ended.lower()], [ended.lower(), "close"], [ended.lower(), "reset"])
    driven.adopt([])
    driven.run(driven.now + 100)  # a cut that has acted ends the connection all the same
    if not driven.it.discarded and not driven.it.over and not driven.over():
        assert driven.got == driven.sent
        assert not driven.it.holds
        assert not ended or driven.log[-1][1] == ended.lower()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 10**10), st.integers(1, 10**6), st.lists(st.integers(1, 65536), min_size=1, max_size=30), st.data()
)
def test_any_rate(door: ModuleType, rate: int, burst: int, reads: list[int], data: st.DataObject) -> None:
    """At no time more than the rate and the burst; the last byte no later than the rate says."""
    driven = Driven(door, [{"kind": door.BANDWIDTH, "key": 1, "rate": rate, "burst": burst}])
    start = driven.now = 10**18
    for size in reads:
        driven.it.put(bytes(size), driven.now)
        driven.run(driven.now + data.draw(st.integers(0, 10**9)))
    last = driven.now
    driven.run(2**63)
    moved = 0
    for now, size in driven.pieces:
        moved += size
        assert moved <= (now - start + 1) * rate // 10**9 + max(burst, 2) + 1
    assert moved == sum(reads)
    ideal = last + moved * 10**9 // rate
    assert driven.pieces[-1][0] <= ideal + len(driven.pieces) + 1
