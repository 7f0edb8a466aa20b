"""Closes and opens the ports of a proxy, for `down`, `up` and the faults. A part of Proxy."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal

from . import lifetime
from .config.config import Config
from .crew import Crew
from .errors import CANNOT_REFUSE, StartError, UsageError
from .native import Event as Signal
from .network.forwarding import Forwarding, listen
from .text import quoted


class Refusing:
    """The methods that let a proxy refuse clients."""

    config: Config
    _crew: Crew | None
    _forwards: list[Forwarding]
    _given: list[socket.socket] | None
    _stopping: Signal
    _is_down: bool
    _refuses: bool
    _hangs: bool
    _is_closed: bool
    _told = False
    """Has `listening` been reported, since the start or the last `down`?"""

    if TYPE_CHECKING:  # Controls has them

        def kill(self, end: Literal["reset", "close"] = "reset") -> int: ...
        def _flush(self) -> None: ...
        def _announce(self, forwards: list[Forwarding], listeners: list[list[socket.socket]]) -> None: ...
        def _held(self) -> contextlib.AbstractContextManager[Crew | None]: ...

    def down(self, live: Literal["close", "reset", "keep"] = "close") -> contextlib.AbstractContextManager[object]:
        """Refuses new connections, as if no server listened, until `up`. No other process can take the port.

        If it is called before the start, the proxy starts like that.

        Args:
            live: how to end open connections: close and reset as for `kill`; keep: they go on.

        Returns:
            A context manager, which calls `up` unless the proxy was down before.

        Raises:
            UsageError: `live` is none of these, or the proxy accepts from `sockets`: clients would wait in them.
            StartError: the system cannot keep the port; never on Linux.
        """
        if live not in ("close", "reset", "keep"):
            raise UsageError(f"live {quoted(live)} is unknown, expected close, reset or keep")
        if self._given:
            raise UsageError(CANNOT_REFUSE)
        was_down = self._set_down(True)
        if live != "keep":
            self.kill(live)
        return undoing((lambda: None) if was_down else self.up)

    def up(self) -> None:
        """Listens again, after `down`. When it returns, `on_event` has got `listening`, unless a fault still refuses.

        Raises:
            StartError: the port is taken, or there are no descriptors.
        """
        self._set_down(False)
        self._flush()

    def _set_down(self, down: bool) -> bool:
        """Sets whether the proxy is down, and opens or closes the ports. Returns whether it was down before."""
        with self._held() as crew:
            was_down, self._is_down = self._is_down, down
            self._told = self._told and not down  # else each window of `refuse` would report it
            try:
                self._open_or_close(crew)
            except BaseException:
                self._is_down = was_down  # so that an interrupted call can be repeated
                raise
        return was_down

    def _shut(self, crew: Crew | None, kinds: Collection[str]) -> None:
        """Makes the ports refuse clients or hang, as the kinds of faults in force say."""
        hangs = "hang" in kinds
        if hangs != self._hangs:
            if crew:
                crew.hang(hangs)
            for each in self._forwards:  # for later listeners
                each.hang(hangs)
            self._hangs = hangs
        before, self._refuses = self._refuses, "refuse" in kinds
        try:
            self._open_or_close(crew)
        except BaseException:
            self._refuses = before
            with contextlib.suppress(StartError):  # not on Linux: listeners are closed before their port is kept
                self._open_or_close(crew)
            raise

    def _impossible(self) -> dict[str, str]:
        """Returns the kinds of faults that the proxy cannot have, with the reasons."""
        if self._given:
            return {"refuse": CANNOT_REFUSE, "hang": CANNOT_REFUSE.replace("refuse clients", "let clients hang")}
        if not sys.platform.startswith("linux"):
            return {"hang": "this system cannot let clients hang, expected Linux; blackhole accepts, and does no more"}
        if any(it.listener.path for it in self.config.forwards):
            return {"hang": "clients of UNIX sockets cannot hang, expected a proxy that listens on TCP ports only"}
        return {}

    def _open_or_close(self, crew: Crew | None) -> None:
        """Closes the ports if the program (`down`) or a fault (`refuse`) requires it, else opens them."""
        closed = self._is_down or self._refuses
        if crew and closed != self._is_closed and not self._stopping.is_set():
            with lifetime.no_fork:
                if closed:
                    crew.replace_listeners([])
                    self._is_closed = True  # also if a port cannot be kept
                    for each in self._forwards:
                        each.keep()
                else:
                    self._listen_again(crew)
        self._is_closed = closed

    def _listen_again(self, crew: Crew) -> None:
        with contextlib.ExitStack() as stack:
            listeners = [listen(each, stack) for each in self._forwards]
            try:
                crew.replace_listeners(listeners)
                if not self._told:
                    self._announce(self._forwards, listeners)
            except OSError as error:
                raise StartError.because(f"cannot listen again for {self.config.targets}", error) from error


def undoing(undo: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
    """Returns a context manager that calls `undo` when its block is left."""
    stack = contextlib.ExitStack()
    stack.callback(undo)
    return stack
