"""Faults that are in force, without a proxy: names, windows."""

from __future__ import annotations

import math

import pytest

from tcpproxy.errors import UsageError
from tcpproxy.faults import Fault
from tcpproxy.handles import window
from tcpproxy.inforce import Faults


@pytest.mark.parametrize(
    ("text", "time", "found"),
    [
        ("stall", 5, (True, math.inf)),
        ("stall,start=2s", 1, (False, 2)),
        ("stall,start=2s", 2, (True, math.inf)),
        ("stall,for=3s", 2.5, (True, 3)),
        ("stall,for=3s", 3, (False, math.inf)),
        ("stall,start=10s,for=5s,repeat=60s", 9, (False, 10)),
        ("stall,start=10s,for=5s,repeat=60s", 14, (True, 15)),
        ("stall,start=10s,for=5s,repeat=60s", 15, (False, 70)),
        ("stall,start=10s,for=5s,repeat=60s", 131, (True, 135)),
    ],
)
def test_windows(text: str, time: float, found: tuple[bool, float]) -> None:
    """Is it open, and when does that change?"""
    assert window(Fault.parse(text), time) == found


def test_names_stay() -> None:
    """A fault that comes later does not get the name of one that is there, nor does one change its own."""
    faults = Faults(faults=["stall", "stall"])
    first, second = faults.handles
    first.remove()
    third = faults.install(["stall"])
    assert [it.name for it in (first, second, third)] == ["stall_to_client", "stall_to_client#2", "stall_to_client"]
    with pytest.raises(UsageError, match="not in force any more"):
        first.update(stream="up")


def test_a_wrong_update_changes_nothing() -> None:
    faults = Faults(faults=["slicer=10", "to_upstream:slicer=10"])
    with pytest.raises(UsageError, match="another slicer"):
        faults.handles[0].update(stream="both")
    with pytest.raises(UsageError, match="has no unit"):
        faults.handles[0].update(delay="100")
    assert str(faults.handles[0].fault) == "slicer=10"


def test_seed() -> None:
    assert Faults(seed=8123).seed_text == "8123 (dice 1)"
    assert Faults().seed != Faults().seed
