"""Counting what a proxy does for a unit of work: instructions by callgrind, system calls by strace."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.base import Bench, BenchError
from bench.process import free_port, spawn, wait_listening
from bench.units import PATIENCE, Stage, Unit

OPTIONS = ("-q", "--workers", "1", "--busy-poll", "off", "--sandbox", "off", "--buffer-size", "16KiB")
"""One worker that sleeps, no lines, nothing that an instrument may not do, and four reads for a piece of a megabyte."""

LIBRARY = ("workers=1", "busy_poll=off", "buffer_size=16KiB")
"""The same for library_proxy.py."""


@dataclass(frozen=True)
class Build:
    """An installed tcpproxy: by which Python it is run, and which commit it is, if it is not the one here."""

    python: str
    commit: str | None = None


@dataclass(frozen=True)
class Feature:
    """Something that is on. In `options` {directory} is a directory to write in and {port} a free port.

    `library` has arguments of Proxy instead, for what the command has no option for; `units` are those to count;
    `header` is how many bytes of its own the proxy sends upstream on each connection.
    """

    name: str
    options: tuple[str, ...] = ()
    library: tuple[str, ...] = ()
    units: tuple[str, ...] = ("round trip", "connection", "megabyte")
    header: int = 0


@contextlib.contextmanager
def staged(bench: Bench, build: Build, feature: Feature, *instrument: str) -> Iterator[Stage]:
    """Runs the proxy under an instrument."""
    port, extra, errors = free_port(), free_port(), bench.scratch / "counted.err"
    with socket.create_server(("127.0.0.1", 0), backlog=16) as upstream:
        upstream.settimeout(PATIENCE)
        target = f"127.0.0.1:{upstream.getsockname()[1]}"
        argv = ["-m", "tcpproxy", target, "-l", str(port), *OPTIONS]
        argv += [option.format(directory=bench.scratch, port=extra) for option in feature.options]
        if feature.library:
            script = str(Path(__file__).with_name("library_proxy.py"))
            argv = [script, "127.0.0.1", str(port), target, *LIBRARY, *feature.library]
        command = [*instrument, build.python, *argv]
        with spawn(command, errors, stdout=subprocess.DEVNULL, cwd=bench.scratch) as process:
            wait_listening(process, port, errors, PATIENCE)
            stage = Stage(port, process.pid, upstream, extra, feature.header)
            stage.rest()
            yield stage


def _vgdb(stage: Stage, *words: str) -> None:
    argv = ["vgdb", f"--pid={stage.pid}", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise BenchError(f"vgdb: {done.stderr.strip()[-200:]}")


class Instructions:
    """A proxy under callgrind, which is told when to begin to count."""

    def __init__(self, stage: Stage, out: Path) -> None:
        self.stage, self._out, self._dumps = stage, out, 0

    def count(self, once: Unit, times: int) -> tuple[float, float]:
        """Returns the instructions a unit: of the worker's thread, and of all threads."""
        _vgdb(self.stage, "zero")
        for _ in range(times):
            once()
        _vgdb(self.stage, "dump")
        self._dumps += 1
        threads = [by_object(path) for path in self._out.parent.glob(f"{self._out.name}.{self._dumps}-*")]
        if not threads:
            raise BenchError("callgrind wrote nothing")
        worker = max(threads, key=lambda thread: sum(n for name, n in thread.items() if "/_core/engine." in name))
        return worker.total() / times, sum(thread.total() for thread in threads) / times


class Calls:
    """A proxy under strace."""

    def __init__(self, stage: Stage, out: Path) -> None:
        self.stage, self._out = stage, out

    def count(self, once: Unit, times: int) -> tuple[float, float]:
        """Returns the system calls a unit: of the worker's thread, and of all threads."""
        before = self._size()
        for _ in range(times):
            once()
        self._size()
        with self._out.open() as log:
            log.seek(before)
            lines = [line.split(maxsplit=1) for line in log if "resumed>" not in line]
        threads = Counter(thread for thread, _ in lines)
        waits = Counter(thread for thread, call in lines if call.startswith(("epoll_wait(", "epoll_pwait")))
        worker = max(waits, key=lambda thread: waits[thread], default="")
        return threads[worker] / times, threads.total() / times

    def _size(self) -> int:
        """Returns how long the log is when strace has nothing more to write."""
        size, before = self._out.stat().st_size, -1
        while size != before:
            time.sleep(0.01)
            size, before = self._out.stat().st_size, size
        return size


@contextlib.contextmanager
def callgrind(bench: Bench, build: Build, feature: Feature) -> Iterator[Instructions]:
    """Runs the proxy under callgrind."""
    for old in bench.scratch.glob("callgrind.out*"):
        old.unlink()
    out = bench.scratch / "callgrind.out"
    tool = ("valgrind", "-q", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}")
    with staged(bench, build, feature, *tool) as stage:
        yield Instructions(stage, out)


@contextlib.contextmanager
def strace(bench: Bench, build: Build, feature: Feature) -> Iterator[Calls]:
    """Runs the proxy under strace, which is the child here: with -D the process that is started is the proxy."""
    out = bench.scratch / "strace.log"
    with staged(bench, build, feature, "strace", "-D", "-f", "-qq", "-o", str(out)) as stage:
        yield Calls(stage, out)


def by_object(path: Path) -> Counter[str]:
    """Returns the instructions of each shared object in a file of callgrind's."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    current, called = "", False
    for line in path.read_text().splitlines():
        if match := re.match(r"(c?)ob=\((\d+)\)(?: (.*))?$", line):
            if match[3]:
                names[match[2]] = match[3]
            if not match[1]:
                current = names[match[2]]
        elif line.startswith("calls="):
            called = True  # the next line has what the function called took, which is counted where that is
        elif re.match(r"[\d+*-]", line):
            if not called:
                counts[current] += int(line.split()[1])
            called = False
    return counts
