"""The faults in force in a proxy: installs, changes and removes them, and counts what they have done."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, NamedTuple

from ._core.rulebook import DICE, MOST_RULES, Rulebook
from .errors import StartError, UsageError
from .faults import Fault
from .handles import KNOWN, Entry, Handle
from .native import Event, Thread, make_thread, monotonic, this_thread
from .rules import NO_RULES, Installed, named, rule
from .text import quoted

if TYPE_CHECKING:
    from .crew import Crew

Some = Fault | str | Iterable[Fault | str]
Held = Callable[[], contextlib.AbstractContextManager["Crew | None"]]

TRY_AGAIN = 0.1
"""Seconds until a window that could not open or close, for lack of descriptors or memory, is tried again."""

MOST_KNOWN = 1_000_000
"""The most connections whose faults are remembered; no more can be alive."""


LOOK_AGAIN = 0.01
"""Seconds between two checks of all connections against a shared limit that new clients keep finding reached."""


class _Now(NamedTuple):
    """The faults in force. It is replaced as a whole, so that readers need no lock."""

    entries: dict[str, Entry]
    """The faults, by name."""
    rulebook: Rulebook
    """The rules of the faults that have one, in the same order."""

    def faults(self) -> dict[str, Fault]:
        return {name: it.installed.fault for name, it in self.entries.items()}

    def fired(self) -> Iterator[tuple[Entry, int]]:
        """Returns each fault that has a rule, with the number of connections on which it has acted."""
        return zip(_with_rules(self.entries), self.rulebook.fired(), strict=True)

    def keep_fired(self) -> None:
        """Stores the numbers of `fired` in the faults, because they are lost when a fault is removed."""
        for it, fired in self.fired():
            it.fired = fired


def _with_rules(entries: dict[str, Entry]) -> list[Entry]:
    return [it for it in entries.values() if it.installed.fault.kind not in NO_RULES]


class Faults:
    """The faults of a proxy.

    Args:
        held: a context that holds the proxy's lock, and has the crew as value; None: there is no crew.
        shut: called with the crew and the kinds of NO_RULES that are in force; applies these to the ports.
        faults: the faults in force from the start.
        seed: the seed of the random numbers; None: a random one.
        impossible: for each kind of fault that the proxy cannot have, the reason.
        warn: called with a sentence when a window cannot open or close.
        is_over: returns whether the proxy has ended.

    Raises:
        UsageError: a fault is invalid, or two contradict each other.

    Attributes:
        seed: the seed of the random numbers.
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
        self._is_limit_reached = False  # a limit that all connections share
        self._thread: Thread | None = None
        self._keys = 0
        self._now = _Now({}, Rulebook([]))
        self._by_key: dict[int, Entry] = {}  # also faults that were removed: their events may still come
        self._acted: dict[int, list[str]] = {}  # names of faults, by the id of a live connection
        if faults:
            self._install(faults, None)

    # --- changes ---

    def install(self, faults: Some) -> Handle:
        """Puts faults in force, all at once. Errors are those of `Controls.fault`."""
        with self._held() as crew:
            return self._install(faults, crew)

    def _install(self, faults: Some, crew: Crew | None) -> Handle:
        new = {}
        if crew:
            crew.accept_waiting()  # so that clients in the backlog count as live connections
        since = crew.last_id() if crew else 0
        if not isinstance(faults, Iterable) or isinstance(faults, bytes):
            raise UsageError(f"faults {quoted(faults)} are no faults, expected them or texts like latency=100ms")
        for name, fault in named([faults] if isinstance(faults, str | Fault) else faults, self._now.faults()).items():
            if why := self._impossible.get(fault.kind):
                raise UsageError(why)
            self._keys += 1
            new[name] = Entry(Installed(fault, name, self._keys, since))
        keys = {it.installed.key: it for it in new.values()}
        self._by_key |= keys  # before their first events
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
        """Forgets removed faults, except the last KNOWN."""
        in_force = {it.installed.key for it in self._now.entries.values()}
        gone = [key for key in self._by_key if key not in in_force]
        for key in gone[:-KNOWN]:
            del self._by_key[key]

    def update(self, entry: Entry, changes: dict[str, Any]) -> None:
        """Changes attributes of a fault that is in force. Errors are those of `Handle.update`."""
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

    def remove(self, gone: Collection[Entry] | None = None) -> None:
        """Removes faults, all at once; None: all in force. Skips faults that are not in force."""
        with self._held() as crew:
            before = self._now
            left = {name: it for name, it in before.entries.items() if gone is not None and it not in gone}
            if len(left) < len(before.entries):
                before.keep_fired()  # for a thread that reads `fired` meanwhile; below, the final numbers
                self._set(left, crew)
                before.keep_fired()

    def remove_rules(self) -> None:
        """Removes the faults that have a rule. The others concern the listeners: removing them may fail."""
        self.remove(_with_rules(self._now.entries))

    def _set(self, entries: dict[str, Entry], crew: Crew | None) -> None:
        """Replaces the faults in force."""
        if len(entries) > MOST_RULES:
            raise UsageError(f"{len(entries)} faults are too many, expected {MOST_RULES} at most")
        now = monotonic()
        rulebook = Rulebook([self._rule(it, now) for it in _with_rules(entries)], self._now.rulebook)
        windows = [it.window(now) for it in entries.values()]
        kinds = {it.installed.fault.kind for it in entries.values() if it.window(now)[0]}
        self._shut(crew, kinds.intersection(NO_RULES))  # first, because it may fail, and then nothing has changed
        if crew:
            crew.bend(rulebook)
        self._now = _Now(entries, rulebook)
        self._change_at = min(change for _, change in windows) if windows else math.inf
        shared = any(it.begun and it.is_shared_limit for it in entries.values())
        if (shared or self._change_at < math.inf) and not self._thread:
            self._thread = make_thread("tcpproxy-faults", self._open_and_close)
            self._thread.start()
        self._changed.set()

    def _rule(self, entry: Entry, now: float) -> dict[str, int]:
        """Returns the rule of a fault. Outside its window the rule takes no connection, but keeps its count."""
        found = rule(entry.installed, self.seed)
        return found if entry.window(now)[0] else {**found, "share": 0}

    # --- windows ---

    def begin(self, crew: Crew) -> None:
        """To be called when the proxy starts: the times of windows count from now on."""
        for it in self._now.entries.values():
            it.begun = monotonic()
        self._set(self._now.entries, None)
        crew.begin_with(self._now.rulebook)

    def end(self) -> None:
        """To be called when the proxy stops, by any thread: ends the thread of the windows."""
        self._over = True
        self._changed.set()

    def join(self, timeout: float) -> None:
        """Waits for the thread of the windows, which may wait for another change to end."""
        if self._thread and self._thread.ident not in (None, this_thread()):
            self._thread.join(timeout)

    def _open_and_close(self) -> None:
        """The thread that opens and closes windows, and ends all connections when a shared limit is reached.

        A worker checks such a limit only for a connection whose bytes pass. It checks all when faults are put in force.
        """
        warned, look_at = False, 0.0
        while not self._over:
            changed = self._changed = Event()  # before the check below, to miss no change
            wait = min(self._change_at, look_at if self._is_limit_reached else math.inf) - monotonic()
            if self._over:
                return
            if wait > 0:
                changed.wait(min(wait, TIMEOUT_MAX))
                continue
            with self._held() as crew:
                if not crew:  # the start has failed
                    return
                self._is_limit_reached, look_at = False, monotonic() + LOOK_AGAIN
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
        """A handle for each fault in force, in the order in which they were installed."""
        return tuple(Handle(self, (it,)) for it in self._now.entries.values())

    @property
    def every(self) -> tuple[Handle, ...]:
        """`handles`, and those of removed faults that are not forgotten yet."""
        return tuple(Handle(self, (it,)) for it in list(self._by_key.values()))

    @property
    def seed_text(self) -> str:
        """The seed, with the version of the dice: another version makes other numbers from the same seed."""
        return f"{self.seed} (dice {DICE})"

    def end_of(self, some: Collection[Entry]) -> str:
        """Returns why none of these faults can act any more, for an error; empty: one can."""
        if self._is_over():
            return "before the proxy ended"
        entries = self._now.entries
        return "" if any(entries.get(it.installed.name) is it for it in some) else "before it was removed"

    def fired(self, entry: Entry) -> int:
        """Returns on how many connections a fault has acted."""
        return next((fired for it, fired in self._now.fired() if it is entry), entry.fired)

    def note(self, number: int, key: int) -> str:
        """Records that a fault has acted on a connection, when its event comes. Only for the log thread.

        Args:
            number: the id of the connection.
            key: the key of the fault.

        Returns:
            The name of the fault; empty if the fault is forgotten.
        """
        entry = self._by_key.get(key)
        if not entry:
            return ""
        if entry.is_shared_limit:
            self._is_limit_reached = True
            self._changed.set()
        entry.connections.append(number)
        self._acted.setdefault(number, []).append(entry.installed.name)
        if len(self._acted) > MOST_KNOWN:  # events of ends were lost
            self._acted.pop(next(iter(self._acted)))
        return entry.installed.name

    def acted(self, number: int, keys: Iterable[int]) -> tuple[str, ...]:
        """Returns the names of the faults that have acted on a live connection.

        Args:
            number: the id of the connection.
            keys: keys of faults in force that have acted on it, by the core; their events may not have come yet.
        """
        now = [it.installed.name for key in keys if (it := self._by_key.get(key))]
        return tuple(dict.fromkeys([*self._acted.get(number, ()), *now]))

    def forget(self, number: int) -> tuple[str, ...]:
        """Returns the names of the faults that have acted on a connection, which has ended. Only for the log thread."""
        return tuple(self._acted.pop(number, ()))
