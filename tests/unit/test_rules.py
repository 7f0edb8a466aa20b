"""Faults as rules of the core, and that the core does with them what they say."""

from __future__ import annotations

from types import ModuleType

import pytest

from tcpproxy.faults import Fault
from tcpproxy.rules import ALL, ENDS, KINDS, NO_RULES, Installed, name_number, named, rule

DOOR = "shaper"
COMMON = {"key": 5, "streams": 2, "seed": 8123, "live": 1, "share": ALL}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("latency=100ms,jitter=20ms", {"kind": 4, "delay_ns": 10**8, "jitter_ns": 2 * 10**7}),
        ("latency=1us,distribution=normal", {"kind": 4, "delay_ns": 1000, "normal": 1}),
        (
            "both:bandwidth=1MB/s,burst=8KiB,scope=proxy",
            {"kind": 6, "streams": 3, "rate": 10**6, "burst": 8192, "shared": 1},
        ),
        ("to_upstream:slow_close=2s", {"kind": 5, "streams": 1, "delay_ns": 2 * 10**9}),
        ("timeout=1s,end=reset", {"kind": 2, "delay_ns": 10**9, "end": 2}),
        ("timeout=1s,idle=true", {"kind": 3, "delay_ns": 10**9, "end": 1}),
        ("timeout=0", {"kind": 2, "end": 1}),
        ("reset_peer", {"kind": 1, "end": 2}),
        ("close=1s,after=2s", {"kind": 1, "end": 1, "delay_ns": 10**9, "after_ns": 2 * 10**9}),
        ("reset_peer,after_bytes=0", {"kind": 1, "end": 2, "by_bytes": 1}),
        ("limit_data=5,end=stall", {"kind": 1, "by_bytes": 1, "after_bytes": 5, "end": 3}),
        ("limit_data=0", {"kind": 1, "by_bytes": 1, "end": 1}),
        ("slicer=64,size_variation=3,delay=10us", {"kind": 7, "size": 64, "variation": 3, "delay_ns": 10_000}),
        ("stall,after_bytes=3,first=2,times=1", {"kind": 8, "by_bytes": 1, "after_bytes": 3, "first": 2, "times": 1}),
        ("stall,nth=3,every=4,connection=6,live=false", {"kind": 8, "nth": 3, "every": 4, "connection": 6, "live": 0}),
        ("stall,toxicity=0.5,seed=9", {"kind": 8, "share": 2**63, "seed": 9}),
        ("stall,toxicity=0", {"kind": 8, "share": 0}),
        ("stall,client=10.0.0.0/8", {"kind": 8, "client_low": 0xFFFF0A000000, "client_bits": 104}),
        ("stall,client=2001:db8::/32", {"kind": 8, "client_high": 0x20010DB800000000, "client_bits": 32}),
    ],
)
def test_rules(door: ModuleType, text: str, fields: dict[str, int]) -> None:
    """A field that is 0 is left out; the core has all the other fields."""
    fault = Fault.parse(text)
    fields = {**COMMON, "fault": name_number("a"), **fields}
    made = rule(Installed(fault, "a", 5), 8123)
    assert made == {name: value for name, value in fields.items() if value}
    door.PlanDoor([made])


def test_numbers(door: ModuleType) -> None:
    """Those of the core; and the published test vectors of FNV-1a."""
    assert [getattr(door, name.upper()) for name in KINDS] == list(range(1, len(KINDS) + 1))
    assert [ENDS.index(name) + 1 for name in ("close", "reset", "stall")] == [door.CLOSE, door.RESET, door.HOLD]
    assert [name_number(name) for name in ("", "a", "foobar")] == [
        *(0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8),
    ]


def test_each_kind_is_a_rule_or_has_none() -> None:
    examples = [
        "limit_data=1",
        "timeout=1s",
        "latency=1s",
        "slow_close=1s",
        "bandwidth=1B/s",
        "slicer=2",
        "connect_delay=1s",
    ]
    texts = {text.partition("=")[0]: text for text in examples}
    for kind in Fault.kinds:
        installed = Installed(Fault.parse(texts.get(kind, kind)), kind, 1)
        if kind in NO_RULES:
            with pytest.raises(ValueError, match=f"{kind} is no rule"):
                rule(installed, 0)
        else:
            assert rule(installed, 0)["kind"]


def test_the_core_does_it(door: ModuleType) -> None:
    """Latency both ways, a reset behind byte 5 of one, for connections 11 and 12 of those to come."""
    texts = ["both:latency=100ms,first=2", "reset_peer,after_bytes=5,first=2"]
    rules = [
        rule(Installed(fault, name, number, since=10), 8123)
        for number, (name, fault) in enumerate(named(texts).items(), 1)
    ]
    plan = door.PlanDoor(rules)
    assert [id for id in range(1, 20) if plan.takes(id)] == [11, 12]
    line = door.ShaperDoor(plan, id=11, now_ns=0)
    line.put(b"0123456789", 0)
    assert line.due_ns(0) == 10**8
    assert line.take(10**8) == ("bytes", b"01234")
    assert line.take(10**8) == ("reset", b"")
    line.other()
    line.put(b"0123456789", 0)
    assert line.take(10**8) == ("bytes", b"0123456789")
