"""What a proxy costs, read from the kernel: CPU time, memory, system calls, for a process and all its children."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.base import BenchError
from bench.process import end

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
WAITING = {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"}


def tree(pid: int) -> list[int]:
    """Returns the process and its living descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the user and system time of the process, its threads (ended ones too) and its children.

    A living process is read through its CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc/PID/stat has
    ticks of 10 ms. Children that have ended and been waited for are in the stat of their parent only, so there the
    ticks must do; that concerns socat alone, which forks for each connection and uses tens of ticks in a round.
    """
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~process << 3 | 2)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + (int(fields[13]) + int(fields[14])) * TICK


def settle(pid: int | None, quiet: float = 0.03, patience: float = 1.5) -> None:
    """Returns when the proxy has used no CPU time for `quiet` seconds: it has started, or has cleaned up."""
    if pid is None:
        return
    deadline, before = time.monotonic() + patience, -1.0
    while time.monotonic() < deadline:
        now = cpu_seconds(pid)
        if now - before < 0.0005:
            return
        before = now
        time.sleep(quiet)


def memory(pid: int) -> tuple[float, float]:
    """Returns private memory and resident set in bytes, summed over the process and its children.

    Private memory (dirty and clean pages of nobody else) is what a connection adds; it is user memory: socket buffers
    are the kernel's and alike for all. The resident set counts pages that several processes share once for each.
    """
    private = resident = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("Private_Clean", "Private_Dirty"):
                    private += int(rest.split()[0]) * 1024
                elif name == "Rss":
                    resident += int(rest.split()[0]) * 1024
    return float(private), float(resident)


def _untraced(pid: int, tracer: int) -> bool:
    """Tell whether a thread of the processes is not yet traced by `tracer`."""
    for process in tree(pid):
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                if f"TracerPid:\t{tracer}\n" not in (task / "status").read_text():
                    return True
    return False


@contextlib.contextmanager
def system_calls(pid: int, scratch: Path) -> Iterator[dict[str, int]]:
    """Counts the proxy's system calls during the block with strace; the dict is filled when the block has ended."""
    counts: dict[str, int] = {}
    out = scratch / "strace.out"
    attach = [argument for process in tree(pid) for argument in ("-p", str(process))]
    strace = subprocess.Popen(
        ["strace", "-q", "-f", "-c", "-o", str(out), *attach],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 10
        while _untraced(pid, strace.pid):
            if strace.poll() is not None or time.monotonic() > deadline:
                raise BenchError("strace could not attach")
            time.sleep(0.01)
        yield counts
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
    except subprocess.TimeoutExpired as stuck:
        raise BenchError("strace did not detach") from stuck
    finally:
        if strace.stderr:
            strace.stderr.close()
        end(strace)
    for line in out.read_text().splitlines():
        # "% time  seconds  usecs/call  calls  [errors]  syscall", with rules and a total around them
        match = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z_]\w*)$", line)
        if match and match[2] != "total":
            counts[match[2]] = int(match[1])
