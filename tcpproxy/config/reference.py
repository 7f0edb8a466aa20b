"""The options as Python shows them: the signature of `tcpproxy.Proxy` and the arguments in its docstring."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from .groups import Options, every_row
from .options import Option

_PLACE = "    <options>"
_Class = TypeVar("_Class", bound=type)


def documented(cls: _Class) -> _Class:
    """Class decorator: replaces `**options` of the constructor and `<options>` in the docstring by the options.

    The signature belongs to `__init__`, so that a subclass with another constructor shows its own.
    """
    make: Any = cls.__dict__["__init__"]
    own = inspect.signature(make)
    named = [each for each in own.parameters.values() if each.kind != each.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            row.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=row.default_in_program,
            annotation=Options.__annotations__[row.name],
        )
        for row in every_row()
        if not row.command_only
    ]
    make.__signature__ = own.replace(parameters=[*named, *options])
    if cls.__doc__:  # none under python -OO
        cls.__doc__ = _Docstring(cls.__doc__)  # type: ignore[assignment]  # reading it gives a str
    return cls


class _Docstring:
    """A docstring with the options in it, which is made when it is read: that takes milliseconds."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, _instance: object, _owner: type | None = None) -> str:
        return self._text.replace(_PLACE, "\n".join(_argument(row) for row in every_row() if not row.command_only))


def _argument(row: Option) -> str:
    import textwrap  # only the docstring needs it

    unit = f" In {row.unit}." if row.unit else ""
    meaning = f", {row.shown}" if row.shown and row.embedded is None else ""
    text = f"{row.name}: {row.help} {row.doc}{unit} Default: {row.default_in_program!r}{meaning}."
    return textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False)
