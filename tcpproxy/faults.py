"""Faults: what a proxy does to connections on purpose, so that a program can be tested under it.

    latency("100ms", jitter="20ms", stream="upstream")
    Fault.parse("up:latency=100ms,jitter=20ms")     # the same, in the form of the command line and of str()

Kinds and attributes are toxiproxy's, with `close` and `stall` besides, and those that act when a client is accepted:
`refuse`, `hang`, `blackhole`, `connect_delay`. A fault is checked when it is made, and is compared by value.

A time is a text with a unit, like "100ms", a timedelta, or 0; it is kept as a timedelta. A rate is a text with a unit,
like "100kB/s" or "10Mbit/s"; it is kept as a Rate, in bytes per second. A size is a number of bytes, or a text like
"64KiB".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, fields
from datetime import timedelta
from typing import Any, ClassVar

from .errors import UsageError
from .text import quoted
from .values import (
    Rate,
    format_time,
    parse_choice,
    parse_flag,
    parse_number,
    parse_rate,
    parse_share,
    parse_size,
    parse_time,
)

Time = str | timedelta | int
"""A time with its unit. Of the numbers only 0 needs none."""

STREAMS = {"up": "upstream", "down": "downstream", "both": "both"}
"""Directions by their short names."""

MOST_BYTES = 999_999_999_999
MOST_BURST = 10**9
MOST_NUMBER = 10**9

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
webpagetest.org). WebPageTest limits packets, the proxy limits their content; it loses none."""

_SPEC = re.compile(r"(?:(?P<stream>\w+):)?(?P<kind>\w+)(?:=(?P<first>[^,]*))?(?P<more>(?:,[^,]*)*)", re.ASCII)
_NAME = re.compile(r"[\w.#-]{1,64}", re.ASCII)
_TIMES = ("latency", "jitter", "delay", "timeout", "after", "start", "for_", "repeat")
_SIZES = ("bytes", "average_size", "size_variation", "after_bytes")
_COUNTS = ("first", "nth", "every", "connection", "times")
_WHICH = {"toxicity", "seed", "client", "live", *_COUNTS}
_WHEN = {"after", "after_bytes"}


@dataclass(frozen=True, repr=False, kw_only=True)
class Fault:
    """What all faults have in common. A connection must meet all of its selectors.

    Raises:
        UsageError: a value that cannot be, or an attribute that the kind does not have.

    Attributes:
        stream: the direction: "downstream" (to the client), "upstream" or "both"; "down" and "up" are the same.
        toxicity: the share of connections that the fault takes, like 0.1 or "10%"; decided once for each.
        name: None: the kind and the stream, like latency_downstream.
        seed: of its dice; None: the proxy's.
        first: the first n connections since the fault is in force.
        nth: the nth of them alone.
        every: every nth of them.
        connection: the connection with this id.
        client: clients of a network, like "10.0.0.0/8".
        live: also connections that were open before. A fault with first, nth or every never takes these.
        after_bytes: begins once so many bytes of the direction have passed.
        after: begins so long after it has taken a connection.
        times: acts on so many connections at most.
        scope: "connection"; or "proxy": one rate or limit for all connections together.
        start: begins so long after it was put in force, or else after the start of the proxy.
        for_: lasts so long; `for` on the command line.
        repeat: begins again so long after each beginning.
    """

    stream: str = "downstream"
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
    """Faults by kind, in the order in which a byte meets them; at the end those of the accept."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Which of the common attributes the kind does not have."""
    ends: ClassVar[tuple[str, ...]] = ("close", "reset")

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
        """The value of an attribute in the form in which it is kept."""
        name, key = which.name, _key(which.name)
        if name in self.lacks and value != which.default:
            raise UsageError(f"{self.kind} has no {key}" + self.instead(name))
        if value is None and which.default is None:
            return None
        if name in _TIMES:
            return parse_time(key, value, other="us" if self.kind == "slicer" else "ms")
        if name == "burst":
            return parse_size(key, value, 1, MOST_BURST)
        if name in _SIZES:
            return parse_size(key, value, 0, MOST_BYTES)
        if name in _COUNTS:
            return parse_number(key, value, 1, MOST_NUMBER)
        if name == "end":
            return parse_choice(key, value, self.ends)
        return _WORDS[name](key, value)

    def instead(self, name: str) -> str:
        """What the error adds about an attribute that the kind does not have."""
        return ""

    def check(self) -> None:
        """Raises UsageError if values contradict each other."""
        if self.after is not None and self.after_bytes is not None:
            raise UsageError("after and after_bytes are two beginnings, expected one of them")
        if self.repeat is not None and not (isinstance(self.for_, timedelta) and self.for_ < _time(self.repeat)):
            raise UsageError("repeat needs a for that is shorter, like for=5s,repeat=60s")

    @property
    def label(self) -> str:
        """Its name, or what it is called without one."""
        return self.name or (self.kind if "stream" in self.lacks else f"{self.kind}_{self.stream}")

    def __str__(self) -> str:
        stream = {"upstream": "up:", "downstream": "", "both": "both:"}[self.stream]
        names = [*_own(type(self)), *_COMMON]
        given = {name: _shown(value) for name in names if (value := getattr(self, name)) != self._kept_default(name)}
        given.pop("stream", None)
        main = _own(type(self))[:1]
        head = self.kind + "".join(f"={given.pop(name)}" for name in main if name in given)
        return stream + ",".join([head, *(f"{_key(name)}={text}" for name, text in given.items())])

    def _kept_default(self, name: str) -> object:
        default = type(self).__dataclass_fields__[name].default
        return timedelta(0) if name in _TIMES and default == 0 else default

    def __repr__(self) -> str:
        return f"<fault {str(self)!r}>"

    @staticmethod
    def parse(text: str) -> Fault:
        """A fault from `[STREAM:]KIND[=VALUE][,KEY=VALUE]...`; VALUE is the kind's first attribute.

        Raises:
            UsageError: its text names the fault, what is wrong, and what was expected.
        """
        try:
            return _parse(text)
        except UsageError as error:
            raise UsageError(f"fault {quoted(text)}: {re.sub(r'^fault [a-z_]+: ', '', str(error))}") from None


