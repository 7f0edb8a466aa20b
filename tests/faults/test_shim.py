"""A preloaded library makes calls of the compiled core short, interrupted, refused or broken (row 39): see shim.c."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import Holdings, campaign, nobody_hung
from support.command import Command
from support.machine import needs_proc
from traffic import Server, Traffic

CALLS = ["accept4", "socket", "connect", "recv", "send", "splice", "pipe2", "fcntl", "read", "epoll_ctl"]
CALLS += ["epoll_wait/poll", "setsockopt", "getsockopt", "shutdown", "close", "ioctl", "memory"]
"""As in shim.c; so are the kinds of fault."""

KINDS = ("short", "interrupted", "refused", "broken")
HEAD = struct.Struct("IIQ")
SEED = int(os.environ.get("FAULTS_SEED", "1"))


class Shim:
    """The library, and the page through which it is told what to do and says what it did."""

    def __init__(self, folder: Path) -> None:
        needs_proc()  # it knows the calls of Linux
        compiler = shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            pytest.skip("needs a C compiler")
        self.path, page = folder / "shim.so", folder / "page"
        source = Path(__file__).with_name("shim.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self.path, source, "-ldl"], check=True)
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)
        self.environment = {**os.environ, "LD_PRELOAD": str(self.path), "FAULTS": str(page)}

    def set(self, one_in: int, fatal_one_in: int = 0) -> None:
        HEAD.pack_into(self._page, 0, one_in, fatal_one_in, SEED)

    def counts(self) -> dict[str, int]:
        values = struct.iter_unpack("Q", self._page[HEAD.size : HEAD.size + 8 * len(CALLS) * len(KINDS)])
        names = (f"{call} {kind}" for call, kind in itertools.product(CALLS, KINDS))
        return {name: value for name, (value,) in zip(names, values, strict=True) if value}


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
