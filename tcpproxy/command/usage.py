"""The text of --help, and of usage errors."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from ..config import habits
from ..config.endpoints import ANY_REMOTE
from ..config.groups import HEADINGS, ROWS, every_row
from ..config.options import Option
from ..report.printer import final_line, final_words
from ..text import quoted
from .unknown import ABSENT, meant, similar

WIDEST, NARROWEST = 100, 40
"""Columns of --help on a terminal that is wider or narrower than that."""

OPTION_COLUMNS, EXAMPLE_COLUMNS = 34, 48
"""Widths of the left column in --help."""

TWO_COLUMNS = 70
"""From this terminal width on, descriptions are beside their options, else below."""

INTRODUCTION = (
    "Forwards TCP connections to REMOTE, which is HOST:PORT, [IPv6]:PORT, or the /PATH of a UNIX socket.",
    "Times are seconds or carry a unit (250ms, 10s, 5m), sizes are bytes or carry one (64KiB, 1MiB).",
)

OWN = (
    ("-V, --version", "Print the version and what is compiled in."),
    ("-h, --help", "Print this text."),
    ("    --help-faults", "Print the kinds of --fault."),
)
"""The options that are not in the table of options."""

EXAMPLES = (
    ("tcpproxy -l 5432 db.example:5432", "listen on a fixed port"),
    ("tcpproxy -b 0.0.0.0 -l 8080 localhost:3000", "let other machines connect"),
    ("tcpproxy -L 5432:db:5432 -L 8080:web:80", "forward several ports"),
    ("tcpproxy -d -l 6379 cache.example:6379", "log how each connection ends"),
    ("tcpproxy --idle-timeout 10m '[::1]:5432'", "close idle connections"),
    ("tcpproxy -x -l 6379 cache.example:6379", "print the bytes that pass"),
    ("tcpproxy --top -l 6379 cache.example:6379", "show who is connected"),
)

NOTES = (
    "Exit codes: 0 stopped by a signal, 1 could not start or failed, 2 wrong usage.",
    "Signals: SIGINT or SIGTERM stops it within --grace, a second one at once; SIGUSR1 shows the live connections.",
)


def option(row: Option) -> click.Option:
    """An option of the command, from its row. Values stay text: `Config` checks them."""
    names = [row.name, *([row.short] if row.short else []), row.long]
    return click.Option(
        names, is_flag=not row.metavar, metavar=row.metavar or None, default=None, multiple=row.multiple
    )


class Command(click.Command):
    """A command with --help in groups, and with sentences of one style for usage errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises WrongUsage where click fails, and for an option that is given twice (click takes the last value)."""
        try:
            if not ctx.resilient_parsing:  # not while a shell completes a line
                self._check(ctx, args)
            return self._parse(ctx, args)
        except WrongUsage as error:
            error.json = _value_of("--log-format", args) == "json"
            raise

    def _parse(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, list(args))  # which empties the list
        if not ctx.resilient_parsing and ctx.params["remote"] is None and not ctx.params["forwards"]:
            raise WrongUsage(f"REMOTE is missing, {ANY_REMOTE}{self._remote_in_option(ctx, args)}")
        return rest

    def _remote_in_option(self, ctx: click.Context, args: list[str]) -> str:
        """A hint if an option has taken REMOTE as its value, as in `-l 8080:db:5432` and `--capture db:5432`."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        there = habits.forward(given["port"]) if isinstance(given.get("port"), str) else None
        if there and there.port:
            return _hint(there)
        takers = [each.opts[-1] for each in self.params if args and args[-1] in _values(given.get(each.name or ""))]
        return f"; {quoted(args[-1])} is the value of {takers[0]}" if takers and re.search(r":\d", args[-1]) else ""

    def _check(self, ctx: click.Context, args: list[str]) -> None:
        try:
            given, rest, order = self.make_parser(ctx).parse_args(args=list(args))
        except click.NoSuchOption as error:
            close = meant(error.option_name, _value_of(error.option_name, args)) or similar(error.option_name)
            hint = f", did you mean {' or '.join(close)}?" if close else ABSENT.get(error.option_name, "")
            raise WrongUsage(f"option {quoted(error.option_name)} is unknown{hint}") from None
        except click.BadOptionUsage as error:
            raise WrongUsage(_value_problem(error.option_name)) from None
        if rest:
            hint = _hint_of_words([str(given["remote"]), *map(str, rest)], given)
            raise WrongUsage(f"argument {quoted(rest[0])} is one too many, expected one REMOTE{hint}")
        for param in order:
            if isinstance(param, click.Option) and not (param.is_flag or param.multiple) and order.count(param) > 1:
                raise WrongUsage(f"option {param.opts[-1]} is given {order.count(param)} times, expected once")

    def get_help(self, ctx: click.Context) -> str:
        """The text of --help, for the width of the terminal (or COLUMNS)."""
        import shutil

        return help_text(shutil.get_terminal_size().columns)


