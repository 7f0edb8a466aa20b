"""The live view: when it is updated and drawn, and what keys and signals do. `top` formats it."""

from __future__ import annotations

import collections
import os
import select
import signal
import socket
from collections.abc import Callable

from ..config.config import Config
from ..errors import UsageError
from ..native import monotonic
from ..proxy import Proxy
from ..report.kept import KeptLines
from ..report.printer import final_lines
from ..report.table import measure
from ..views import Connection, Stats
from .inherited import VIEWING, nothing
from .picture import PERIOD, SORTS, Picture
from .signals import QUIT, STARTED
from .terminal import Terminal

OVER = 2.0
"""A rate is the mean over this many seconds."""

HISTORY = 60
"""The bars show the total rates of the last HISTORY seconds."""

FADE = 5.0
"""Seconds for which a connection that has ended is shown."""


def check(config: Config) -> None:
    """Raises UsageError if the view is not possible."""
    name, log_format = config.labels["top"], config.labels["log_format"]
    others = {
        f"{log_format} json": config.output.log_format == "json",
        "-x": config.seeing.hex,
        "-A": config.seeing.text,
    }
    for other in (other for other, given in others.items() if given):
        raise UsageError(f"{name} and {other} are both given, expected one of them")
    if os.name == "nt":
        raise UsageError(f"{name} is not available on Windows, expected {log_format} json for a program that shows it")
    if not os.isatty(1) or os.environ.get("TERM", "") in ("dumb", "unknown"):
        what = "stdout is none" if not os.isatty(1) else f"TERM says {os.environ['TERM']!r}"
        raise UsageError(
            f"{name} needs a terminal to draw on, and {what}; {log_format} json is for programs, and the signal "
            "SIGUSR1 shows the live connections once"
        )
    try:
        from . import top  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("rich"):
            raise
        raise UsageError(f"{name} needs rich, which is not installed: pip install 'tcpproxy[top]'") from None


def show(proxy: Proxy, kept: KeptLines) -> View:
    """Returns the view of a proxy, painted by `top`."""
    from . import top

    return View(proxy, kept, top.Painter().paint, top.page)


class View:
    """Shows a proxy on the terminal until `close`; the main thread waits in `next`.

    Args:
        proxy: what to show.
        kept: keeps the lines of its log.
        paint: returns the bytes that draw a picture on a terminal, from the picture, columns and lines.
        page: returns how many connections fit on the screen, from the picture and lines.
    """

    def __init__(
        self,
        proxy: Proxy,
        kept: KeptLines,
        paint: Callable[[Picture, int, int], bytes],
        page: Callable[[Picture, int], int],
    ) -> None:
        self._proxy, self._kept, self._paint, self._page = proxy, kept, paint, page
        self._terminal = Terminal()
        self.picture = Picture(("", proxy.config.targets), proxy.stats(), keys=self._terminal.has_keys)
        self._looks: collections.deque[tuple[float, Stats, list[Connection]]] = collections.deque()
        self._since = self._due = 0.0
        self._started = self._changed = False

    def next(self, reader: socket.socket) -> int:
        """Shows pictures until there is something else to do.

        Args:
            reader: gets a byte for each signal, STARTED once the proxy listens, and 0 when it has ended.

        Returns:
            A byte from `reader` that is not for the view; QUIT for the key `q`.
        """
        while True:
            self._draw()
            terminal = self._terminal
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            if terminal.entered and terminal.has_keys and terminal.is_ours:
                poll.register(terminal.keyboard, select.POLLIN)
            if terminal.pending:
                poll.register(terminal.screen, select.POLLOUT)
            rest = max(0.0, self._due - monotonic()) if self._started else None
            ready = dict(poll.poll(None if rest is None else rest * 1000 + 1))
            if terminal.screen in ready:
                terminal.flush()
            for key in terminal.keys() if terminal.keyboard in ready else ():
                if key == "q":
                    return QUIT
                self._press(key)
            if reader.fileno() in ready and not self._obey(number := reader.recv(1)[0]):
                return number

    def close(self) -> None:
        """Restores the terminal, and prints recent lines about trouble there. May be called any number of times."""
        self._terminal.leave()
        final_lines(self._kept.release())

    def _obey(self, number: int) -> bool:
        """Handles a byte that is for the view. False: it is for the caller of `next`."""
        if number == STARTED:
            self._started, self._since = True, monotonic()
        elif number not in [getattr(signal, name) for name in VIEWING]:
            return False
        elif number in (signal.SIGTSTP, signal.SIGQUIT):
            self._terminal.leave()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)  # for SIGTSTP it returns after the shell has continued the process
            signal.signal(number, nothing)
        elif number == signal.SIGCONT:  # perhaps after a SIGSTOP, when another program has used the terminal
            self._terminal.leave()
        self._changed = True
        return True

    def _press(self, key: str) -> None:
        """Handles a key."""
        picture, page = self.picture, self._page(self.picture, self._terminal.size[1])
        self._changed = True
        moves = {"up": -1, "down": 1, "page up": -page, "page down": page}
        far = len(picture.connections)
        moves |= {"home": -far, "end": far}
        if key in moves:
            picture.first = max(0, min(picture.first + moves[key], far - page))
        elif key == " ":
            picture.paused = not picture.paused
            self._due = 0.0
        elif key == "?":
            picture.help = not picture.help
        elif key == "s":
            names = list(SORTS)
            picture.order, picture.reverse = names[(names.index(picture.order) + 1) % len(names)], False
            picture.sort()
        elif key == "S":
            picture.reverse = not picture.reverse
            picture.sort()

    def _draw(self) -> None:
        if not self._started:
            return
        terminal, now = self._terminal, monotonic()
        if not terminal.is_ours:  # in the background, after a SIGSTOP or started with `&`
            terminal.forget()
            self._due = now + PERIOD
            return
        if now >= self._due:
            if not self.picture.paused:
                self._look(now)
            self._due = now + self.picture.period
            self._changed = True
        if not terminal.entered:
            terminal.enter()
            self._changed = True
            terminal.flush()
        if self._changed and not terminal.pending:
            self._changed = False
            terminal.show(self._paint(self.picture, *terminal.size))

    def _look(self, now: float) -> None:
        """Brings the picture up to date."""
        picture, stats, connections = self.picture, self._proxy.stats(), self._proxy.connections()
        while len(self._looks) > 1 and now - self._looks[0][0] > OVER + PERIOD / 2:
            self._looks.popleft()
        then, old, before = self._looks[0] if self._looks else (now, stats, [])
        picture.rates = measure(before, connections, now - then)
        picture.rate = _rate(old, stats, now - then)
        if self._looks:
            last, old, _ = self._looks[-1]
            picture.history += [_rate(old, stats, now - last)] * min(HISTORY, max(1, round(now - last)))
            del picture.history[:-HISTORY]
        self._looks.append((now, stats, connections))
        names = [name for each in self._proxy._forwards if each.port for name in each.port.names]
        picture.route = (", ".join(names), picture.route[1])
        picture.up, picture.stats, picture.connections = now - self._since, stats, connections
        picture.ended, picture.lines = self._proxy._over(FADE), self._kept.lines()
        picture.first = max(0, min(picture.first, len(connections) - self._page(picture, self._terminal.size[1])))
        picture.sort()


def _rate(old: Stats, new: Stats, apart: float) -> tuple[float, float]:
    apart = max(apart, 1e-6)
    return (
        (new.bytes_to_upstream - old.bytes_to_upstream) / apart,
        (new.bytes_to_client - old.bytes_to_client) / apart,
    )
