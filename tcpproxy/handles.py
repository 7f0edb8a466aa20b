"""The faults of a proxy that are in force: to install, change and remove them, and what they have done."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from . import awaiting
from ._core.rulebook import DICE, MOST_RULES, Rulebook
from .errors import StartError, UsageError, WaitTimeout
from .faults import Fault, named
from .native import Event, Thread, make_thread, monotonic, this_thread
from .rules import ALL, NO_RULES, Installed, rule
from .text import quoted
from .values import parse_limit, parse_number

if TYPE_CHECKING:
    from .crew import Crew

Some = Fault | str | Iterable[Fault | str]
Held = Callable[[], contextlib.AbstractContextManager["Crew | None"]]

TRY_AGAIN = 0.1
"""Seconds between two tries to open or close a window, when there are no descriptors or no memory."""

KNOWN = 1000
"""Connections that a handle knows by their ids: the last ones."""

MOST_KNOWN = 1_000_000
"""Connections of which the faults are remembered; as many as can be alive."""


class _Entry:
    """A fault that is in force, or was."""

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.connections: collections.deque[int] = collections.deque(maxlen=KNOWN)
        self.fired = 0
        """Once it is removed."""
        self.begun = 0.0
        """When it was put in force; 0: the proxy has not started."""

    def window(self, now: float) -> tuple[bool, float]:
        """Is it open, and when does that change?"""
        is_open, change = window(self.installed.fault, now - self.begun if self.begun else 0.0)
        return is_open, self.begun + change if self.begun else math.inf


class _Now(NamedTuple):
    """What is in force. Replaced as a whole, so that who reads it needs no lock."""

    entries: dict[str, _Entry]
    """By name."""
    rulebook: Rulebook
    """Their rules, in the same order, of those that have one."""

    def faults(self) -> dict[str, Fault]:
        return {name: it.installed.fault for name, it in self.entries.items()}

    def fired(self) -> Iterator[tuple[_Entry, int]]:
        """Each with a rule, and on how many connections it has acted."""
        return zip(_with_rules(self.entries), self.rulebook.fired(), strict=True)

    def keep_fired(self) -> None:
        """Remembers that of those which are removed."""
        for it, fired in self.fired():
            it.fired = fired


def _with_rules(entries: dict[str, _Entry]) -> list[_Entry]:
    return [it for it in entries.values() if it.installed.fault.kind not in NO_RULES]


class Faults:
    """The faults of a proxy.

    Args:
        held: holds the proxy's lock, and gives its crew; None: it has none (yet).
        shut: is told the crew and which kinds of NO_RULES are in force: ports refuse clients then, or let them hang.
        faults: those that are in force from the start.
        seed: of the dice; None: a random one.
        impossible: why the proxy cannot have faults of these kinds.
        warn: called with a sentence when a window cannot open or close.
        is_over: whether the proxy has ended.

    Raises:
        UsageError: a fault is invalid, or two contradict each other.

    Attributes:
        seed: of the dice.
    """

    def __init__(
        self,
        held: Held = lambda: contextlib.nullcontext(None),
        shut: Callable[[Crew | None, Collection[str]], None] = lambda crew, kinds: None,
        faults: Some = (),
        seed: int | None = None,
        impossible: Mapping[str, str] = {},
        warn: Callable[[str], object] = str,
        is_over: Callable[[], bool] = bool,
    ) -> None:
        self._impossible, self._warn, self._is_over = impossible, warn, is_over
        self.seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self._held, self._shut = held, shut
        self._change_at = math.inf
        self._changed, self._over = Event(), False
        self._thread: Thread | None = None
        self._keys = 0
        self._now = _Now({}, Rulebook([]))
        self._by_key: dict[int, _Entry] = {}  # also of faults that were removed, whose events may still come
        self._acted: dict[int, list[str]] = {}  # names, by the id of a live connection
        if faults:
            self._install(faults, None)

    # --- changes ---

    def install(self, faults: Some) -> Handle:
        """Puts faults in force, all at once."""
        with self._held() as crew:
            return self._install(faults, crew)

    def _install(self, faults: Some, crew: Crew | None) -> Handle:
        new = {}
        if crew:
            crew.accept_waiting()  # those who have connected before are live
        since = crew.last_id() if crew else 0
        if not isinstance(faults, Iterable) or isinstance(faults, bytes):
            raise UsageError(f"faults {quoted(faults)} are no faults, expected them or texts like latency=100ms")
        for name, fault in named([faults] if isinstance(faults, str | Fault) else faults, self._now.faults()).items():
            if why := self._impossible.get(fault.kind):
                raise UsageError(why)
            self._keys += 1
            new[name] = _Entry(Installed(fault, name, self._keys, since))
        keys = {it.installed.key: it for it in new.values()}
        self._by_key |= keys  # before there are events
        for it in new.values():
            it.begun = monotonic() if crew else 0.0
        try:
            self._set(self._now.entries | new, crew)
        except BaseException:
            for key in keys:
                del self._by_key[key]
            raise
        self._forget_some()
        return Handle(self, tuple(new.values()))

    def _forget_some(self) -> None:
        """Forgets those that were removed long ago."""
        in_force = {it.installed.key for it in self._now.entries.values()}
        gone = [key for key in self._by_key if key not in in_force]
        for key in gone[:-KNOWN]:
            del self._by_key[key]

    def update(self, entry: _Entry, changes: dict[str, Any]) -> None:
        """Puts a fault in force with other values."""
        if "name" in changes:
            raise UsageError(f"fault {entry.installed.name} has a name of its own already, expected other attributes")
        with self._held() as crew:
            before = entry.installed
            if self._now.entries.get(before.name) is not entry:
                raise UsageError(f"fault {before.name} is not in force any more")
            fault = dataclasses.replace(before.fault, **changes)
            others = self._now.faults()
            del others[before.name]
            named([dataclasses.replace(fault, name=before.name)], others)
            entry.installed = dataclasses.replace(before, fault=fault)
            try:
                self._set(self._now.entries, crew)
            except BaseException:
                entry.installed = before
                raise

    def remove(self, gone: Collection[_Entry] | None = None) -> None:
        """Removes faults, all at once; None: all that there are. Nothing happens to those that were removed before."""
        with self._held() as crew:
            before = self._now
            left = {name: it for name, it in before.entries.items() if gone is not None and it not in gone}
            if len(left) < len(before.entries):
                before.keep_fired()  # for who reads it meanwhile
                self._set(left, crew)
                before.keep_fired()

    def _set(self, entries: dict[str, _Entry], crew: Crew | None) -> None:
        """Puts these in force in place of those before."""
        if len(entries) > MOST_RULES:
            raise UsageError(f"{len(entries)} faults are too many, expected {MOST_RULES} at most")
        now = monotonic()
        rulebook = Rulebook([self._rule(it, now) for it in _with_rules(entries)], self._now.rulebook)
        windows = [it.window(now) for it in entries.values()]
        kinds = {it.installed.fault.kind for it in entries.values() if it.window(now)[0]}
        self._shut(crew, kinds.intersection(NO_RULES))  # first: the system may refuse it, and then nothing has changed
        if crew:
            crew.bend(rulebook)
        self._now = _Now(entries, rulebook)
        self._change_at = min(change for _, change in windows) if windows else math.inf
        if self._change_at < math.inf and not self._thread:
            self._thread = make_thread("tcpproxy-faults", self._open_and_close)
            self._thread.start()
        self._changed.set()

    def _rule(self, entry: _Entry, now: float) -> dict[str, int]:
        """Outside its window the rule takes no connection, and what it has done is remembered."""
        found = rule(entry.installed, self.seed)
        return found if entry.window(now)[0] else {**found, "share": 0}

    # --- windows ---

    def begin(self, crew: Crew) -> None:
        """The proxy starts."""
        for it in self._now.entries.values():
            it.begun = monotonic()
        self._set(self._now.entries, None)
        crew.begin_with(self._now.rulebook)

    def end(self) -> None:
        """The proxy stops. From any thread."""
        self._over = True
        self._changed.set()

    def join(self, timeout: float) -> None:
        """Waits for the thread of the windows, which may have to wait for a verb."""
        if self._thread and self._thread.ident not in (None, this_thread()):
            self._thread.join(timeout)

    def _open_and_close(self) -> None:
        """The thread that opens and closes windows, once there is one with an edge."""
        warned = False
        while not self._over:
            changed = self._changed = Event()  # before the look at what it is set for
            wait = self._change_at - monotonic()
            if self._over:
                return
            if wait > 0:
                changed.wait(min(wait, TIMEOUT_MAX))
                continue
            with self._held() as crew:
                if not crew:  # the start has failed
                    return
                try:
                    self._set(self._now.entries, crew)
                    warned = False
                    continue
                except (StartError, OSError, MemoryError) as error:
                    if not warned:
                        self._warn(f"{error}; it is tried again")
                    warned = True
            changed.wait(TRY_AGAIN)

    # --- seeing ---

    @property
    def handles(self) -> tuple[Handle, ...]:
        """Of those that are in force, in the order in which they were installed."""
        return tuple(Handle(self, (it,)) for it in self._now.entries.values())

    @property
    def every(self) -> tuple[Handle, ...]:
        """Also of those that were removed, as far as they are known."""
        return tuple(Handle(self, (it,)) for it in list(self._by_key.values()))

    @property
    def seed_text(self) -> str:
        """The seed, and which dice it is for."""
        return f"{self.seed} (dice {DICE})"

    def end_of(self, some: Collection[_Entry]) -> str:
        """Why they act no more; empty: they may."""
        if self._is_over():
            return "before the proxy ended"
        entries = self._now.entries
        return "" if any(entries.get(it.installed.name) is it for it in some) else "before it was removed"

    def fired(self, entry: _Entry) -> int:
        """On how many connections a fault has acted."""
        return next((fired for it, fired in self._now.fired() if it is entry), entry.fired)

    def note(self, number: int, key: int) -> str:
        """A fault has acted on a connection. Returns its name. Called by the log thread alone, as `forget`."""
        entry = self._by_key.get(key)
        if not entry:
            return ""
        entry.connections.append(number)
        self._acted.setdefault(number, []).append(entry.installed.name)
        if len(self._acted) > MOST_KNOWN:  # the end of some was lost
            self._acted.pop(next(iter(self._acted)))
        return entry.installed.name

    def acted(self, number: int, keys: Iterable[int]) -> tuple[str, ...]:
        """The names of the faults that have acted on a live connection.

        Args:
            number: its id.
            keys: of those in force that have, perhaps a moment ago: the log thread may not have heard of that yet.
        """
        now = [it.installed.name for key in keys if (it := self._by_key.get(key))]
        return tuple(dict.fromkeys([*self._acted.get(number, ()), *now]))

    def forget(self, number: int) -> tuple[str, ...]:
        """A connection is over. Returns the names of the faults that have acted on it."""
        return tuple(self._acted.pop(number, ()))


class Handle:
    """One or several faults that were put in force together. A context manager: leaving it removes them.

    `handle[0]` is that of the first one alone.
    """

    def __init__(self, faults: Faults, entries: tuple[_Entry, ...]) -> None:
        self._faults, self._entries = faults, entries

    def __repr__(self) -> str:
        return f"<Handle {', '.join(it.installed.name for it in self._entries)}>"

    def __getitem__(self, number: int) -> Handle:
        return Handle(self._faults, (self._entries[number],))

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    @property
    def name(self) -> str:
        """Of the first one."""
        return self._entries[0].installed.name

    @property
    def fault(self) -> Fault:
        """The first one, as it is now."""
        return self._entries[0].installed.fault

    @property
    def fired(self) -> int:
        """On how many connections they have acted: held, cut or discarded something. Of several: the sum."""
        return sum(map(self._faults.fired, self._entries))

    @property
    def connections(self) -> tuple[int, ...]:
        """The ids of the connections on which they have acted: of each fault the last 1,000."""
        return tuple(dict.fromkeys(number for it in self._entries for number in it.connections.copy()))

    def update(self, **changes: Any) -> None:
        """Changes attributes of a fault. Both directions of all connections have them when it returns.

        Connections that the fault has taken keep it, with the position and time from which on it acts.

        Raises:
            UsageError: a value is invalid, or the name; the fault was removed; or the handle is that of several.
        """
        if len(self._entries) != 1:
            raise UsageError(f"{len(self._entries)} faults cannot be updated at once, expected handle[0] or the like")
        self._faults.update(self._entries[0], changes)

    def remove(self) -> None:
        """Removes the faults. What they hold goes on, in order. To repeat it does no harm.

        Raises:
            StartError: behind `refuse`, nobody can listen again; nothing has changed.
        """
        self._faults.remove(self._entries)

    def wait_fired(self, n: int = 1, timeout: float | str | None = 5.0) -> None:
        """Waits until they have acted on `n` connections.

        Args:
            n: how many.
            timeout: seconds or a text like `250ms`; None: for ever.

        Raises:
            WaitTimeout: not in this time, or they were removed or the proxy has ended without it.
            UsageError: the timeout is no duration, or `n` no number.
        """
        __tracebackhide__ = True
        awaiting.poll(self._looking(n, timeout))

    async def wait_fired_async(self, n: int = 1, timeout: float | str | None = 5.0) -> None:
        """`wait_fired` without blocking the event loop."""
        __tracebackhide__ = True
        await awaiting.poll_async(self._looking(n, timeout))

    def _looking(self, n: int, timeout: float | str | None) -> Callable[[], int | None]:
        """What looks whether they have fired so often: on how many, or None; raises once the time is over."""
        n = parse_number("n", n, 0, ALL)
        limit = parse_limit("timeout", timeout)
        deadline = monotonic() + limit

        def look() -> int | None:
            __tracebackhide__ = True
            end = self._faults.end_of(self._entries)  # before the number: later it does not change
            fired = self.fired
            if fired >= n:
                return fired
            if end or monotonic() >= deadline:
                names = ", ".join(it.installed.name for it in self._entries)
                raise WaitTimeout(f"not {end or f'within {limit:g} s'}: {names} fired on {fired} of {n} connections")
            return None

        return look


def window(fault: Fault, time: float) -> tuple[bool, float]:
    """Is a fault in force so many seconds after it was put in force, and when does that change? inf: never."""
    start, length, every = map(_seconds, (fault.start, fault.for_, fault.repeat))
    since = time - (start or 0.0)
    if since < 0:
        return False, start or 0.0
    if length is None:
        return True, math.inf
    base = time - since
    if every:
        base += since // every * every
        since = time - base
    if since < length:
        return True, base + length
    return False, base + every if every else math.inf


def _seconds(time: object) -> float | None:
    return time.total_seconds() if isinstance(time, timedelta) else None
