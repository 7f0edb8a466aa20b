"""Faults as text: `[DIRECTION:]KIND[=VALUE][,KEY=VALUE]...`, for the command line, `Fault.parse` and `str()`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .attributes import TIMES, attribute_of, key_of
from .errors import UsageError
from .text import quoted
from .values import format_time

if TYPE_CHECKING:
    from .faults import Fault

_SPEC = re.compile(r"(?:(?P<stream>\w+):)?(?P<kind>\w+)(?:=(?P<first>[^,]*))?(?P<more>(?:,[^,]*)*)", re.ASCII)

_EXAMPLES = {
    "bytes": "64KiB",
    "timeout": "2s",
    "latency": "100ms",
    "delay": "100ms",
    "rate": "100kB/s",
    "average_size": "64",
}
"""Values for the error about a kind without its value, by attribute."""

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
"""Kinds of faults that users may know from other programs, with the hint in the error."""


def own_attributes(kind: type[Fault]) -> list[str]:
    """Returns the attributes of a kind that are not shared; the first one is the VALUE of KIND=VALUE."""
    return [each.name for each in fields(kind) if not each.kw_only]


def shared_attributes(kind: type[Fault]) -> list[str]:
    """Returns the attributes that all kinds share."""
    return [each.name for each in fields(kind) if each.kw_only]


def spell(fault: Fault) -> str:
    """Returns the text of a fault."""
    kind = type(fault)
    stream = "" if fault.stream == kind.stream else f"{fault.stream}:"
    names = [*own_attributes(kind), *shared_attributes(kind)]
    given = {name: _shown(value) for name in names if (value := getattr(fault, name)) != _kept_default(kind, name)}
    given.pop("stream", None)
    main = own_attributes(kind)[:1]
    head = fault.kind + "".join(f"={given.pop(name)}" for name in main if name in given)
    return stream + ",".join([head, *(f"{key_of(name)}={text}" for name, text in given.items())])


def _kept_default(kind: type[Fault], name: str) -> object:
    default = kind.__dataclass_fields__[name].default
    return timedelta(0) if name in TIMES and default == 0 else default


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return format_time(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(text: str, kinds: Mapping[str, type[Fault]], presets: Collection[str]) -> Fault:
    """Makes a fault from `[DIRECTION:]KIND[=VALUE][,KEY=VALUE]...`; VALUE is the kind's first attribute.

    Raises:
        UsageError: the text says what is wrong, and what was expected.
    """
    match = _SPEC.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise UsageError("expected [DIRECTION:]KIND[=VALUE][,KEY=VALUE]..., like latency=100ms,jitter=20ms")
    kind = kinds.get(match["kind"])
    if not kind:
        raise UsageError(f"there is no {match['kind']}{_kind_meant(match['kind'].lower(), kinds, presets)}")
    own = own_attributes(kind)
    given: dict[str, Any] = {}
    if match["stream"] is not None:
        given["stream"] = match["stream"]
    if match["first"] is not None:
        if not own:
            raise UsageError(f"{kind.kind} has no value, but {quoted(match['first'])} is given")
        given[own[0]] = match["first"]
    known = {key_of(name): name for name in [*own, *shared_attributes(kind)] if name not in kind.lacks}
    for part in match["more"].split(",")[1:]:
        key, equals, value = part.partition("=")
        name = known.get(key.strip(), "")
        if not name and attribute_of(key.strip()) in kind.lacks:
            name = attribute_of(key.strip())  # `instead` has a better error for it
        if not name or not equals:
            raise UsageError(f"{quoted(part)} is no KEY=VALUE of {kind.kind}{_nearest(key.strip(), known)}")
        if name in given:
            raise UsageError(f"{key.strip()} is given twice")
        given[name] = value.strip()
    missing = [name for name in own if name not in given and _required(kind, name)]
    if missing:
        raise UsageError(f"{missing[0]} is missing, expected something like {kind.kind}={_EXAMPLES[missing[0]]}")
    return kind(**given)


def _required(kind: type[Fault], name: str) -> bool:
    return not hasattr(kind, name)  # a field's default is an attribute of the class


def _kind_meant(word: str, kinds: Mapping[str, type[Fault]], presets: Collection[str]) -> str:
    """Returns the end of the error about a kind that does not exist: what was probably meant, or the kinds."""
    if word in presets:
        return f", it is a preset, another option; in a program tcpproxy.faults.preset({word!r})"
    if word in _ELSEWHERE:
        return _ELSEWHERE[word]
    for kind in [kinds["latency"], *kinds.values()]:
        if word in map(key_of, (*own_attributes(kind)[1:], *shared_attributes(kind))) and word not in kind.lacks:
            main = own_attributes(kind)[0]
            return f", it is a key of a kind, like {kind.kind}={_EXAMPLES[main]},{word}=VALUE"
    return _nearest(word, kinds)


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib  # only an error needs it

    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else f", expected one of {', '.join(known)}"