def _parse(text: str) -> Fault:
    match = _SPEC.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise UsageError("expected [up:|down:|both:]KIND[=VALUE][,KEY=VALUE]..., like latency=100ms,jitter=20ms")
    kind = Fault.kinds.get(match["kind"])
    if not kind:
        raise UsageError(f"there is no {match['kind']}{_kind_meant(match['kind'].lower())}")
    own = _own(kind)
    given: dict[str, Any] = {}
    if match["stream"] is not None:
        given["stream"] = match["stream"]
    if match["first"] is not None:
        if not own:
            raise UsageError(f"{kind.kind} has no value, but {quoted(match['first'])} is given")
        given[own[0]] = match["first"]
    known = {_key(name): name for name in [*own, *_COMMON] if name not in kind.lacks}
    for part in match["more"].split(",")[1:]:
        key, equals, value = part.partition("=")
        name = known.get(key.strip(), "")
        if not name and _named(key.strip()) in kind.lacks:
            name = _named(key.strip())  # its own error says more
        if not name or not equals:
            raise UsageError(f"{quoted(part)} is no KEY=VALUE of {kind.kind}{_nearest(key.strip(), known)}")
        if name in given:
            raise UsageError(f"{key.strip()} is given twice")
        given[name] = value.strip()
    missing = [name for name in own if name not in given and _required(kind, name)]
    if missing:
        raise UsageError(f"{missing[0]} is missing, expected something like {kind.kind}={_EXAMPLES[missing[0]]}")
    return kind(**given)


@dataclass(frozen=True, repr=False)
class limit_data(Fault, lacks=_WHEN):
    """Lets n bytes of a direction pass, and ends the connection when the last of them is through; 0: at the first byte.

    Attributes:
        bytes: how many pass, from when the fault has taken the connection.
        end: "close" (an end of file for both peers), "reset", or "stall": what follows is discarded.
    """

    bytes: int | str
    end: str = "close"

    ends = ("close", "reset", "stall")


@dataclass(frozen=True, repr=False)
class reset_peer(Fault, lacks={"scope"}):
    """Resets both peers. By default a new connection at accept, before upstream is asked.

    Attributes:
        timeout: so long after it begins.
    """

    timeout: Time = 0


@dataclass(frozen=True, repr=False)
class close(Fault, lacks={"scope"}):
    """As reset_peer, with an end of file for both peers.

    Attributes:
        timeout: so long after it begins.
    """

    timeout: Time = 0


