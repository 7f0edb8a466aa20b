"""The options as click has them, and the texts of usage errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from ..config import habits
from ..config.endpoints import ANY_REMOTE
from ..config.groups import every_row
from ..config.options import Option
from ..report.printer import final_line, final_words
from ..text import quoted
from .unknown import ABSENT, meant, similar


def option(row: Option) -> click.Option:
    """An option of the command, from its row. Values stay text: `Config` checks them."""
    names = [row.name, *([row.short] if row.short else []), row.long]
    return click.Option(
        names, is_flag=not row.metavar, metavar=row.metavar or None, default=None, multiple=row.multiple
    )


def showing(names: Sequence[str], text: Callable[[], str]) -> click.Option:
    """An option that prints a text and ends the command.

    Those of click for --help and --version look translations up, which takes a millisecond of every start.
    """

    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(text())
            ctx.exit()

    return click.Option(names, is_flag=True, is_eager=True, expose_value=False, callback=show)


class Command(click.Command):
    """A command with sentences of one style for usage errors."""

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
