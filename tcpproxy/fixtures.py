"""ProxyFactory, the value of the fixtures of the pytest plugin: makes started proxies, and stops them at the end."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tcpproxy as package

from .config.endpoints import Remote
from .config.targets import target_of
from .errors import TcpProxyError
from .native import wall
from .proxy import Proxy, check_callback
from .report.event import Event
from .report.fields import timestamp
from .report.sentences import sentence
from .report.sink import LoggingSink
from .report.table import measure, table
from .report.totals import summary
from .rules import NO_RULES
from .tap.recording import Recording
from .text import clean, count

if TYPE_CHECKING:
    from .handles import Handle

EVENTS = 20
"""A report shows the last EVENTS events of a proxy."""

MOST_NAME = 200
"""The most characters of a test's name in the name of its capture file."""

DUMP_LINES = 40
"""The most lines of a recording in a report: half of them from its beginning, half from its end."""


class UnmetError(AssertionError):
    """With `strict`, a fault has acted on no connection."""


class ProxyFactory:
    """Makes started proxies: `tcpproxy(target, **options)`. A context manager, which stops them all.

    Args:
        nodeid: pytest's name of the test; empty for the session.
        seed: the base of each proxy's seed: see `seed_of`.
        captures: the folder for a capture of each proxy; None: no captures.

    Attributes:
        is_over: the test has failed or was skipped, so that `strict` is not checked.
    """

    def __init__(self, nodeid: str, *, seed: int = 0, captures: str | None = None) -> None:
        self._nodeid = nodeid
        self._seed = seed
        self._captures = captures
        self.is_over = False
        self._numbers = itertools.count()
        self._watched: list[_Watched] = []
        self._stack = contextlib.ExitStack()

    def __call__(
        self,
        target: object,
        *,
        strict: bool = False,
        on_event: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> Proxy:
        """Returns a started proxy in front of `target`; it stops after the test.

        Args:
            target: what to forward to: `HOST:PORT`, a URL, (host, port), a port of localhost (a number or text), a
                socket, a server of asyncio, anyio, trio or socketserver, or an object with `server_address`, or with
                `port` and perhaps `host`. It need not listen yet.
            strict: if the test passes, a fault that has acted on no connection is an error.
            on_event: as for Proxy.
            **options: those of Proxy.

        Raises:
            UsageError: `target` has no address to connect to, or an option is invalid.
            StartError: the proxy cannot be started.
        """
        __tracebackhide__ = True  # pytest's traceback ends at the line of the test
        try:
            watched = self._watch(target, on_event, options)
            proxy = watched.proxy.start()
        except (TcpProxyError, TypeError) as error:
            if isinstance(error, TypeError) and not str(error).startswith("Proxy() got"):
                raise
            raise error.with_traceback(None) from None  # the message is enough
        self._stack.callback(lambda: watched.stop(strict=strict and not self.is_over))
        self._watched.append(watched)
        return proxy

    def _watch(self, target: object, on_event: Callable[[Event], None] | None, options: dict[str, Any]) -> _Watched:
        remote = target_of(target)
        number = next(self._numbers)
        if self._captures:
            options.setdefault("capture", self._capture_file(number))
        options.setdefault("seed", seed_of(self._seed, self._nodeid, number))
        return _Watched(remote, on_event, options)

    def __getattr__(self, name: str) -> Any:
        """Raises an error with a hint: a test may mean the module, which has the fixture's name, or a proxy."""
        hint = ""
        if name in (*package.__all__, "faults"):
            hint = f": here `tcpproxy` is the fixture, expected `from tcpproxy import {name}`"
        elif not name.startswith("_") and hasattr(Proxy, name):
            hint = f", but the proxies that it makes have one: `proxy = tcpproxy(target)`, then `proxy.{name}`"
        raise AttributeError(f"the fixture has no {name!r}{hint}", name=name, obj=self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _capture_file(self, number: int) -> str:
        """Returns the path of a proxy's capture; makes its folder. Distinct tests get distinct names."""
        folder = Path(self._captures or ".")
        folder.mkdir(parents=True, exist_ok=True)
        worker = os.environ.get("PYTEST_XDIST_WORKER")  # each process of xdist has its own session
        file, _, test = (self._nodeid or (f"session-{worker}" if worker else "session")).partition("::")
        name = re.sub(r"[^\w.\[\]=-]+", "-", self._nodeid or file)
        if len(name) > MOST_NAME or re.sub(r"[\w.\[\]=-]|::", "", test):  # something of the name is left out
            name = f"{name[:MOST_NAME]}-{zlib.crc32(test.encode(errors='surrogatepass')):08x}"
        return str(folder / f"{name}-{number + 1}.pcapng")

    def describe(self) -> str:
        """Returns a text for a report: proxies, faults, connections, last events, recordings; empty without proxies."""
        test = f" {shlex.quote(self._nodeid)}" if self._nodeid else ""
        again = f"pytest --tcpproxy-seed={self._seed}{test}"
        return "\n\n".join("\n".join(watched.describe(again)) for watched in self._watched)


def seed_of(base: int, nodeid: str, number: int) -> int:
    """Returns the seed of a proxy. It does not depend on the other tests of the run, their order or their processes.

    Args:
        base: the seed of the run.
        nodeid: pytest's name of the test.
        number: how many proxies the test has made before.
    """
    return zlib.crc32(f"{base}\0{nodeid}\0{number}".encode(errors="surrogatepass"))


class _Watched:
    """A proxy whose last events are kept."""

    def __init__(self, remote: Remote, on_event: Callable[[Event], None] | None, options: dict[str, Any]) -> None:
        self._events: collections.deque[Event] = collections.deque(maxlen=EVENTS)
        self._made = wall()
        check_callback(on_event)
        self.proxy = Proxy(remote, on_event=self._keep, **options)
        self._deliver = on_event or LoggingSink()

    def _keep(self, event: Event) -> None:
        self._events.append(event)
        self._deliver(event)

    def stop(self, *, strict: bool) -> None:
        """Stops the proxy, and resets its open connections.

        Raises:
            WorkerError: the proxy has failed before.
            UnmetError: `strict`, and a fault has acted on no connection.
        """
        self.proxy.stop(0)
        if self.proxy.failure:
            raise self.proxy.failure
        counted = [it for it in self.proxy._every_fault if it.fault.kind not in NO_RULES]
        if strict and (idle := [str(it.fault) for it in counted if not it.fired]):
            accepted = count(self.proxy.stats().accepted, "connection")
            met = f"no connection met {' and '.join(idle)}; the proxy has accepted {accepted}"
            raise UnmetError(f"tcpproxy(..., strict=True): {met}")

    def describe(self, again: str) -> list[str]:
        """Returns the lines of a report about this proxy.

        Args:
            again: the command that runs the test with the same seed.
        """
        proxy = self.proxy
        lines = [clean(repr(proxy)), summary(wall() - self._made, proxy.stats())]
        if faults := proxy._every_fault:
            lines += [f"faults, with seed={proxy._seed_text}; again: {again}"]
            lines += [f"  {it.name}: {it.fault}; {_acted(it)}" for it in faults]
        if known := proxy.connections(ended=True):
            lines += [f"  {line}" for line in table(known, measure([], known, 0), None)]
        if events := list(self._events):
            lines += ["last events:"]
            lines += [f"  {timestamp(it.time)} {clean(sentence(it))}" for it in events]
        with contextlib.suppress(RuntimeError):  # nothing is recorded
            lines += [line for recording in proxy.recordings for line in _shown(recording)]
        return lines


def _acted(handle: Handle) -> str:
    if handle.fault.kind in NO_RULES:
        return "whom it has met is not known"
    return f"acted on {count(handle.fired, 'connection')}" if handle.fired else "never acted"


def _shown(recording: Recording) -> list[str]:
    lines = recording.dump().splitlines()
    if len(lines) > DUMP_LINES:
        half = DUMP_LINES // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} lines are not shown ..."]
    return [repr(recording), *(f"  {line}" for line in lines)]