@dataclass(frozen=True, repr=False)
class timeout(Fault, lacks={"scope", "after_bytes"}):
    """Discards the bytes of a direction, and ends the connection later.

    Attributes:
        timeout: ends it so long after it begins; 0: never.
        end: "close" or "reset".
        idle: discards nothing, and ends it after so long without a byte of the direction.
    """

    timeout: Time
    end: str = "close"
    idle: bool = False


@dataclass(frozen=True, repr=False)
class latency(Fault, lacks={"scope"}):
    """Delays what is sent, bytes, end of file and reset, in order. Several add up.

    Attributes:
        latency: how long.
        jitter: uniform: up to so much more or less; normal: the standard deviation.
        distribution: "uniform" or "normal".
    """

    latency: Time
    jitter: Time = 0
    distribution: str = "uniform"


@dataclass(frozen=True, repr=False)
class slow_close(Fault, lacks={"scope", *_WHEN}):
    """Delays the end of file of a direction; the other one goes on.

    Attributes:
        delay: how long after the last byte.
    """

    delay: Time


@dataclass(frozen=True, repr=False)
class bandwidth(Fault):
    """Limits the rate of a direction of each connection; of several the lowest holds.

    Attributes:
        rate: the rate.
        burst: bytes that may pass at once after a pause, up to 10^9; None: those of 10 ms.
    """

    rate: str | Rate
    burst: int | str | None = None


@dataclass(frozen=True, repr=False)
class slicer(Fault, lacks={"scope"}):
    """Sends in small pieces. Where they are cut depends on the position in the stream alone.

    Attributes:
        average_size: bytes of a piece.
        size_variation: so many more or fewer.
        delay: between pieces.
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
    """Holds everything: bytes, end of file and reset. The peers see a partner who is silent and alive."""


@dataclass(frozen=True, repr=False)
class refuse(Fault, lacks={"stream", "scope", *_WHICH, *_WHEN}):
    """The port refuses connections; those that are open go on."""

    def instead(self, name: str) -> str:
        return ", because the system refuses all connections or none; reset_peer takes single ones"


@dataclass(frozen=True, repr=False)
class hang(Fault, lacks={"stream", "scope", *_WHICH, *_WHEN}):
    """Connecting does not complete, as to a machine that is gone; connections that are open go on. Linux."""

    def instead(self, name: str) -> str:
        return ", because the system lets all clients hang or none; blackhole and stall take single ones"


@dataclass(frozen=True, repr=False)
class blackhole(Fault, lacks={"stream", "scope", "live", *_WHEN}):
    """A client is accepted, and nothing else happens: upstream is not asked, nothing is read."""


@dataclass(frozen=True, repr=False)
class connect_delay(Fault, lacks={"stream", "scope", "live", *_WHEN}):
    """Upstream is asked later.

    Attributes:
        delay: how long after the accept.
    """

    delay: Time


def preset(name: str, **common: Any) -> tuple[Fault, ...]:
    """The faults of a slow network, half of its round trip each way. Its name is one of PRESETS.

    Args:
        name: like "3g".
        common: attributes of all of them, like toxicity.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {quoted(name)}, expected one of {', '.join(PRESETS)}")
    down, up, round_trip = PRESETS[name]
    return (
        latency(timedelta(milliseconds=round_trip) / 2, stream="both", **common),
        bandwidth(f"{down}kbit/s", stream="downstream", **common),
        bandwidth(f"{up}kbit/s", stream="upstream", **common),
    )


def named(faults: Iterable[Fault | str], beside: Mapping[str, Fault] | None = None) -> dict[str, Fault]:
    """Faults that are to be in force together, by name: the second of a label is LABEL#2.

    Args:
        faults: the faults.
        beside: others, by their names, which are in force already.

    Raises:
        UsageError: a text is no fault, a name is given twice, or two slice the same direction.
    """
    before = dict(beside or {})
    result: dict[str, Fault] = {}
    sliced: set[str] = set()
    for fault in before.values():
        sliced |= _sliced(fault)
    for each in faults:
        fault = each if isinstance(each, Fault) else Fault.parse(each)
        name, number = fault.label, 1
        while name in result or name in before:
            if fault.name:
                raise UsageError(f"fault {quoted(str(fault))}: another one has this name")
            number += 1
            name = f"{fault.label}#{number}"
        result[name] = fault
        if sliced & _sliced(fault):
            raise UsageError(f"fault {quoted(str(fault))}: another slicer has this direction")
        sliced |= _sliced(fault)
    return result


