"""Shaper: what faults do to one direction, in virtual time. See test_shaper_model.py for any order of calls."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

MS = 10**6
S = 10**9


class Line:
    """A direction that is driven as a half drives it: at each due time all that can be taken is taken."""

    def __init__(self, door: ModuleType, *rules: dict[str, Any], **options: Any) -> None:
        self.door, self.now = door, options.pop("now_ns", 1000 * S)
        self.plan = door.PlanDoor(rules)
        self.it = door.ShaperDoor(self.plan, now_ns=self.now, **options)
        self.start = self.now
        self.log: list[tuple[int, str, bytes]] = []
        self.wakeups, self.over = 0, False

    def put(self, data: bytes) -> None:
        assert self.it.put(data, self.now) == 0
        self.take()

    def end(self, how: int | None = None) -> None:
        self.it.end(how or self.door.EOF, self.now)
        self.take()

    def adopt(self, *rules: dict[str, Any]) -> None:
        self.plan = self.door.PlanDoor(rules, self.plan)
        self.it.adopt(self.plan, self.now)
        self.take()

    def pause(self, on: bool) -> None:
        self.it.pause(on)
        self.take()

    def take(self) -> None:
        while not self.over and (taken := self.it.take(self.now))[0] != "nothing":
            self.log.append((self.now - self.start, *taken))
            self.over = taken[0] in ("close", "reset")

    def wait(self, length: int) -> list[tuple[int, str, bytes]]:
        """Lets time pass. Returns what came out since the last call, with the times since the start."""
        end = self.now + length
        while not self.over and (due := self.it.due_ns(self.now)) <= end:
            self.now = max(self.now, due)
            before = len(self.log)
            self.take()
            self.wakeups += 1
            assert len(self.log) > before or self.it.due_ns(self.now) > self.now, "a wake-up for nothing"
        self.now = end
        log, self.log = self.log, []
        return log


def what(log: list[tuple[int, str, bytes]]) -> list[tuple[int, str]]:
    return [(time, kind if kind != "bytes" else data.decode()) for time, kind, data in log]


# --- latency ---


def test_without_rules_everything_leaves_at_once(door: ModuleType) -> None:
    line = Line(door)
    line.put(b"ab")
    line.end()
    assert what(line.wait(0)) == [(0, "ab"), (0, "eof")]
    assert line.it.due_ns(line.now) == door.NEVER


def test_latency_is_no_rate(door: ModuleType) -> None:
    """Each read is delayed separately, the end of file, too, and one wake-up takes all that is due."""
    line = Line(door, {"kind": door.LATENCY, "delay_ns": 100})
    for number in range(5):
        line.put(b"%d" % number)
        line.wait(10)
    line.end()
    assert line.it.holds
    assert what(line.wait(1000)) == [(100, "0"), (110, "1"), (120, "2"), (130, "3"), (140, "4"), (150, "eof")]
    assert not line.it.holds
    assert line.it.acted == {0}


@pytest.mark.parametrize("normal", [0, 1])
def test_jitter_keeps_order(door: ModuleType, normal: int) -> None:
    """It is spread, never negative, and does not depend on when or together with what the bytes came."""
    rule = {"kind": door.LATENCY, "delay_ns": 100, "jitter_ns": 80, "normal": normal, "seed": 7, "fault": 9}
    leaves = []
    for gap in (0, 1000):
        line = Line(door, rule)
        delays = []
        for number in range(200):
            line.put(bytes([number]))
            arrival = line.now - line.start
            delays += [(data[0], time - arrival) for time, _, data in line.wait(gap)]
        delays += [(data[0], time) for time, _, data in line.wait(10_000)]
        assert [number for number, _ in delays] == list(range(200))
        leaves.append([delay for _, delay in delays])
    together, apart = leaves
    assert together == sorted(together), "never before the one in front"
    assert len(set(apart)) > 80
    assert min(apart) >= 0
    assert max(apart) <= (180 if not normal else 500)
    assert all(max(apart[: at + 1]) == time for at, time in enumerate(together)), "same dice"


def test_two_latencies_add(door: ModuleType) -> None:
    line = Line(door, {"kind": door.LATENCY, "delay_ns": 100}, {"kind": door.LATENCY, "delay_ns": 20, "streams": 2})
    line.put(b"a")
    assert what(line.wait(1000)) == [(120, "a")]
    line.it.other()
    line.put(b"b")
    assert what(line.wait(1000)) == [(1100, "b")]


def test_latency_from_a_position_and_from_a_time(door: ModuleType) -> None:
    by_bytes = Line(door, {"kind": door.LATENCY, "delay_ns": 100, "by_bytes": 1, "after_bytes": 2})
    by_time = Line(door, {"kind": door.LATENCY, "delay_ns": 100, "after_ns": 50})
    for line in (by_bytes, by_time):
        line.put(b"ab")
        assert line.it.acted == set()
        line.wait(50)
        line.put(b"c")
        line.wait(0)
        assert line.it.acted == {0}
        assert what(line.wait(1000)) == [(150, "c")]


@pytest.mark.parametrize("jitter", [0, 50])
def test_latency_from_a_position_in_a_read(door: ModuleType, jitter: int) -> None:
    """However the bytes were read: those before it are not delayed, those after it are."""
    late = {"kind": door.LATENCY, "delay_ns": 100, "jitter_ns": jitter, "by_bytes": 1, "after_bytes": 3, "seed": 4}
    found = []
    for reads in (["ab", "c", "def"], ["abcdef"]):
        line = Line(door, late)
        for read in reads:
            line.put(read.encode())
        assert what(line.wait(0))[-1:] == [(0, reads[-1].replace("def", "") or "c")]
        (end,) = what(line.wait(1000))
        found.append(end)
    assert found[0] == found[1]
    assert found[0][1] == "def"
    assert jitter or found[0][0] == 100


@pytest.mark.parametrize(("delay", "expected"), [(10, 100), (150, 150), (500, 500)])
def test_latency_that_changes(door: ModuleType, delay: int, expected: int) -> None:
    """What is held is due at its arrival plus the new delay, and not before the change."""
    line = Line(door, {"kind": door.LATENCY, "delay_ns": 200})
    line.put(b"a")
    line.put(b"b")
    line.wait(100)
    line.adopt({"kind": door.LATENCY, "delay_ns": delay})
    assert what(line.wait(1000)) == [(expected, "a"), (expected, "b")]


def test_latency_that_is_removed(door: ModuleType) -> None:
    line = Line(door, {"kind": door.LATENCY, "delay_ns": 200})
    line.put(b"a")
    line.end(door.FAILED)
    line.wait(100)
    line.adopt()
    assert what(line.wait(0)) == [(100, "a"), (100, "failed")]


def test_latency_is_that_of_the_whole_read(door: ModuleType) -> None:
    """The rest of a read, of which a part has left, gets no other jitter, whatever changes."""
    for seed in range(10):
        late = {"kind": door.LATENCY, "key": 5, "delay_ns": 100, "jitter_ns": 100, "seed": seed}
        line = Line(door, {"kind": door.STALL, "by_bytes": 1, "after_bytes": 3}, late)
        line.put(b"abcdef")
        ((time, text),) = what(line.wait(200))
        assert text == "abc"
        assert time <= 200
        line.adopt(late)
        assert what(line.wait(0)) == [(200, "def")]


# --- the line ---


def test_line_is_bounded(door: ModuleType) -> None:
    """Until then reads go on; the room never makes it exceed the bound, also with reads of a single byte."""
    for size in (65536, 1):
        line = Line(door, {"kind": door.LATENCY, "delay_ns": S})
        chunks = 0
        while room := line.it.room(line.now):
            assert line.it.put(bytes(min(size, room)), line.now) == 0
            chunks += 1
        used = line.it.held + chunks * door.CHUNK
        assert door.LINE - 2 * door.CHUNK <= used <= door.LINE
        line.wait(S)
        assert line.it.room(line.now) > door.LINE // 2


def test_line_of_a_rate_is_short(door: ModuleType) -> None:
    """What the rate lets pass in the latency, and a buffer's worth; without latency a buffer's worth."""
    latency, rate = {"kind": door.LATENCY, "delay_ns": 100 * MS}, {"kind": door.BANDWIDTH, "rate": 200_000}
    assert Line(door, latency, rate, small=5000).it.room(0) == 25_000
    assert Line(door, rate, small=5000).it.room(0) == 5000
    assert Line(door, {"kind": door.STALL}, small=5000).it.room(0) == 5000
    fast = Line(door, latency, {"kind": door.BANDWIDTH, "rate": 10**10}, small=5000)
    assert fast.it.room(0) == door.LINE - door.CHUNK


@pytest.mark.usefixtures("short_of_memory")
def test_without_memory(door: ModuleType) -> None:
    line = Line(door, {"kind": door.LATENCY, "delay_ns": 100})
    assert line.it.put(bytes(1 << 20), line.now, without_memory=True) == -1
    line.put(b"a")
    assert what(line.wait(100)) == [(100, "a")]


# --- cuts ---


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("end", ["close", "reset", "stall"])
def test_cut_at_a_position(door: ModuleType, size: int, end: str) -> None:
    """Exactly so many bytes leave, however they were read; then the end, `delay_ns` later."""
    ends = {"close": door.CLOSE, "reset": door.RESET, "stall": door.HOLD}
    line = Line(door, {"kind": door.CUT, "by_bytes": 1, "after_bytes": 10, "end": ends[end], "delay_ns": 5})
    data = b"0123456789abcdefghij"
    for at in range(0, len(data), size):
        line.put(data[at : at + size])
    log = line.wait(100)
    assert b"".join(each for _, _, each in log) == b"0123456789"
    assert [(time, kind) for time, kind, _ in log if kind != "bytes"] == ([(5, end)] if end != "stall" else [])
    assert line.it.discarded == 10
    assert line.it.room(line.now) == 2**32 - 1, "what follows is read and discarded"
    assert line.it.acted == {0}


def test_cut_acts_when_the_last_byte_is_through(door: ModuleType) -> None:
    """Not when it has arrived, and without waiting for the next one."""
    line = Line(
        door,
        {"kind": door.CUT, "by_bytes": 1, "after_bytes": 2, "end": door.RESET},
        {"kind": door.LATENCY, "delay_ns": 9},
    )
    line.put(b"ab")
    assert what(line.wait(100)) == [(9, "ab"), (9, "reset")]


def test_cut_in_place_of_the_first_byte(door: ModuleType) -> None:
    """With latency when the byte would have left. An end of file before it passes as usual."""
    cut = {"kind": door.CUT, "by_bytes": 1, "after_bytes": 0, "end": door.CLOSE}
    line = Line(door, cut, {"kind": door.LATENCY, "delay_ns": 9})
    assert line.wait(100) == []
    line.put(b"ab")
    assert what(line.wait(100)) == [(109, "close")]
    line = Line(door, cut)
    line.end()
    assert what(line.wait(100)) == [(0, "eof")]


def test_cut_at_a_time(door: ModuleType) -> None:
    """Whatever is held then."""
    rules = [
        {"kind": door.CUT, "after_ns": 30, "delay_ns": 5, "end": door.RESET},
        {"kind": door.LATENCY, "delay_ns": 20},
    ]
    line = Line(door, *rules, {"kind": door.STALL, "by_bytes": 1, "after_bytes": 3})
    line.put(b"abcdef")
    assert what(line.wait(100)) == [(20, "abc"), (35, "reset")]


def test_limit_that_is_raised_in_time(door: ModuleType) -> None:
    """No byte was discarded before it acted. One that is lowered below what has passed acts at once."""
    cut = {"kind": door.CUT, "by_bytes": 1, "end": door.CLOSE}
    line = Line(door, {**cut, "after_bytes": 3}, {"kind": door.LATENCY, "delay_ns": 10, "key": 7})
    line.put(b"abcdef")
    line.adopt({**cut, "after_bytes": 5}, {"kind": door.LATENCY, "delay_ns": 10, "key": 7})
    assert what(line.wait(10)) == [(10, "abcde"), (10, "close")]
    line = Line(door, {**cut, "after_bytes": 10})
    line.put(b"abcdef")
    line.adopt({**cut, "after_bytes": 6})
    assert what(line.wait(0)) == [(0, "abcdef"), (0, "close")]


def test_positions_count_from_when_the_rule_has_come(door: ModuleType) -> None:
    """Bytes that are still held count; an update does not start anew."""
    line = Line(door, {"kind": door.STALL, "key": 9, "by_bytes": 1, "after_bytes": 2})
    line.put(b"abcd")
    cut = {"kind": door.CUT, "by_bytes": 1, "end": door.CLOSE}
    line.adopt({**cut, "after_bytes": 1})
    assert what(line.wait(0)) == [(0, "ab"), (0, "c"), (0, "close")]


def test_limit_of_all_connections(door: ModuleType) -> None:
    cut = {"kind": door.CUT, "by_bytes": 1, "after_bytes": 10, "end": door.CLOSE, "shared": 1}
    plan = door.PlanDoor([cut])
    one, two = (door.ShaperDoor(plan, id=each) for each in (1, 2))
    for shaper in (one, two):
        shaper.put(b"abcdef", 0)
    assert one.take(0) == ("bytes", b"abcdef")
    assert two.take(0) == ("bytes", b"abcd")
    assert one.take(0) == two.take(0) == ("close", b"")
    assert plan.fired() == 2


def test_cut_that_is_reached_before_one_that_waits_for_a_byte(door: ModuleType) -> None:
    cut = {"kind": door.CUT, "by_bytes": 1}
    line = Line(door, {**cut, "key": 8, "after_bytes": 5, "end": door.RESET})
    line.put(b"ab")
    line.adopt({**cut, "key": 7, "end": door.CLOSE}, {**cut, "key": 8, "after_bytes": 2, "end": door.RESET})
    assert what(line.wait(0)) == [(0, "ab"), (0, "reset")]


# --- time-outs ---


def test_timeout_discards_and_ends(door: ModuleType) -> None:
    line = Line(door, {"kind": door.TIMEOUT, "after_ns": 10, "delay_ns": 50, "end": door.CLOSE})
    line.put(b"before")
    line.wait(10)
    line.put(b"lost")
    line.end()
    line.wait(40)
    assert line.it.discarded == 4
    assert what(line.wait(100)) == [(60, "close")]


def test_timeout_that_never_ends(door: ModuleType) -> None:
    line = Line(door, {"kind": door.TIMEOUT, "end": door.CLOSE})
    line.put(b"lost")
    assert line.wait(10**15) == []
    assert line.it.room(line.now) == 2**32 - 1


def test_timeout_that_is_removed(door: ModuleType) -> None:
    """After a gap there is a reset; without one everything goes on, also an end of file that had come."""
    line = Line(door, {"kind": door.TIMEOUT, "end": door.CLOSE, "delay_ns": 50})
    line.put(b"lost")
    line.wait(20)
    line.adopt()
    assert what(line.wait(100)) == [(20, "reset")]
    line = Line(door, {"kind": door.TIMEOUT, "end": door.CLOSE, "delay_ns": 50})
    line.end()
    line.wait(20)
    assert line.it.acted == {0}, "it holds the end of file"
    line.adopt()
    assert what(line.wait(100)) == [(20, "eof")]


def test_timeout_whose_times_are_used_up(door: ModuleType) -> None:
    """An end of file passes on those that it does not act on."""
    plan = door.PlanDoor([{"kind": door.TIMEOUT, "end": door.CLOSE, "times": 1}])
    lines = [door.ShaperDoor(plan, id=each) for each in (1, 2)]
    for line in lines:
        line.end(door.EOF, 0)
    assert [line.take(0)[0] for line in lines] == ["nothing", "eof"]
    assert plan.fired() == 1


def test_timeout_that_is_put_off(door: ModuleType) -> None:
    """It goes on discarding: nothing passes after a gap. If it becomes a limit of silence, it resets."""
    timeout = {"kind": door.TIMEOUT, "end": door.CLOSE, "delay_ns": 50}
    line = Line(door, timeout)
    line.put(b"lost")
    line.adopt({**timeout, "after_ns": 20})
    line.put(b"lost")
    assert line.it.discarded == 8
    assert what(line.wait(100)) == [(70, "close")]
    line = Line(door, timeout)
    line.put(b"lost")
    line.adopt({**timeout, "kind": door.IDLE})
    assert what(line.wait(0)) == [(0, "reset")]


def test_silence(door: ModuleType) -> None:
    """Every byte begins it anew, and nothing is discarded."""
    line = Line(door, {"kind": door.IDLE, "delay_ns": 50, "end": door.RESET})
    line.wait(40)
    line.put(b"a")
    assert what(line.wait(100)) == [(40, "a"), (90, "reset")]


def test_silence_counts_from_when_the_rule_has_come(door: ModuleType) -> None:
    line = Line(door)
    line.wait(1000)
    line.adopt({"kind": door.IDLE, "delay_ns": 50, "end": door.RESET})
    assert what(line.wait(100)) == [(1050, "reset")]


# --- slow close, stall ---


def test_slow_close(door: ModuleType) -> None:
    """After the last byte has left; a failure does not wait."""
    rules = [{"kind": door.SLOW_CLOSE, "delay_ns": 30}, {"kind": door.LATENCY, "delay_ns": 100}]
    line = Line(door, *rules)
    line.put(b"a")
    line.end()
    assert what(line.wait(1000)) == [(100, "a"), (130, "eof")]
    line = Line(door, *rules)
    line.end(door.FAILED)
    assert what(line.wait(1000)) == [(100, "failed")]


def test_stall(door: ModuleType) -> None:
    """Exactly the bytes before it pass; everything else is held until it goes, the end too."""
    for end, name in ((door.EOF, "eof"), (door.FAILED, "failed")):
        line = Line(door, {"kind": door.STALL, "by_bytes": 1, "after_bytes": 3})
        line.put(b"abcdef")
        line.end(end)
        assert what(line.wait(100)) == [(0, "abc")]
        assert line.it.due_ns(line.now) == door.NEVER
        line.adopt()
        assert what(line.wait(0)) == [(100, "def"), (100, name)]


# --- rates ---


@pytest.mark.parametrize("read", [1460, 65536])
def test_bandwidth(door: ModuleType, read: int) -> None:
    """Within 1 % over 5 s, the first byte at once, about 200 wake-ups a second."""
    rate = 10**6
    line = Line(door, {"kind": door.BANDWIDTH, "rate": rate})
    sent = 0
    moved = []
    while sent < 5 * rate:
        while (room := line.it.room(line.now)) and sent < 5 * rate:
            size = min(read, room, 5 * rate - sent)
            line.put(bytes(size))
            sent += size
        moved += line.wait(MS)
    moved += line.wait(S)
    assert moved[0][0] == 0
    assert sum(len(data) for _, _, data in moved) == 5 * rate
    assert moved[-1][0] == pytest.approx(5 * S, rel=0.01)
    assert line.wakeups < 1500 * max(1, 10_000 // read)
    at = 0
    for time, _, data in moved:
        at += len(data)
        assert at <= rate * time / S + 10_000, "never above the rate and the burst"


def test_rate_from_a_time_and_from_a_position(door: ModuleType) -> None:
    rate = {"kind": door.BANDWIDTH, "rate": 10**6, "burst": 100}
    line = Line(door, {**rate, "after_ns": 50})
    line.put(bytes(1000))
    line.wait(50)
    assert len(line.log) == 0
    line.put(bytes(1000))
    assert line.wait(S)[-1][0] == pytest.approx(900_000 + 50, rel=0.1)
    line = Line(door, {**rate, "by_bytes": 1, "after_bytes": 1000})
    line.put(bytes(2000))
    log = line.wait(S)
    assert [len(data) for _, _, data in log][:2] == [1000, 100]
    assert log[-1][0] == pytest.approx(900_000, rel=0.1)


def test_lowest_rate_holds(door: ModuleType) -> None:
    line = Line(door, *({"kind": door.BANDWIDTH, "rate": rate} for rate in (10**6, 10**4, 10**5)))
    line.put(bytes(10_000))
    assert line.wait(2 * S)[-1][0] == pytest.approx(S, rel=0.02)


def test_rate_of_all_connections(door: ModuleType) -> None:
    """Two share what one alone would get."""
    plan = door.PlanDoor([{"kind": door.BANDWIDTH, "rate": 10**6, "shared": 1}])
    lines = [door.ShaperDoor(plan, id=each, now_ns=S) for each in (1, 2)]
    moved, now = 0, S
    for line in lines:
        line.put(bytes(60_000), now)
    while any(line.held for line in lines):
        now = max(now, min(due for line in lines if (due := line.due_ns(now)) != door.NEVER))
        for line in lines:
            moved += len(line.take(now)[1])
    assert moved == 120_000
    assert now - S == pytest.approx(120 * MS, rel=0.1)


def test_debt_outlives_an_update(door: ModuleType) -> None:
    """Not a removal."""
    for keep, expected in ((True, 100_000_000), (False, 0)):
        line = Line(door, {"kind": door.BANDWIDTH, "rate": 1000, "burst": 100})
        line.put(bytes(100))
        if not keep:
            line.adopt()
        line.adopt({"kind": door.BANDWIDTH, "rate": 1000, "burst": 200})
        line.wait(0)
        line.put(bytes(100))
        assert line.wait(S)[-1][0] == expected


def test_rate_that_acts(door: ModuleType) -> None:
    """When bytes have to wait for it."""
    line = Line(door, {"kind": door.BANDWIDTH, "rate": 10**6})
    line.put(b"small")
    assert line.it.acted == set()
    line.put(bytes(50_000))
    assert line.it.acted == {0}


# --- slices ---


def slices(door: ModuleType, reads: list[int], **rule: int) -> list[tuple[int, bytes]]:
    line = Line(door, {"kind": door.SLICER, "seed": 3, "fault": 4, **rule}, small=10**6)
    data = bytes(range(256)) * 40
    at = 0
    for size in reads * len(data):
        if at == len(data):
            break
        line.put(data[at : at + size])
        at = min(len(data), at + size)
    log = line.wait(S)
    assert b"".join(each for _, _, each in log) == data
    return [(time, each) for time, _, each in log]


def test_slicer(door: ModuleType) -> None:
    pieces = [len(data) for _, data in slices(door, [65536], size=64, variation=32)]
    assert min(pieces[:-1]) >= 32
    assert max(pieces) <= 96
    assert len(set(pieces)) > 50
    assert sum(pieces) / len(pieces) == pytest.approx(64, rel=0.1)
    assert {len(data) for _, data in slices(door, [65536], size=10)} == {10}


def test_slices_do_not_depend_on_reads(door: ModuleType) -> None:
    """A read that ends within a slice is sent at once, and the slice goes on behind it."""
    cuts = []
    for reads in ([1], [7], [65536]):
        at, ends = 0, set()
        for _, data in slices(door, reads, size=64, variation=32):
            at += len(data)
            ends.add(at)
        cuts.append(ends)
    assert cuts[2] <= cuts[1] <= cuts[0]
    assert len(cuts[2]) > 100
    assert cuts[2] != {at for _, data in slices(door, [65536], size=64, variation=32, seed=4) for at in [len(data)]}


def test_slices_with_a_pause(door: ModuleType) -> None:
    times = [time for time, _ in slices(door, [65536], size=1024, delay_ns=100)]
    assert times == [100 * number for number in range(10)]


def test_slicer_that_acts_between_reads(door: ModuleType) -> None:
    """It delays bytes without cutting them."""
    line = Line(door, {"kind": door.SLICER, "size": 5, "delay_ns": 100})
    line.put(b"hello")
    assert line.it.acted == set()
    line.put(b"world")
    assert what(line.wait(1000)) == [(0, "hello"), (100, "world")]
    assert line.it.acted == {0}


# --- which connections ---


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ({}, [11, 12, 13, 14, 15, 16]),
        ({"live": 1}, [9, 10, 11, 12, 13, 14, 15, 16]),
        ({"first": 2}, [11, 12]),
        ({"first": 2, "live": 1}, [11, 12]),
        ({"nth": 3}, [13]),
        ({"every": 2}, [12, 14, 16]),
        ({"every": 2, "first": 4}, [12, 14]),
        ({"connection": 14}, [14]),
        ({"connection": 9, "live": 1}, [9]),
        ({"connection": 9}, []),
        ({"share": 0}, []),
    ],
)
def test_selectors(door: ModuleType, rule: dict[str, int], taken: list[int]) -> None:
    """Ten connections had come before the fault."""
    plan = door.PlanDoor([{"kind": door.STALL, "since": 10, **rule}])
    assert [number for number in range(9, 17) if plan.takes(number)] == taken


@pytest.mark.parametrize(
    ("network", "bits", "address", "inside"),
    [
        (0, 0, 5, True),
        (0x20010DB8 << 96, 32, 0x20010DB8FFFF << 80, True),
        (0x20010DB8 << 96, 32, 0x20010DB9 << 96, False),
        (0x20010DB8 << 96, 64, (0x20010DB8 << 96) + 1, True),
        (0xFFFF0A000000, 104, 0xFFFF0A010203, True),
        (0xFFFF0A000000, 104, 0xFFFF0B010203, False),
        (0xFFFF0A000001, 128, 0xFFFF0A000001, True),
        (0xFFFF0A000001, 128, 0xFFFF0A000000, False),
    ],
)
def test_network(door: ModuleType, network: int, bits: int, address: int, inside: bool) -> None:
    low = 2**64 - 1
    rule = {"kind": door.STALL, "client_high": network >> 64, "client_low": network & low, "client_bits": bits}
    assert door.PlanDoor([rule]).takes(1, address >> 64, address & low) == inside


def test_share_of_connections(door: ModuleType) -> None:
    """Always the same ones; a higher share includes them, another fault has others."""

    def taken(share: float, fault: int = 5) -> set[int]:
        plan = door.PlanDoor([{"kind": door.STALL, "share": int(share * (2**64 - 1)), "seed": 8123, "fault": fault}])
        return {number for number in range(1, 2001) if plan.takes(number)}

    assert 150 < len(taken(0.1)) < 250
    assert taken(0.1) == taken(0.1) < taken(0.5)
    assert taken(0.1) != taken(0.1, fault=6)
    assert len(taken(1)) == 2000


def test_times(door: ModuleType) -> None:
    """`times` counts connections on which a rule acts, not directions; others are not changed."""
    plan = door.PlanDoor([{"kind": door.CUT, "by_bytes": 1, "end": door.RESET, "times": 2}])
    lines = [door.ShaperDoor(plan, id=each) for each in range(1, 5)]
    for line in (lines[3], lines[0], lines[0], lines[1]):
        line.put(b"a", 0)
    assert [line.take(0)[0] for line in (lines[3], lines[0], lines[1])] == ["reset", "reset", "bytes"]
    lines[0].other()
    lines[0].put(b"a", 0)
    assert lines[0].take(0)[0] == "reset"
    assert plan.fired() == 2
    assert [line.acted for line in lines] == [{0}, set(), set(), {0}]


def test_fired_outlives_an_update(door: ModuleType) -> None:
    rule = {"kind": door.LATENCY, "delay_ns": 5, "key": 77}
    before = door.PlanDoor([{"kind": door.STALL, "key": 1}, rule])
    line = door.ShaperDoor(before)
    line.put(b"a", 0)
    line.take(0)
    after = door.PlanDoor([{**rule, "delay_ns": 9}], before)
    line.adopt(after, 0)
    assert (after.fired(0), line.acted) == (1, {0})
    line.adopt(door.PlanDoor([]), 0)
    assert line.acted == set()


def test_plan_goes_with_its_last_user(door: ModuleType) -> None:
    plan = door.PlanDoor([{"kind": door.STALL}])
    lines = [door.ShaperDoor(plan) for _ in range(3)]
    assert plan.users == 4
    lines[0].adopt(door.PlanDoor([]), 0)
    assert plan.users == 3
    lines.clear()
    assert plan.users == 1


def test_too_many_rules(door: ModuleType) -> None:
    door.PlanDoor([{"kind": door.STALL}] * door.RULES)
    with pytest.raises(OverflowError):
        door.PlanDoor([{"kind": door.STALL}] * (door.RULES + 1))