class WrongUsage(click.ClickException):
    """A command line that cannot be parsed."""

    exit_code = 2
    json = False
    """Does the command line ask for JSON?"""

    def show(self, file: Any = None) -> None:
        """Prints the sentence and a pointer to --help; with `--log-format json`, a record on stdout."""
        if self.json:
            final_words("fatal", self.message, True, exit_code=self.exit_code)
            return
        final_line(f"tcpproxy: {self.message}")
        final_line("Try 'tcpproxy --help'.")


def help_text(columns: int) -> str:
    """All of --help.

    Args:
        columns: of the terminal.
    """
    width = max(NARROWEST, min(columns, WIDEST))
    lines = ["Usage: tcpproxy [OPTIONS] REMOTE", "       tcpproxy [OPTIONS] -L FORWARD...", ""]
    for sentence in INTRODUCTION:
        lines += textwrap.wrap(sentence, width)
    sections = {"Main options": [*(_described(row) for row in every_row() if row.first), *OWN]}
    sections |= {HEADINGS[group]: [_described(row) for row in rows if not row.first] for group, rows in ROWS.items()}
    for title, items in sections.items():
        if items:
            lines += ["", f"{title}:", *_in_columns(items, OPTION_COLUMNS, width)]
    lines += ["", "Examples:", *_in_columns(EXAMPLES, EXAMPLE_COLUMNS, width), ""]
    for note in NOTES:
        lines += textwrap.wrap(note, width)
    return "\n".join(lines).replace("\xa0", " ")


FAULTS = (
    ("latency=TIME[,jitter=TIME]", "Delay bytes and ends, in order; distribution=normal for the jitter."),
    ("bandwidth=RATE[,burst=SIZE]", "Limit the rate; scope=proxy: of all connections together."),
    ("slicer=SIZE[,size_variation=SIZE][,delay=TIME]", "Send in small pieces."),
    ("slow_close=TIME", "Delay the end of file alone."),
    ("stall", "Hold everything back; nothing is lost."),
    ("timeout=TIME[,end=reset]", "Discard the bytes, and end the connection later; 0: never."),
    ("timeout=TIME,idle=true", "End the connection after this time without a byte."),
    ("limit_data=SIZE[,end=reset|stall]", "End the connection after this many bytes."),
    ("reset_peer[=TIME]", "Reset both peers: at accept, or later."),
    ("close[=TIME]", "The same with an end of file."),
    ("refuse", "Refuse new connections; those that are open go on."),
    ("hang", "New connections do not complete; those that are open go on. Linux."),
    ("blackhole", "Accept, and do nothing more."),
    ("connect_delay=TIME", "Connect to REMOTE later."),
)
"""Kinds of fault. docs/faults.md has the details."""

KEYS = (
    ("toxicity=10%", "Only a share of the connections, chosen by the seed."),
    ("first=N, nth=N, every=N", "Only the first N connections, the Nth one, every Nth one."),
    ("client=NETWORK, connection=ID", "Only clients of a network, or one connection by its number."),
    ("after_bytes=SIZE, after=TIME", "Begin after this many bytes, or this time after the accept."),
    ("times=N", "Act on N connections at most."),
    ("start=TIME, for=TIME, repeat=TIME", "Windows of time, counted from when it is put in force."),
    ("name=NAME, seed=N", "A name for the log; a seed of its own."),
)
"""Attributes that most kinds of fault have."""


