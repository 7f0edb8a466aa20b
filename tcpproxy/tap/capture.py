"""Capture: writes the bytes that pass to a file, as packets for Wireshark and similar programs."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence

from .._core.capture import TapReader, file_head
from ..errors import StartError, UsageError, describe
from ..text import bytes_text, count, quoted

_PACKAGE = sys.modules[__name__.partition(".")[0]]
"""The package itself, not imported by name: imports must not point upward, and it is loaded already."""

LOOK = 0.05
"""Seconds between two tries to open a named pipe that no program reads yet."""


class Capture:
    """The capture of a proxy. Its numbers are current in every thread.

    Attributes:
        path: the file as it was given, `-` for stdout.
        failure: the OSError that has ended the capture; None: none has.
    """

    def __init__(self, path: str, rotate: int = 0, files: int = 0) -> None:
        self.path = path
        self.failure: OSError | None = None
        self._rotate, self._most = rotate, files
        self._made: collections.deque[str] = collections.deque()  # files of a rotation that are kept
        self._number = 0  # files that were made
        self._fd = -1
        self._head = b""
        self._reader: TapReader | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Capture {self}>"

    def __str__(self) -> str:
        what = f"{count(self.packets, 'packet')} of {count(self.connections, 'connection')}, {bytes_text(self.size)}"
        left_out = count(self.left_out, "connection") if self.left_out else "nothing"
        files = f" in {count(self._number, 'file')}" if self._rotate else ""
        if self._number > len(self._made):
            files += f", {len(self._made):,} of them kept"
        ended = f", ended: {self.failure.strerror}" if self.failure else ""
        return f"{self._name}: {what}{files}{ended}, {left_out} left out"

    @property
    def _name(self) -> str:
        return "stdout" if self.path == "-" else self.path

    @property
    def packets(self) -> int:
        """Packets written."""
        return self._numbers[0]

    @property
    def connections(self) -> int:
        """Connections with packets in the capture."""
        return self._numbers[1]

    @property
    def size(self) -> int:
        """Bytes written, to all files."""
        return self._numbers[2]

    @property
    def left_out(self) -> int:
        """Connections that the capture lacks, wholly or in part, because it has ended before them."""
        return self._numbers[3]

    @property
    def _numbers(self) -> tuple[int, int, int, int, int]:
        return self._reader.captured() if self._reader else (0, 0, 0, 0, 0)

    # --- life ---

    def open(self, waiting: Callable[[str], None]) -> None:
        """Opens the file, before the sandbox forbids it. Waits for the reader of a named pipe. Later calls do nothing.

        Args:
            waiting: called with a sentence if there is no reader yet.

        Raises:
            StartError: the file cannot be opened.
        """
        if self._fd >= 0:
            return
        try:
            self._fd = self._open_next() if self._rotate else self._open(self.path, waiting)
        except (OSError, ValueError) as error:
            raise StartError.because(f"cannot open the capture file {quoted(self.path)}", error) from error

    def _open(self, path: str, waiting: Callable[[str], None]) -> int:
        if path == "-":
            return _stdout()
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISFIFO(os.stat(path).st_mode):
                return self._open_pipe(path, waiting)
        return _make(path)

    def _open_pipe(self, path: str, waiting: Callable[[str], None]) -> int:
        """Opens a named pipe write-only: with O_RDWR we would be a reader, and the pipe would never break."""
        told = False
        while True:
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or self._stopping:
                    raise
            if not told:
                waiting(f"Waiting for a program that reads {path}")
                told = True
            time.sleep(LOOK)

    def _open_next(self) -> int:
        """Makes the next file of a rotation, with a name like those of dumpcap."""
        stem, extension = os.path.splitext(self.path)
        path = f"{stem}_{self._number + 1:05}_{time.strftime('%Y%m%d%H%M%S')}{extension}"
        fd = _make(path)
        self._number += 1
        self._made.append(path)
        if self._most and len(self._made) > self._most:
            with contextlib.suppress(OSError):  # somebody has moved it
                os.unlink(self._made.popleft())
        return fd

    def begin(
        self,
        reader: TapReader,
        listening: str,
        remote: str,
        names: Sequence[tuple[str, Sequence[tuple[bytes, int, int]]]],
    ) -> None:
        """Hands the file to the reader of the taps, which writes it from now on.

        Args:
            reader: does not run yet.
            listening, remote: where the proxy listens and forwards to, as text.
            names: names of targets, each with its known addresses.
        """
        system = f"{os.uname().sysname} {os.uname().release}" if hasattr(os, "uname") else sys.platform
        self._head = file_head(f"tcpproxy {_PACKAGE.__version__}", system, listening, remote, names)
        self._reader = reader
        self._switch(reader)

    def _switch(self, reader: TapReader) -> None:
        status = os.fstat(self._fd)
        position = 0
        if regular := stat.S_ISREG(status.st_mode):
            # Not 0 if a shell has opened the file by `>>`, with O_APPEND.
            position = max(os.lseek(self._fd, 0, os.SEEK_CUR), status.st_size if self.path == "-" else 0)
            if self.path != "-":
                os.ftruncate(self._fd, 0)
        reader.switch(self._fd, regular, position, self._head, self._rotate)

    def follow(self, reader: TapReader, note: Callable[[str], None]) -> None:
        """Runs the reader to its end, in the calling thread. Opens the next files of a rotation.

        Args:
            reader: the one that `begin` got.
            note: called with a sentence that says why the capture has ended.
        """
        while why := reader.run():
            text = "it is full, as asked for"
            if why == "full" and self._most != 1:
                try:
                    self.close()
                    self._fd = self._open_next()
                    self._switch(reader)
                    continue
                except OSError as error:
                    reader.leave(error.errno or errno.EIO)
            elif why == "full":
                reader.leave(0)
            if number := self._numbers[4]:
                text = describe(number)
                self.failure = OSError(number, text, self.path)
            verb = "goes" if self.left_out == 1 else "go"
            rest = f"; {count(self.left_out, 'connection')} {verb} on uncaptured" if self.left_out else ""
            note(f"capture {self._name} ended: {text}{rest}")

    def stop(self) -> None:
        """Makes an `open` that waits fail. From any thread."""
        self._stopping = True

    def close(self) -> None:
        """Closes the file, after the reader has ended; in a forked child, its copy."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _make(path: str) -> int:
    """Opens a file that only its owner may read, because it contains the data of others.

    An existing file is truncated only when the capture begins, because the start may still fail.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags | getattr(os, "O_NOCTTY", 0), 0o600)
    if hasattr(os, "fchmod") and stat.S_ISREG(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # another user owns it, or the file system has no modes
            os.fchmod(fd, 0o600)
    return fd


def _stdout() -> int:
    fd = os.dup(1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(fd, os.O_BINARY)
    return fd


def check_place(path: str) -> None:
    """For the command: checks that the capture goes neither where lines of text go, nor to a terminal on stdout.

    Raises:
        UsageError: it does.
    """
    if path != "-":
        for number, name in ((1, "stdout"), (2, "stderr")):
            if _is_same(path, number):
                raise UsageError(f"capture {quoted(path)} is where {name} goes as well; expected a file of its own")
        return
    if os.isatty(1):
        raise UsageError("capture '-' is stdout, which is a terminal; expected a pipe, as in `... | wireshark -k -i -`")
    if _is_same(1, 2):
        raise UsageError("capture '-' is stdout, where stderr goes as well; expected two places")


def _is_same(place: str | int, descriptor: int) -> bool:
    """Is it the same file, pipe or terminal? Other devices, such as /dev/null, may be used twice."""
    with contextlib.suppress(OSError, ValueError):
        if os.name != "nt" and os.path.samestat(status := os.stat(place), os.fstat(descriptor)):
            return not stat.S_ISCHR(status.st_mode) or os.isatty(descriptor)
    return False
