"""The process and the platform under test: descriptors, processor time, memory, limits, and what a platform lacks."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import select
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tcpproxy._core.worker import POLLER

from .peers import reset
from .waiting import TIMEOUT

try:
    import fcntl
    import resource
    import termios
except ImportError:  # empty: see absent() for a test that uses them
    fcntl, resource, termios = map(ModuleType, ("fcntl", "resource", "termios"))


def descriptors() -> int:
    """Open descriptors of this process."""
    if os.name != "posix":
        pytest.skip("needs /dev/fd")
    return len(os.listdir("/dev/fd"))


def socket_links(pid: int) -> list[str]:
    """The open sockets of a process, as /proc names them: socket:[inode]."""
    needs_proc()
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return [link for link in links if link.startswith("socket:")]


def sockets(pid: int | None = None) -> int:
    """How many sockets a process has open, this one by default; unlike `descriptors` without pipes, of which a worker
    keeps a few for later.
    """
    return len(socket_links(pid or os.getpid()))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    needs_proc()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    needs_proc()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


needs_splice = pytest.mark.skipif(
    not sys.platform.startswith("linux") or POLLER == "kqueue", reason="a build without splice, as on macOS and BSD"
)


def absent(error: BaseException) -> str:
    """What a test that failed so has asked of a platform that is not Linux and does not have it; "": nothing like that.

    Only what a test's own code asks for counts: the same mistake in the package is a failure.
    """
    if sys.platform == "linux":
        return ""
    if isinstance(error, pytest.fail.Exception) and "ConnectionResetError" in str(error) and not tells_resets():
        return "news of a reset for a reader who comes later"
    if isinstance(error, FileNotFoundError):
        special = re.match(r"/(proc|sys|dev)/", str(error.filename).replace("\\", "/"))
        return special[0] if special else ""
    if found := re.fullmatch(r"(pass_fds|preexec_fn)( is)? not supported on Windows.*", str(error)):
        return found[1]
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if not last or not Path(last.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]):
        return ""
    if isinstance(error, OSError) and error.errno == errno.ENOPROTOOPT:
        return "such a socket option"
    if isinstance(error, AttributeError) and error.obj in (fcntl, os, resource, select, signal, socket, termios):
        return f"{error.obj.__name__}.{error.name}"
    return ""


@functools.cache
def tells_resets() -> bool:
    """Does recv fail on a connection that was reset before? Under wine it answers with an end of file."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as end:
        reset(listener.accept()[0])
        end.settimeout(TIMEOUT)
        select.select([end], [], [])
        try:
            return bool(end.recv(1))
        except ConnectionResetError:
            return True


def needs(*programs: str) -> None:
    """Skips the test where one of these programs is missing."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs the command {program}")


def needs_proc() -> None:
    """Skips the test where there is no /proc to look at a process.

    Under wine there is one, but it knows processes by other numbers: what it tells, if anything, is about another one.
    """
    if sys.platform != "linux":
        pytest.skip("needs /proc")


def allow_descriptors(count: int) -> None:
    """Lets this process open so many files, or skips the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"only {hard} open files are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def lowest_free_descriptor(pid: int) -> int:
    """The number that the next descriptor of a process will get."""
    needs_proc()
    taken = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def limit_descriptors(pid: int, free: int) -> tuple[int, int]:
    """Leaves a running process so many descriptors more, from now on. Returns its limit before."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(pid) + free, before[1]))
    return before


def tcp_sockets(pid: int) -> Iterator[tuple[int, str]]:
    """(remote port, state) of the TCP sockets in the process's network namespace that are its own."""
    own = set(socket_links(pid))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in own:
            yield int(fields[2].rpartition(":")[2], 16), fields[3]


def sockets_in_state(pid: int, port: int, state: str) -> int:
    """How many of its sockets to that remote port are in the state; 02 is SYN_SENT."""
    return sum(it == (port, state) for it in tcp_sockets(pid))


def connections_to(port: int) -> int:
    """Sockets of this thread's network namespace that are connected to the port, whoever owns them."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return sum(int(line.split()[2].rpartition(":")[2], 16) == port for line in lines)


def private_memory(pid: int) -> int:
    """Bytes of memory that a process has to itself."""
    needs_proc()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def cpu_while_asleep(pid: int, seconds: float) -> float:
    """What a process uses while nothing happens for so long."""
    before = cpu_seconds(pid)
    select.select([], [], [], seconds)
    return cpu_seconds(pid) - before
