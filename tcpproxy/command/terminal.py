"""The terminal while a view uses all of it: the alternate screen, single keys, and how both are restored.

A terminal may block for ever (Ctrl-S, a connection that hangs), but signals must still have their effect. So nothing
here waits for the terminal: bytes that it does not take are kept, and the next picture waits until it has taken them.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from typing import Any

try:
    import termios
except ImportError:  # Windows, where the view is refused
    termios = None  # type: ignore[assignment]

ENTER = b"\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE = b"\x1b[0m\x1b[?25h\x1b[?1049l"
HOME = b"\x1b[H"
CANCEL = b"\x18"
"""Cancels an escape sequence of which the terminal has only the first part."""

KEYS = {
    **{b"A": "up", b"B": "down", b"5~": "page up", b"6~": "page down"},
    **dict.fromkeys((b"H", b"1~", b"7~"), "home"),
    **dict.fromkeys((b"F", b"4~", b"8~"), "end"),
}
"""Names of keys, by the ends of their escape sequences."""

LAST_WAIT = 500
"""Milliseconds that `leave` waits for a terminal that takes nothing."""


class Terminal:
    """A terminal that shows pictures and reads keys.

    Args:
        screen, keyboard: descriptors. Keys are read if the second one is a terminal.
    """

    def __init__(self, screen: int = 1, keyboard: int = 0) -> None:
        self.screen, self.keyboard = screen, keyboard
        self.has_keys = os.isatty(keyboard)
        self.entered = False
        self.pending = b""
        """Bytes that the terminal has not taken yet."""
        self._modes: list[Any] | None = None
        self._unread = b""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; 80 and 24 if they are unknown."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(self.screen)
            if columns and lines:
                return columns, lines
        return 80, 24

    @property
    def is_ours(self) -> bool:
        """Is the process in the foreground? Only then may it draw on the terminal, and read from it."""
        try:
            return os.tcgetpgrp(self.screen) == os.getpgrp()
        except OSError:
            return True  # no job control: it is not the controlling terminal

    def enter(self) -> None:
        """Switches to the alternate screen, and to single keys without echo. Ctrl-C and Ctrl-Z remain signals."""
        self.entered = True
        if self.has_keys:
            with contextlib.suppress(termios.error):
                self._modes = termios.tcgetattr(self.keyboard)
                modes = termios.tcgetattr(self.keyboard)
                modes[3] &= ~(termios.ICANON | termios.ECHO)
                modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
                termios.tcsetattr(self.keyboard, termios.TCSANOW, modes)  # not TCSADRAIN: it may block
        self.pending = ENTER

    def leave(self) -> None:
        """Restores the terminal. Resumes a terminal that is stopped (Ctrl-S), which would keep the last picture."""
        if not self.entered:
            return
        self.entered = False
        if self._modes:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self.keyboard, termios.TCSANOW, self._modes)
            self._modes = None
        self.pending = CANCEL * bool(self.pending) + LEAVE
        if not self._takes(0):
            self._go_on()
        while self.pending and self._takes(LAST_WAIT):
            self.flush()
        self.pending = b""

    def forget(self) -> None:
        """To be called when another program has used and restored the terminal: the next picture needs an `enter`."""
        self.entered, self.pending = False, b""

    def show(self, picture: bytes) -> None:
        """Draws over the last picture. To be called when `pending` is empty."""
        self.pending += HOME + picture
        self.flush()

    def flush(self) -> None:
        """Writes as much as the terminal takes now."""
        blocking = os.get_blocking(self.screen)
        try:
            os.set_blocking(self.screen, False)  # not for longer than the call: other programs share this setting
            self.pending = self.pending[os.write(self.screen, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone
            self.pending = b""
        finally:
            os.set_blocking(self.screen, blocking)

    def keys(self) -> list[str]:
        """The keys that were pressed: a character, or a name of KEYS."""
        try:
            data = os.read(self.keyboard, 1024)
        except OSError:
            data = b""
        if not data:
            self.has_keys = False  # the keyboard is gone
        found = re.findall(rb"\x1b[\[O][0-9;]*[A-Za-z~]|\x1b[\[O][0-9;]*\Z|\x1b\Z|.", self._unread + data, re.DOTALL)
        self._unread = found.pop() if found and re.fullmatch(rb"\x1b([\[O][0-9;]*)?", found[-1]) else b""
        return [KEYS.get(key[2:], "") if len(key) > 1 else key.decode("latin-1") for key in found]

    def _go_on(self) -> None:
        """Ends the effect of Ctrl-S. tcflow(TCOON) would end only that of tcflow(TCOOFF)."""
        with contextlib.suppress(termios.error):
            modes = termios.tcgetattr(self.screen)
            termios.tcsetattr(self.screen, termios.TCSANOW, [modes[0] & ~termios.IXON, *modes[1:]])
            termios.tcsetattr(self.screen, termios.TCSANOW, modes)

    def _takes(self, milliseconds: int) -> bool:
        poll = select.poll()
        poll.register(self.screen, select.POLLOUT)
        return bool(poll.poll(milliseconds))