def faults_text(columns: int) -> str:
    """All of --help-faults.

    Args:
        columns: of the terminal.
    """
    width = max(NARROWEST, min(columns, WIDEST))
    lines = ["--fault [DIRECTION:]KIND[=VALUE][,KEY=VALUE]...", ""]
    directions = "DIRECTION is to_upstream (what clients send), to_client (what they get; the default) or both."
    lines += textwrap.wrap(directions, width)
    lines += textwrap.wrap("Times and rates carry a unit: 100us, 20ms, 2s; 64kB/s, 1MiB/s, 10Mbit/s.", width)
    lines += ["", "Kinds:", *_in_columns(FAULTS, EXAMPLE_COLUMNS, width)]
    lines += ["", "Keys:", *_in_columns(KEYS, EXAMPLE_COLUMNS, width)]
    return "\n".join(lines)


def _described(row: Option) -> tuple[str, str]:
    """An option as it is written, and its description; a no-break space keeps the default in one piece."""
    names = f"{row.short}, {row.long}" if row.short else f"    {row.long}"
    default = f" [default: {row.shown or row.default}]".replace(" ", "\xa0").replace("\xa0", " ", 1)
    return f"{names} {row.metavar}".rstrip(), row.help + (default if row.metavar else "")


def _in_columns(items: Any, left: int, width: int) -> list[str]:
    lines = []
    for term, description in items:
        start = f"  {term}"
        indent = " " * (left if width >= TWO_COLUMNS else 8)
        if len(start) + 2 > len(indent):
            lines.append(start)
            start = ""
        lines += textwrap.wrap(description, width, initial_indent=start.ljust(len(indent)), subsequent_indent=indent)
    return lines


def _value_of(name: str, args: list[str]) -> str:
    """The value after an unknown option, or in the same word."""
    for number, word in enumerate(args):
        if word == name:
            return args[number + 1] if len(args) > number + 1 else ""
        if word.startswith(f"{name}=") or (word.startswith(name) and not name.startswith("--")):
            return word.removeprefix(name).removeprefix("=")
    return ""


def _values(given: object) -> Sequence[object]:
    """The values of an option: several of one that may be repeated."""
    return given if isinstance(given, list) else [given]


def _hint_of_words(words: list[str], given: dict[str, Any]) -> str:
    """A hint for several arguments: a forward with spaces in it, addresses of socat, networks, a fallback."""
    for row in every_row():
        if row.name in ("allow", "deny") and given.get(row.name) and re.fullmatch(r"[\da-f.:]+/\d+", words[0], re.I):
            return f"; networks have commas between them: {row.long} {','.join([*given[row.name], words[0]])}"
    for word in words:
        if habits.is_of_kubectl(word):
            there = "`kubectl port-forward` reaches it, and tcpproxy reaches HOST:PORT"
            return f"; {quoted(word)} is a name of kubectl's: {there}"
    targets = [each for word in words for each in word.split(",") if each]
    if targets != words and all(re.fullmatch(r"[^/@]*:\d+", each) for each in targets):
        hint = habits.Spelling(",".join(targets)).in_command()
        return f"; several targets have commas alone between them: {hint}"
    if len(words) == 2 and all(re.fullmatch(r"(?!localhost:)[\w-]*[a-z][\w.-]*:\d+", each, re.I) for each in words):
        return f"; to use {words[1]} while {words[0]} cannot be reached: tcpproxy {','.join(words)}"
    return _hint(habits.forward(":".join(words)) or (habits.socat(*words) if len(words) == 2 else None))


def _hint(there: habits.Spelling | None) -> str:
    return f"; {there.meaning}: {there.in_command()}" if there else ""


def _value_problem(name: str) -> str:
    """The error for an option that lacks its value, or has one and takes none."""
    for row in every_row():
        if name in (row.short, row.long):
            return f"option {row.long} " + (
                f"has no value, expected {row.metavar}" if row.metavar else "takes no value"
            )
    return f"option {name} takes no value"
