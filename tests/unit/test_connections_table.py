"""The table of live connections, the line about all of them, and numbers in words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from support.command import SUMMARY
from support.connections import ONE

from tcpproxy import Connection, Stats
from tcpproxy.report.table import OPTIONAL, measure, record, table, waits_for
from tcpproxy.report.totals import summary, summary_fields
from tcpproxy.text import bytes_text, count, span
from tcpproxy.views import State

TWO = dataclasses.replace(
    ONE, id=1204, client="[2001:db8::1]:1", upstream="", state="connecting", to_client=0, age=1.24
)
RATES = {17: (0.0, 12_900_000.0)}


def test_table() -> None:
    heading, one, two = table([ONE, TWO], RATES, None)
    assert heading == (
        "    #  client           upstream       state              age    idle"
        "  to upstream  rate up  to client   rate down  waits for"
    )
    assert one == (
        "  #17  127.0.0.1:52714  10.0.0.5:5432  relaying    2 h 13 min  250 ms"
        "      1.3 KiB    0 B/s    343 MiB  12.3 MiB/s  client (64.0 KiB)"
    )
    assert two == (
        "#1204  [2001:db8::1]:1  -              connecting       1.2 s  250 ms"
        "      1.3 KiB    0 B/s        0 B       0 B/s  upstream"
    )


@pytest.mark.parametrize("width", range(200))
def test_table_in_its_width(width: int) -> None:
    """Columns are left out in their order until the rest fits; who, how fast and whom it waits for always stay."""
    lines = table([ONE, TWO], RATES, width)
    left = [name for name in OPTIONAL if name not in lines[0]]
    assert left == list(OPTIONAL[: len(left)])
    if len(left) < len(OPTIONAL):
        assert max(map(len, lines)) <= width
    if left:
        kept = [name for name in OPTIONAL if name not in left[:-1]]
        assert kept[0] == left[-1]
    assert all(text in lines[1] for text in ("#17", ONE.client, "12.3 MiB/s", "client (64.0 KiB)"))


def test_table_of_nobody() -> None:
    (line,) = table([], {}, None)
    assert line.split()[0] == "#"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"waiting_for_client": 0}, ""),
        ({}, "client (64.0 KiB)"),
        ({"waiting_for_upstream": 17}, "upstream (17 B), client (64.0 KiB)"),
        ({"state": "resolving"}, "name server"),
        ({"state": "connecting"}, "upstream"),
        ({"state": "closing", "waiting_for_client": 1}, "client (1 B)"),
        ({"held": (0, 65536)}, "fault (64.0 KiB)"),
        ({"waiting_for_upstream": 17, "held": (16, 65530)}, "upstream (1 B), client (6 B), fault (64.0 KiB)"),
    ],
)
def test_whom_it_waits_for(changes: dict[str, Any], text: str) -> None:
    assert waits_for(dataclasses.replace(ONE, **changes)) == text
    assert get_args(State)[:2] == ("resolving", "connecting")


def test_rates() -> None:
    """Between two looks; of a connection that is new in the second one since its accept."""
    later = dataclasses.replace(ONE, to_upstream=ONE.to_upstream + 500, to_client=ONE.to_client + 50)
    new = dataclasses.replace(ONE, id=18, to_upstream=100, to_client=20, age=0.1)
    gone = dataclasses.replace(ONE, id=16)
    assert measure([gone, ONE], [later, new], 0.5) == {17: (1000.0, 100.0), 18: (1000.0, 200.0)}
    assert measure([], [dataclasses.replace(new, age=0.0, to_upstream=0, to_client=0)], 0.5) == {18: (0.0, 0.0)}


def test_record_has_every_field() -> None:
    found = record(ONE, 0.4, 12_900_000.2)
    live = {*Connection.__slots__} - {"reason", "faults", "held", "via"}
    assert found.keys() == {*live, "rate_to_upstream", "rate_to_client"}
    assert (found["rate_to_upstream"], found["rate_to_client"]) == (0, 12_900_000)
    json.dumps(found)
    bent = record(dataclasses.replace(ONE, faults=("slow",), held=(5, 6)), 0.4, 12_900_000.2)
    assert bent == {**found, "faults": ["slow"], "held_for_upstream": 5, "held_for_client": 6}


def stats(**values: int) -> Stats:
    zero = dict.fromkeys(Stats.__slots__[:-1], 0)
    return Stats(**(zero | values), accepted_by_worker=(0,))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (stats(), "2 h 13 min: 0 connections; 0 B to upstream, 0 B to clients"),
        (stats(accepted=1), "2 h 13 min: 1 connection; 0 B to upstream, 0 B to clients"),
        (
            stats(accepted=1204, failed=3, bytes_to_upstream=1_300_000_000, bytes_to_client=356_000_000),
            "2 h 13 min: 1,204 connections, 3 failed; 1.2 GiB to upstream, 340 MiB to clients",
        ),
        (
            stats(accepted=5, refused=1000, active=2),
            "2 h 13 min: 5 connections, 1,000 refused, 2 open; 0 B to upstream, 0 B to clients",
        ),
    ],
)
def test_summary(numbers: Stats, text: str) -> None:
    assert summary(7980, numbers) == text
    assert SUMMARY.fullmatch(text), "the tests of the command leave it out"
    fields = summary_fields(7980, numbers)
    assert (fields["accepted"], fields["failed"], fields["duration"]) == (numbers.accepted, numbers.failed, 7980)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102_348, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (999 * 1024, "999 KiB"),
        (5 * 1024**4, "5.0 TiB"),
        (2**64 - 1, "16384 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (785, "13 min 5 s"),
        (3599.6, "1 h 0 min"),
        (7980, "2 h 13 min"),
        (86399.7, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_counts() -> None:
    assert [count(number, "byte") for number in (0, 1, 2, 1204)] == ["0 bytes", "1 byte", "2 bytes", "1,204 bytes"]
