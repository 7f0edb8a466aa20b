"""Connections that are over, as the log thread keeps them."""

from __future__ import annotations

from tcpproxy import Event
from tcpproxy.report.over import MOST, Over
from tcpproxy.views import Connection


def test_only_ends_of_connections() -> None:
    over = Over()
    over.add([Event("new", id=7), Event("end", "idle", id=7), Event("failed", "dns", id=8), Event("failed", "dns")])
    over.add([Event("warning", text="x"), Event("lost", lost=3)])
    assert [event.id for event in over.last()] == [7, 8]
    assert [event.id for event in over.last(60)] == [7, 8]
    assert over.last(-1) == []


def test_the_last_ones() -> None:
    over = Over()
    over.add([Event("end", "idle", id=number) for number in range(1, MOST + 11)])
    assert [event.id for event in over.last()] == list(range(11, MOST + 11))


def test_what_is_known() -> None:
    over = Over()
    over.add([Event("end", "killed", 0, "a:1", "b:2", 3, 4, 5.5, 0.25, id=6, outgoing="c:7", faults=("slow",))])
    assert over.connections() == [
        Connection(
            id=6, client="a:1", upstream="b:2", state="ended", to_upstream=3, to_client=4, age=5.5, connect_time=0.25,
            idle=0.0, waiting_for_upstream=0, waiting_for_client=0, outgoing="c:7", reason="killed", faults=("slow",),
        )
    ]  # fmt: skip
