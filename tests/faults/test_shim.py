"""A preloaded library makes calls of the compiled core short, interrupted, refused or broken (row 39): see shim.c."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import Holdings, campaign, nobody_hung
from support import captures
from support.command import Command
from support.preloaded import SEED, Shim
from traffic import Server, Traffic


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_copy", ["off", "auto", "always"])
@pytest.mark.parametrize("fatal", [0, 60], ids=["harmless", "fatal"])
def test_one_call_in_ten(
    fatal: int,
    zero_copy: str,
    workers: int,
    command: Callable[..., Command],
    server: Server,
    tmp_path: Path,
    rounds: int,
) -> None:
    """Nobody notices what a kernel may do; what it may not heal ends its own connection, by a reset."""
    shim = Shim(tmp_path)
    options = ("--quiet", f"--workers={workers}", f"--zero-copy={zero_copy}")
    proxy = command(*options, f"localhost:{server.port}", env=shim.environment)
    numbers = itertools.count(SEED * 1_000_000)
    traffic = Traffic(server, proxy.address, together=16)
    traffic.run(itertools.islice(numbers, 50))
    holdings = Holdings(proxy, workers)
    for _ in range(rounds):
        shim.set(25, fatal)
        traffic.run(itertools.islice(numbers, 200), bool(fatal))
        shim.set(0)
        traffic.run(itertools.islice(numbers, 20))
    counts = shim.counts()
    campaign(f"shim {zero_copy} {workers} worker(s), seed {SEED}, {counts}", sum(counts.values()), traffic)
    holdings.check()
    assert traffic.troubles == [], proxy.stderr
    nobody_hung(traffic)
    assert {name.partition(" ")[0] for name in counts} >= {"accept4", "recv", "send", "epoll_wait/poll", "close"}
    assert proxy.process.poll() is None


SUMMARY = re.compile(
    r".*: ([\d,]+) packets of ([\d,]+) connections?, [^,]+(, ended: .+)?, (nothing|[\d,]+ connections?) left out"
)


def ends(data: bytes) -> int:
    """Connections that a capture has to their end."""
    return sum(" after " in packet.comment for packet in captures.packets(data))


@pytest.mark.parametrize("workers", [1, 2])
def test_writes_of_a_capture_that_are_short_or_interrupted(
    workers: int, command: Callable[..., Command], server: Server, tmp_path: Path
) -> None:
    """Beside all the other faults that nobody may notice: the capture is whole."""
    shim, file = Shim(tmp_path), tmp_path / "a.pcapng"
    proxy = command("-q", f"--workers={workers}", "--capture", str(file), server.name, env=shim.environment)
    traffic = Traffic(server, proxy.address, together=16)
    shim.set(10)
    traffic.run(range(SEED * 1_000_000, SEED * 1_000_000 + 150))
    counts = shim.counts()
    campaign(f"shim and capture, {workers} worker(s), seed {SEED}, {counts}", sum(counts.values()), traffic)
    shim.set(0)
    assert traffic.troubles == [], proxy.stderr
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0, proxy.stderr
    assert counts["write short"] > 0
    said = SUMMARY.fullmatch(proxy.complaints[-1])
    assert said, proxy.complaints
    data = file.read_bytes()
    assert said[4] == "nothing"
    assert ends(data) == int(said[2])
    captures.reassembled(captures.packets(data))
    assert captures.analysis(file) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_write_of_a_capture_that_fails(
    workers: int, command: Callable[..., Command], server: Server, tmp_path: Path
) -> None:
    """No space, over the quota, a bad disk, too large: the traffic goes on, and what is missing is counted."""
    shim = Shim(tmp_path)
    reasons = set()
    for number in range(6):
        file = tmp_path / f"{number}.pcapng"
        proxy = command("-q", f"--workers={workers}", "--capture", str(file), server.name, env=shim.environment)
        traffic = Traffic(server, proxy.address, together=16)
        shim.set(3, 8, only="write")
        traffic.run(range(number * 1000, number * 1000 + 60))
        shim.set(0)
        proxy.signal(signal.SIGTERM)
        assert traffic.troubles == [], proxy.stderr
        code = proxy.wait()
        said = SUMMARY.fullmatch(proxy.complaints[-1])
        assert said, proxy.complaints
        data = file.read_bytes()
        assert len(captures.packets(data)) == int(said[1].replace(",", ""))
        if code == 0:
            assert said[4] == "nothing"
            continue
        assert code == 1
        reason = re.match(rf"capture {file} ended: (.+); \d+ connections? go(es)? on uncaptured", proxy.complaints[0])
        assert reason, proxy.complaints
        reasons.add(reason[1])
        left_out = int(said[4].partition(" ")[0])
        assert 60 - ends(data) <= left_out
    assert reasons
