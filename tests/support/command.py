"""The `tcpproxy` command and other programs as processes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import needs
from .waiting import TIMEOUT, eventually

RUN = ("-m", "tcpproxy")
if os.name == "nt":
    # Ctrl-C reaches all processes of a console: each command has its own, and types it itself for a byte on stdin.
    RUN = (
        "-c",
        """if True:
        import ctypes, os, runpy, sys, threading
        def type_ctrl_c():
            while os.read(0, 1):
                ctypes.windll.kernel32.GenerateConsoleCtrlEvent(0, 0)
        threading.Thread(target=type_ctrl_c, daemon=True).start()
        runpy.run_module("tcpproxy", run_name="__main__")""",
    )

SUMMARY = re.compile(
    r"[\d.]+ (ms|s|min|h|d)( \d+ (s|min|h))?: [\d,]+ connections?(, .+)?; .+ to upstream, .+ to clients"
)
"""The line about all connections."""


class Command:
    """The `tcpproxy` command as a process. Lines of stdout and stderr are read as they come."""

    def __init__(self, *args: str, wrapper: tuple[str, ...] = (), **popen: object) -> None:
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        argv = [*wrapper, sys.executable, *RUN, *args]
        if os.name == "nt":
            popen = {"stdin": subprocess.PIPE, "creationflags": subprocess.CREATE_NEW_CONSOLE, **popen}
        # Away from the source tree, so that the installed package runs.
        self.process = subprocess.Popen(argv, cwd="/", **popen)  # type: ignore[call-overload]
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = []
        for stream, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr)):
            if stream:
                reader = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
                reader.start()
                self._readers.append(reader)

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.decode().rstrip("\r\n"))

    @property
    def complaints(self) -> list[str]:
        """What it said on stderr, but for the line that says what a stop waits for, and the last one of -d."""
        return [line for line in self.stderr if not line.startswith("Stopping: ") and not SUMMARY.fullmatch(line)]

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it has said so."""
        prefix = "Listening on "
        eventually(lambda: self.stdout or self.process.poll() is not None, TIMEOUT, "no line on stdout")
        assert self.stdout, f"it ended: {self.stderr}"
        assert self.stdout[0].startswith(prefix), self.stdout
        host, _, port = self.stdout[0].removeprefix(prefix).rpartition(":")
        return host.strip("[]"), int(port)

    def signal(self, number: signal.Signals) -> None:
        if os.name == "nt":
            if number != signal.SIGINT:
                pytest.skip(f"this platform has no {number.name} for another process")
            self.process.stdin.write(b"c")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        else:
            self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Its exit code, once it has ended and all its output was read."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def end(self) -> None:
        """Ends it, whatever state it is in."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, AttributeError):  # there is no SIGCONT on Windows
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


@contextlib.contextmanager
def frozen(process: Command) -> Iterator[None]:
    """All that happens in the block comes to the process in one batch, after it."""
    process.signal(signal.SIGSTOP)
    eventually(lambda: Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    yield
    process.signal(signal.SIGCONT)


def proxy_threads() -> list[str]:
    """Wait for their end: `stop` waits no longer than 3 s for the log thread, which may be stuck in a callback."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tcpproxy")]


def run(program: str, *args: str, within: float = 30) -> subprocess.CompletedProcess[str]:
    # Away from the source tree, so that the installed package runs. Every warning is an error on stderr.
    argv = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *args]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=within)


def strace(*options: str) -> tuple[str, ...]:
    """What to put before a command to run it under strace; the process is the command, not strace."""
    needs("strace")
    return ("strace", "-D", "-f", "-qq", *options)


def python(code: str) -> tuple[str, ...]:
    """A wrapper that runs some Python and then the command, in the same process."""
    return (sys.executable, "-c", f"import os, signal, sys\n{code}\nos.execv(sys.argv[1], sys.argv[1:])")


def namespace(*args: str) -> tuple[str, ...]:
    """A wrapper that runs the command under `unshare` with these arguments, or skips the test."""
    needs("unshare", "mount")
    kinds = [arg for arg in args if arg.startswith("-")][:1]
    if subprocess.run(["unshare", *kinds, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a namespace")
    return (str(shutil.which("unshare")), *args)
