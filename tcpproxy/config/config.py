"""Everything a proxy is told, checked and converted. Nothing here touches a socket or a thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from ..errors import UsageError
from .endpoints import Endpoint, Remote, endpoint, parse_endpoint
from .groups import (
    GROUPS,
    ROWS,
    Bending,
    Clients,
    Listening,
    Memory,
    Operating,
    Options,
    Output,
    Seeing,
    Speed,
    Timeouts,
    every_row,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a proxy needs to know, as `Proxy.config` shows it; `make` builds one from what people write.

    Times are in seconds and sizes in bytes; `off` is 0.

    Attributes:
        remote: its `host` and `port`.
        listening: `bind` and `port` (0: a free one).
        clients: `max_connections` (None: from the limit of open files), `max_connections_per_source` (0: any number).
        timeouts: `connect_timeout`, `half_close_timeout`, `idle_timeout`, `keepalive`, `grace`.
        memory: `buffer_size`, `socket_buffer`.
        output: `debug`, `quiet`, `log_format`: of the command only.
        seeing: `capture` (None: none), `capture_rotate`, `capture_files` (0: any number); of the command only: `top`,
            `hex`, `text`, `dump_limit`, `color`.
        bending: `fault`, `preset`, `seed`: of the command only.
        operating: `workers` (their number), `sandbox` (of the command only).
        speed: `zero_copy`, `busy_poll` (in microseconds; -1: auto).
        labels: what messages call each option: with dashes in the command, by its argument in a program.
    """

    remote: Endpoint
    listening: Listening
    clients: Clients
    timeouts: Timeouts
    memory: Memory
    output: Output
    seeing: Seeing
    bending: Bending
    operating: Operating
    speed: Speed
    labels: Mapping[str, str] = field(repr=False, compare=False)

    @classmethod
    def make(cls, remote: Remote | Config, **given: Unpack[Options]) -> Config:
        """Checks and converts the arguments of `tcpproxy.Proxy`. A Config is returned unchanged.

        Raises:
            UsageError: the first argument that is invalid.
            TypeError: there is no such argument.
        """
        if isinstance(remote, Config):
            return remote
        for name in given:
            _check_argument(name)
        values = {row.name: given.get(row.name, row.default_in_program) for row in every_row()}
        return cls._convert(endpoint(remote), values, {row.name: row.name for row in every_row()})

    @classmethod
    def for_command(cls, remote: str, given: Mapping[str, Any]) -> Config:
        """The same for the command: with its defaults, and its names of the options in errors.

        Args:
            remote: the command's argument.
            given: option values by the names of their rows; one that is missing or None has its default.

        Raises:
            UsageError: the first value that is invalid.
        """
        values = {row.name: row.default if given.get(row.name) is None else given[row.name] for row in every_row()}
        return cls._convert(parse_endpoint(remote), values, {row.name: row.long for row in every_row()})

    @classmethod
    def _convert(cls, remote: Endpoint, values: Mapping[str, Any], labels: Mapping[str, str]) -> Config:
        groups = {
            name: group(**{row.name: row.parse(labels[row.name], values[row.name]) for row in ROWS[name]})
            for name, group in GROUPS.items()
        }
        _check_seeing(groups["seeing"], values, labels)
        return cls(remote=remote, labels=labels, **groups)


def _check_seeing(seeing: Seeing, values: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """What only the options together say: an option that could have no effect is a mistake of whoever gives it."""
    if seeing.hex and seeing.text:
        raise UsageError("-x and -A are both given, expected one of them")
    default = next(row.default for row in ROWS["seeing"] if row.name == "dump_limit")
    if values["dump_limit"] != default and not seeing.shown:
        raise UsageError(f"{labels['dump_limit']} needs -x or -A")
    capture, rotate, files = (labels[name] for name in ("capture", "capture_rotate", "capture_files"))
    if seeing.capture_rotate and seeing.capture in (None, "-"):
        raise UsageError(f"{rotate} needs {capture} with the path of a file")
    if seeing.capture_files and not seeing.capture_rotate:
        raise UsageError(f"{files} needs {rotate} with the size of a file")


def _check_argument(name: str) -> None:
    for row in every_row():
        if name == row.name and not row.command_only:
            return
        if name in (row.name, row.long.removeprefix("--").replace("-", "_")):
            hint = "is an option of the command only" if row.command_only else f"is {row.name!r} in a program"
            raise TypeError(f"Proxy() got an unexpected keyword argument {name!r}, which {hint}")
    import difflib  # only an error needs it

    close = difflib.get_close_matches(name, Options.__annotations__, 1, 0.75)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise TypeError(f"Proxy() got an unexpected keyword argument {name!r}{hint}")
