"""How an option is declared: one dataclass field is one row.

A row feeds the check of the value, `--help`, docs/options.md, the table in README.md, and the signature and docstring
of `tcpproxy.Proxy`. By hand remain: the name and type in groups.Options, the use of the value, docs/library.md. The
makers below (`duration`, `size`, ...) return the field; `groups` declares the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .._core.worker import LIMITS
from ..errors import UsageError
from ..processors import usable_cpus
from ..text import quoted
from ..values import (
    LONGEST,
    parse_busy_poll,
    parse_choice,
    parse_duration,
    parse_mode,
    parse_number,
    parse_rates,
    parse_size,
)
from .endpoints import parse_bind, parse_local_port, parse_sources
from .forwards import ForwardSpec, parse_forward
from .networks import parse_networks, parse_proxies
from .place import parse_place

_KEY = "option"


@dataclass(eq=False, repr=False)  # which saves time at a start
class Option:
    """A row.

    Args:
        default: the value when the option is not given.
        parse: a function of (name, value) that returns the converted value; UsageError names the option by `name`.
        metavar: what stands for the value; empty: a flag, which has none.
        help: at most nine words for --help and the table in README.md.
        doc: the sentences of docs/options.md.
        embedded: the default in a program, where it differs.
        shown: the default in words, where `default` is unclear.
        unit: of a number without a unit.
        flag: its name on the command line, where that is not the field's.
        short: its letter on the command line.
        first: one of the original's options, which come first in --help.
        command_only: no argument of `tcpproxy.Proxy`.
        multiple: it may be given several times; its value is a tuple.
        minor: a detail of another option, which the table in README.md leaves out.
    """

    default: Any
    parse: Callable[[str, Any], Any]
    metavar: str
    help: str
    doc: str
    embedded: Any = None
    shown: str = ""
    unit: str = ""
    flag: str = ""
    short: str = ""
    first: bool = False
    command_only: bool = False
    minor: bool = False
    multiple: bool = False
    name: str = ""
    """The field's, and the argument's in a program."""

    @property
    def long(self) -> str:
        """Its name on the command line, with dashes."""
        return f"--{self.flag or self.name.replace('_', '-')}"

    @property
    def default_in_program(self) -> Any:
        return self.default if self.embedded is None else self.embedded


def rows(group: type[Any]) -> list[Option]:
    """The options of a group, in order."""
    found = []
    for each in fields(group):
        option: Option = each.metadata[_KEY]
        option.name = each.name
        found.append(option)
    return found


def _row(default: Any, parse: Callable[[str, Any], Any], metavar: str, help: str, doc: str, **more: Any) -> Any:
    return field(metadata={_KEY: Option(default, parse, metavar, help, doc, **more)})


def duration(
    default: str,
    help: str,
    doc: str,
    *,
    least: float = 0,
    most: float = LONGEST,
    off: bool = False,
    whole: bool = False,
    **more: Any,
) -> Any:
    """Seconds. With `off` the word is 0, which stands for no limit; `whole`: rounded up to whole seconds."""

    def parse(what: str, value: Any) -> float:
        seconds = parse_duration(what, value, least=least, most=most, off=off)
        return math.ceil(seconds) if whole else seconds

    return _row(default, parse, "TIME", help, doc, unit="seconds", **more)


def size(default: str, help: str, doc: str, *, least: int, most: int, off: bool = False, **more: Any) -> Any:
    """Bytes. With `off` the word and 0 stand for no limit."""

    def parse(what: str, value: Any) -> int:
        return parse_size(what, value, least, most, off=off)

    return _row(default, parse, "SIZE", help, doc, unit="bytes", **more)


def number(
    default: int | None, help: str, doc: str, *, least: int, most: int, unset: int | None = None, **more: Any
) -> Any:
    """A whole number; `unset` is what None stands for, where the default is None."""

    def parse(what: str, value: Any) -> int | None:
        return unset if value is None and default is None else parse_number(what, value, least, most)

    return _row(default, parse, more.pop("metavar", "N"), help, doc, **more)


def workers(help: str, doc: str) -> Any:
    """Threads; `auto` is one a usable CPU."""

    def parse(what: str, value: Any) -> int:
        if value != "auto":
            return parse_number(what, value, 1, LIMITS["workers"], word="auto")
        return min(usable_cpus(), LIMITS["workers"])

    return _row("auto", parse, "auto|N", help, doc, embedded=1, shown="usable CPUs")


def choice(words: tuple[str, ...], help: str, doc: str, *, hidden: tuple[str, ...] = (), **more: Any) -> Any:
    """One of the words, the first of which is the default; `hidden` ones are accepted, but not advertised."""

    def parse(what: str, value: Any) -> str:
        return parse_choice(what, value, words, hidden)

    return _row(words[0], parse, "|".join(words), help, doc, **more)


def version(help: str, doc: str, **more: Any) -> Any:
    """A version of the PROXY protocol; without one None."""

    def parse(what: str, value: Any) -> str | None:
        return None if value is None else parse_choice(what, value, ("v1", "v2"))

    return _row(None, parse, "v1|v2", help, doc, shown="none", **more)


def path(help: str, doc: str, **more: Any) -> Any:
    """A file; without one None."""

    def parse(what: str, value: Any) -> str | None:
        if value is not None and not (isinstance(value, str) and value and "\0" not in value):
            raise UsageError(f"{what} {quoted(value)} is not the path of a file")
        return value

    return _row(None, parse, more.pop("metavar", "FILE"), help, doc, shown="none", **more)


def faults(help: str, doc: str, **more: Any) -> Any:
    """Texts of faults."""

    def parse(what: str, value: Any) -> tuple[Any, ...]:
        if not value:
            return ()
        from ..faults import Fault  # it takes milliseconds

        return tuple(map(Fault.parse, value))

    return _row((), parse, "FAULT", help, doc, shown="none", multiple=True, **more)


def preset(help: str, doc: str, **more: Any) -> Any:
    """The name of a slow network, as its faults."""

    def parse(what: str, value: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        from ..faults import preset

        return preset(value)

    return _row(None, parse, "NAME", help, doc, shown="none", **more)


def flag(help: str, doc: str, **more: Any) -> Any:
    """Off unless it is given."""
    return _row(False, lambda _what, value: bool(value), "", help, doc, **more)


def address(default: str, help: str, doc: str, **more: Any) -> Any:
    """A name or IP address to listen on."""
    return _row(default, parse_bind, "ADDR", help, doc, **more)


def local_port(help: str, doc: str, **more: Any) -> Any:
    """A port to listen on; 0 is a free one."""
    return _row(0, parse_local_port, "PORT", help, doc, shown="random", **more)


def place(help: str, doc: str, **more: Any) -> Any:
    """Where to serve something that is not relayed; without one None."""
    return _row(None, parse_place, "[ADDR:]PORT|/PATH", help, doc, shown="none", **more)


def file_mode(default: str, help: str, doc: str, **more: Any) -> Any:
    """Rights of a file, in octal digits; in a program also as a number."""
    return _row(default, parse_mode, "MODE", help, doc, **more)


def forwards(help: str, doc: str, **more: Any) -> Any:
    """Forwards, as ForwardSpecs."""

    def parse(what: str, value: Any) -> tuple[ForwardSpec, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"{what} {quoted(value)} is no list, expected one of [ADDR:]PORT:REMOTE texts")
        if len(value) > LIMITS["forwards"]:
            raise UsageError(f"{what} is given {len(value)} times, expected at most {LIMITS['forwards']}")
        return tuple(parse_forward(what, each) for each in value)

    return _row((), parse, "[ADDR:]PORT:REMOTE", help, doc, shown="none", multiple=True, **more)


def networks(help: str, doc: str, **more: Any) -> Any:
    """Networks, by their addresses; without any None."""
    return _row(None, parse_networks, "NETWORK,...", help, doc, shown="none", multiple=True, **more)


def rates(help: str, doc: str, **more: Any) -> Any:
    """Bytes per second of both directions; without one 0, which is no limit."""
    return _row(None, parse_rates, "RATE", help, doc, shown="no limit", **more)


def sources(help: str, doc: str, **more: Any) -> Any:
    """IP addresses, at most one of each family."""

    def parse(what: str, value: Any) -> tuple[str, ...]:
        return parse_sources(what, (value,) if isinstance(value, str) else value)

    return _row((), parse, "ADDR", help, doc, shown="the system's choice", multiple=True, **more)


def proxies(help: str, doc: str, **more: Any) -> Any:
    """The same, and the word `unix`."""
    return _row(None, parse_proxies, "NETWORK|unix,...", help, doc, shown="none", multiple=True, **more)


def busy_poll(help: str, doc: str) -> Any:
    """Microseconds; `auto` is -1, `off` and 0 are 0."""
    return _row("auto", parse_busy_poll, "auto|off|USEC", help, doc, unit="microseconds")