def _sliced(fault: Fault) -> set[str]:
    """The directions that it slices."""
    if fault.kind != "slicer":
        return set()
    return {"upstream", "downstream"} if fault.stream == "both" else {fault.stream}


# --- attributes ---

_COMMON = [each.name for each in fields(Fault)]
_EXAMPLES = {
    **{"bytes": "64KiB", "timeout": "2s", "latency": "100ms", "delay": "100ms", "rate": "100kB/s"},
    "average_size": "64",
}

_ELSEWHERE = {
    "loss": ", because TCP sends again what is lost: programs see latency",
    "packet_loss": ", because TCP sends again what is lost: programs see latency",
    "down": ", refuse is what makes connecting fail",
    "drop": ", did you mean limit_data, timeout or blackhole?",
    **dict.fromkeys(("reset", "rst"), ", did you mean reset_peer?"),
    **dict.fromkeys(("delay", "lag"), ", did you mean latency?"),
    **dict.fromkeys(("rate", "throttle"), ", did you mean bandwidth?"),
    **dict.fromkeys(("cut", "truncate"), ", did you mean limit_data?"),
}
"""What the error adds about kinds that people know from elsewhere."""


def _kind_meant(word: str) -> str:
    if word in PRESETS:
        return f", it is a preset, another option; in a program tcpproxy.faults.preset({word!r})"
    if word in _ELSEWHERE:
        return _ELSEWHERE[word]
    kinds: list[type[Fault]] = [latency, *Fault.kinds.values()]
    for kind in kinds:
        if word in map(_key, (*_own(kind)[1:], *_COMMON)) and word not in kind.lacks:
            main = _own(kind)[0]
            return f", it is a key of a kind, like {kind.kind}={_EXAMPLES[main]},{word}=VALUE"
    return _nearest(word, Fault.kinds)


def _own(kind: type[Fault]) -> list[str]:
    return [each.name for each in fields(kind) if each.name not in _COMMON]


def _required(kind: type[Fault], name: str) -> bool:
    return not hasattr(kind, name)  # a field's default is an attribute of the class


def _key(name: str) -> str:
    return name.rstrip("_")


def _named(key: str) -> str:
    return "for_" if key == "for" else key


def _time(value: Time) -> timedelta:
    assert isinstance(value, timedelta)
    return value


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return format_time(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib  # only an error needs it

    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else f", expected one of {', '.join(known)}"


def _stream(what: str, value: object) -> str:
    if isinstance(value, str) and (value in STREAMS or value in STREAMS.values()):
        return STREAMS.get(value, value)
    raise UsageError(f"{what} {quoted(value)} is unknown, expected up, down or both")


def _network(what: str, value: object) -> str:
    import ipaddress  # few faults need it

    try:
        if isinstance(value, str):
            return str(ipaddress.ip_network(value))
    except ValueError as error:
        why = "has bits set behind its prefix" if "host bits" in str(error) else "is no network"
        raise UsageError(f"{what} {quoted(value)} {why}, expected one like 10.0.0.0/8") from None
    raise UsageError(f"{what} {quoted(value)} is no network, expected one like 10.0.0.0/8")


def _name(what: str, value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise UsageError(f"{what} {quoted(value)} is no name, expected up to 64 letters, digits, and any of _ . # -")


def _rate(what: str, value: Any) -> Rate:
    if value in (0, "0"):
        raise UsageError(f"{what} {quoted(value)} lets nothing pass: stall does that")
    return parse_rate(what, value)


_WORDS: dict[str, Callable[[str, Any], object]] = {
    "stream": _stream,
    "toxicity": parse_share,
    "name": _name,
    "seed": lambda what, value: parse_number(what, value, 0, 2**64 - 1),
    "client": _network,
    "live": parse_flag,
    "idle": parse_flag,
    "scope": lambda what, value: parse_choice(what, value, ("connection", "proxy")),
    "distribution": lambda what, value: parse_choice(what, value, ("uniform", "normal")),
    "rate": _rate,
}
"""How the attributes are checked that are no times, sizes or counts."""
