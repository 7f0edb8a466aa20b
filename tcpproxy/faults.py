"""Faults: what a proxy does to connections on purpose, so that a program can be tested under it.

    latency("100ms", jitter="20ms", stream="to_upstream")
    Fault.parse("to_upstream:latency=100ms,jitter=20ms")    # the same, in the form of the command line and of str()

Kinds and attributes are those of toxiproxy's toxics. Further kinds are `close` and `stall`, and those that act when a
client connects: `refuse`, `hang`, `blackhole`, `connect_delay`. A fault is checked when it is made, and compared by
value.

A fault *takes* a connection that meets all of its selectors; that is decided once. It *acts* on the connection from the
first time that it delays, cuts or discards something there.

A time is a text with a unit, like "100ms", a timedelta, or 0; it is kept as a timedelta. A rate is a text with a unit,
like "100kB/s" or "10Mbit/s"; it is kept as a Rate, in bytes per second. A size is a number of bytes, or a text like
"64KiB"; it is kept as a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import Field, dataclass, fields
from datetime import timedelta
from typing import Any, ClassVar

from .attributes import COUNTS, Time, kept, key_of
from .errors import UsageError
from .spelling import parse, spell
from .text import quoted
from .values import Rate, format_time

PRESETS = {  # down and up in kbit/s, round trip in ms
    "2g": (35, 32, 1300),
    "edge": (240, 200, 840),
    "3gslow": (780, 330, 200),
    "3g": (1600, 768, 300),
    "3gfast": (1600, 768, 150),
    "4g": (9000, 9000, 170),
    "lte": (12000, 12000, 70),
    "dial": (49, 30, 120),
    "dsl": (1500, 384, 50),
    "cable": (5000, 1000, 28),
    "fios": (20000, 5000, 4),
}
"""The profiles of WebPageTest (`connectivity.ini.sample` at catchpoint/WebPageTest 0c6c27a; 4g and lte: the menu of
webpagetest.org). WebPageTest applies the rates to packets; the proxy applies them to payload bytes."""

LEAST_REPEAT = timedelta(milliseconds=10)
"""The least time between two openings of a window. Each change is applied to all connections: changes that came every 2
us took half a processor."""

_WHICH = {"toxicity", "seed", "client", "live", *COUNTS}
_WHEN = {"after", "after_bytes"}


@dataclass(frozen=True, repr=False, kw_only=True)
class Fault:
    """The attributes that all kinds of faults share.

    The selectors are toxicity, first, nth, every, connection, client and live. A connection must meet all of them.

    Raises:
        UsageError: a value is invalid, or the kind does not have the attribute.

    Attributes:
        stream: the direction: "to_client", "to_upstream" or "both"; also "down", "up", "downstream", "upstream".
        toxicity: the share of connections that the fault takes, like 0.1 or "10%"; the same in both directions.
        name: the name for the log and the random numbers; None: the kind and the stream, like latency_to_client.
        seed: the seed of its random numbers; None: the proxy's seed.
        first: only the first n connections after the fault was put in force.
        nth: only the nth of them.
        every: only every nth of them.
        connection: only the connection with this id.
        client: only clients of a network, like "10.0.0.0/8".
        live: also connections that were open when the fault was put in force; never with first, nth or every.
        after_bytes: the fault begins when this many bytes of the direction have passed.
        after: the fault begins this time after it has taken the connection.
        times: the most connections on which the fault acts.
        scope: "connection"; or "proxy": one rate or limit for all connections together.
        start: the fault begins this time after it was put in force, but not before the proxy starts.
        for_: the fault ends this time after its beginning; None: it does not end. `for` on the command line.
        repeat: the fault begins again this time after each beginning, at least 10 ms; None: it does not.
    """

    stream: str = "to_client"
    toxicity: float | str = 1.0
    name: str | None = None
    seed: int | None = None
    first: int | None = None
    nth: int | None = None
    every: int | None = None
    connection: int | None = None
    client: str | None = None
    live: bool = True
    after_bytes: int | str | None = None
    after: Time | None = None
    times: int | None = None
    scope: str = "connection"
    start: Time = 0
    for_: Time | None = None
    repeat: Time | None = None

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Fault]]] = {}
    """The classes by kind, in the order in which they act on a byte; last, those that act when a client connects."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """The shared attributes that the kind does not have."""
    ends: ClassVar[tuple[str, ...]] = ("close", "reset")
    """The values that its attribute `end` may have."""

    def __init_subclass__(cls, lacks: Iterable[str] = ()) -> None:
        cls.kind, cls.lacks = cls.__name__, frozenset(lacks)
        Fault.kinds[cls.kind] = cls

    def __post_init__(self) -> None:
        if not self.kind:
            raise UsageError(f"Fault has no kind, expected one of {', '.join(Fault.kinds)}")
        try:
            for each in fields(self):
                object.__setattr__(self, each.name, self._kept(each, getattr(self, each.name)))
            self.check()
        except UsageError as error:
            raise UsageError(f"fault {self.kind}: {error}") from None

    def _kept(self, which: Field[Any], value: Any) -> object:
        """Checks the value of an attribute, and returns it in the form in which it is kept."""
        name = which.name
        if name in self.lacks and value != which.default:
            raise UsageError(f"{self.kind} has no {key_of(name)}" + self.instead(name))
        return None if value is None and which.default is None else kept(type(self), name, value)

    def instead(self, name: str) -> str:
        """Returns a hint for the error about a missing attribute: the reason, and what to use instead."""
        return ""

    def check(self) -> None:
        """Raises UsageError if values contradict each other."""
        if self.after is not None and self.after_bytes is not None:
            raise UsageError("after and after_bytes are two beginnings, expected one of them")
        if self.repeat is not None and not (isinstance(self.for_, timedelta) and self.for_ < _time(self.repeat)):
            raise UsageError("repeat needs a for that is shorter, like for=5s,repeat=60s")
        if self.repeat is not None and _time(self.repeat) < LEAST_REPEAT:
            raise UsageError(f"repeat {format_time(_time(self.repeat))} is too short, expected 10ms or more")

    @property
    def label(self) -> str:
        """Its name; without one, the kind and the stream."""
        return self.name or (self.kind if "stream" in self.lacks else f"{self.kind}_{self.stream}")

    def __str__(self) -> str:
        return spell(self)

    def __repr__(self) -> str:
        return f"<fault {str(self)!r}>"

    @staticmethod
    def parse(text: str) -> Fault:
        """Makes a fault from `[DIRECTION:]KIND[=VALUE][,KEY=VALUE]...`; VALUE is the kind's first attribute.

        Raises:
            UsageError: the text names the fault, what is wrong, and what was expected.
        """
        try:
            return parse(text, Fault.kinds, PRESETS)
        except UsageError as error:
            raise UsageError(f"fault {quoted(text)}: {re.sub(r'^fault [a-z_]+: ', '', str(error))}") from None


@dataclass(frozen=True, repr=False)
class limit_data(Fault, lacks=_WHEN):
    """Ends the connection when n bytes of a direction have passed; 0: when the first byte arrives.

    Attributes:
        bytes: the number of bytes that pass after the fault has taken the connection.
        end: "close" (both peers get an end of file), "reset", or "stall": later bytes are discarded.
    """

    bytes: int | str
    end: str = "close"

    ends = ("close", "reset", "stall")


@dataclass(frozen=True, repr=False)
class reset_peer(Fault, lacks={"scope"}):
    """Resets both peers. By default it resets a new connection at accept, before the proxy connects to upstream.

    Attributes:
        timeout: the time from the beginning of the fault to the reset.
    """

    timeout: Time = 0


@dataclass(frozen=True, repr=False)
class close(Fault, lacks={"scope"}):
    """As reset_peer, with an end of file for both peers instead of the reset.

    Attributes:
        timeout: the time from the beginning of the fault to the end of file.
    """

    timeout: Time = 0


@dataclass(frozen=True, repr=False)
class timeout(Fault, lacks={"scope", "after_bytes"}):
    """Discards the bytes of a direction, and ends the connection later.

    Attributes:
        timeout: the time from the beginning of the fault to the end of the connection; 0: it does not end.
        end: "close" or "reset".
        idle: discard nothing, and end the connection when no byte of the direction has arrived for this time.
    """

    timeout: Time
    end: str = "close"
    idle: bool = False


@dataclass(frozen=True, repr=False)
class latency(Fault, lacks={"scope"}):
    """Delays bytes, end of file and reset, and keeps their order. Several latencies add up.

    Attributes:
        latency: the delay.
        jitter: with uniform, the delay varies by up to this time, either way; with normal, its standard deviation.
        distribution: "uniform" or "normal".
    """

    latency: Time
    jitter: Time = 0
    distribution: str = "uniform"


@dataclass(frozen=True, repr=False)
class slow_close(Fault, lacks={"scope", *_WHEN}):
    """Delays the end of file of a direction; the other one goes on.

    Attributes:
        delay: the time from the last byte to the end of file.
    """

    delay: Time


@dataclass(frozen=True, repr=False)
class bandwidth(Fault):
    """Limits the rate of a direction of each connection. If there are several limits, the lowest one applies.

    Attributes:
        rate: the most bytes per second.
        burst: bytes that may pass at once after a pause, up to 10^9; None: the bytes of 10 ms.
    """

    rate: str | Rate
    burst: int | str | None = None


@dataclass(frozen=True, repr=False)
class slicer(Fault, lacks={"scope"}):
    """Sends in small pieces, whose ends depend only on the position in the stream.

    Attributes:
        average_size: average bytes of a piece.
        size_variation: by how many bytes a piece may be larger or smaller.
        delay: the time between two pieces.
    """

    average_size: int | str
    size_variation: int | str = 0
    delay: Time = 0

    def check(self) -> None:
        super().check()
        if not int(self.size_variation) < int(self.average_size):
            raise UsageError(
                f"average_size {self.average_size} and size_variation {self.size_variation} make empty pieces, "
                "expected a variation below the average"
            )


@dataclass(frozen=True, repr=False)
class stall(Fault, lacks={"scope"}):
    """Holds bytes, end of file and reset. Each peer seems alive but silent to the other."""


@dataclass(frozen=True, repr=False)
class refuse(Fault, lacks={"stream", "scope", *_WHICH, *_WHEN}):
    """The port refuses connections; those that are open go on."""

    def instead(self, name: str) -> str:
        return ", because the system refuses all connections or none; reset_peer takes single ones"


@dataclass(frozen=True, repr=False)
class hang(Fault, lacks={"stream", "scope", *_WHICH, *_WHEN}):
    """connect() of clients hangs, as to a machine that is switched off; open connections go on. Linux only."""

    def instead(self, name: str) -> str:
        return ", because the system lets all clients hang or none; blackhole and stall take single ones"


@dataclass(frozen=True, repr=False)
class blackhole(Fault, lacks={"stream", "scope", "live", *_WHEN}):
    """Accepts clients, but does not connect to upstream and reads nothing."""


@dataclass(frozen=True, repr=False)
class connect_delay(Fault, lacks={"stream", "scope", "live", *_WHEN}):
    """Delays the connect to upstream.

    Attributes:
        delay: the time from the accept to the connect.
    """

    delay: Time


def preset(name: str, **common: Any) -> tuple[Fault, ...]:
    """Returns the faults of a slow network: half of its round-trip time each way, and a rate for each direction.

    Args:
        name: one of PRESETS, like "3g".
        common: attributes that all these faults get, like toxicity.

    Raises:
        UsageError: there is no such preset, or an attribute is invalid.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {quoted(name)}, expected one of {', '.join(PRESETS)}")
    down, up, round_trip = PRESETS[name]
    return (
        latency(timedelta(milliseconds=round_trip) / 2, stream="both", **common),
        bandwidth(f"{down}kbit/s", stream="to_client", **common),
        bandwidth(f"{up}kbit/s", stream="to_upstream", **common),
    )


def _time(value: Time) -> timedelta:
    assert isinstance(value, timedelta)
    return value
