"""Everything a proxy is told, checked and converted. Nothing here touches a socket or a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

from .._core.worker import LIMITS
from ..errors import UsageError
from ..text import quoted
from .endpoints import ANY_REMOTE, Endpoint, Remotes, endpoints, listen_endpoint, parse_endpoints
from .forwards import ForwardSpec
from .groups import (
    GROUPS,
    ROWS,
    UNIX_MODE,
    Bending,
    Clients,
    Connecting,
    Listening,
    Memory,
    Operating,
    Options,
    Output,
    ProxyProtocol,
    Rates,
    Seeing,
    Speed,
    Timeouts,
    every_row,
)
from .paths import is_path


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a proxy, as `Proxy.config` shows it; `make` builds one from arguments.

    Times are in seconds and sizes in bytes; `off` is 0.

    Attributes:
        forwards: each with its `listener` and `targets`, which have `host` and `port`, or `path`. A remote makes one.
        listening: `bind` and `port` (0: a free one); `forwards`, as they were given; `unix_mode` (a number).
        connecting: `source` (a tuple).
        clients: `max_connections` (None: from the limit of open files), `max_connections_per_source` (0: any number),
            `allow` and `deny` (None: none).
        proxy_protocol: `send_proxy` (None: off), `accept_proxy` (None: off), `proxy_header_timeout`.
        timeouts: `connect_timeout`, `half_close_timeout`, `idle_timeout`, `keepalive`, `grace`.
        memory: `buffer_size`, `socket_buffer`.
        rates: `max_rate`, `max_rate_per_connection`, each (to upstream, to clients) in bytes per second; 0: none.
        output: `debug`, `quiet`, `log_format`: of the command only.
        seeing: `capture` (None: none), `capture_rotate`, `capture_files` (0: any number); of the command only: `top`,
            `hex`, `text`, `dump_limit`, `color`.
        bending: `fault`, `preset`, `seed`: of the command only.
        operating: `workers` (their number), `sandbox` (of the command only).
        speed: `zero_copy`, `busy_poll` (in microseconds; -1: auto).
        labels: what messages call each option: with dashes in the command, by its argument in a program.
    """

    forwards: tuple[ForwardSpec, ...]
    listening: Listening
    connecting: Connecting
    clients: Clients
    proxy_protocol: ProxyProtocol
    timeouts: Timeouts
    memory: Memory
    rates: Rates
    output: Output
    seeing: Seeing
    bending: Bending
    operating: Operating
    speed: Speed
    labels: Mapping[str, str] = field(repr=False, compare=False)

    @property
    def remote(self) -> str:
        """The target of a proxy with one forward, or all of it.

        Raises:
            RuntimeError: there are several.
        """
        if len(self.forwards) > 1:
            raise RuntimeError(f"the proxy has {len(self.forwards)} forwards, expected one")
        return self.forwards[0].remote

    @property
    def targets(self) -> str:
        """All targets, for people."""
        return ", ".join(each.remote for each in self.forwards)

    def with_remote(self, remote: Remotes) -> Config:
        """The same with other targets, for a proxy with one forward.

        Raises:
            UsageError: as `make`.
        """
        forward = self.forwards[0]._replace(targets=endpoints(remote))
        _check_targets((forward,), "remote")
        return replace(self, forwards=(forward,))

    @classmethod
    def make(cls, remote: Remotes | Config | None, **given: Unpack[Options]) -> Config:
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
        labels = {row.name: row.name for row in every_row()}
        named = [name for name in ("bind", "port") if name in given]
        _check_forwards(None if remote is None else "remote", values, named, labels)
        return cls._convert(() if remote is None else endpoints(remote), str(remote), values, labels)

    @classmethod
    def for_command(cls, remote: str | None, given: Mapping[str, Any]) -> Config:
        """The same for the command: with its defaults, and its names of the options in errors.

        Args:
            remote: the command's argument; None: not given.
            given: option values by the names of their rows; one that is missing or None has its default.

        Raises:
            UsageError: the first value that is invalid.
        """
        values = {row.name: given[row.name] if _is_given(row.name, given) else row.default for row in every_row()}
        labels = {row.name: row.long for row in every_row()}
        named = [name for name in ("bind", "port") if _is_given(name, given)]
        _check_forwards(None if remote is None else "REMOTE", values, named, labels)
        return cls._convert(() if remote is None else parse_endpoints(remote), remote or "", values, labels)

    @classmethod
    def _convert(
        cls, remote: tuple[Endpoint, ...], text: str, values: Mapping[str, Any], labels: Mapping[str, str]
    ) -> Config:
        groups = {
            name: group(**{row.name: row.parse(labels[row.name], values[row.name]) for row in ROWS[name]})
            for name, group in GROUPS.items()
        }
        _check_seeing(groups["seeing"], values, labels)
        _check_proxying(values, labels)
        listening = groups["listening"]
        forwards = listening.forwards
        if remote:
            forwards = (ForwardSpec(text, listen_endpoint(listening.bind, listening.port), remote),)
        paths = [each.listener.path for each in forwards if each.listener.path]
        places = [str(each.listener) for each in forwards if each.listener.path or each.listener.port]
        if len(set(places)) < len(places):
            raise UsageError(f"{labels['forwards']} has {quoted(max(places, key=places.count))} twice to listen on")
        _check_targets(forwards, "remote" if remote else labels["forwards"])
        served = groups["operating"].metrics
        files = [*paths, *([served.path] if served else [])]
        if values["unix_mode"] != UNIX_MODE and not any(path and not path.startswith("@") for path in files):
            abstract = ", with a file: abstract names have no rights" if any(files) else ""
            raise UsageError(f"{labels['unix_mode']} needs a UNIX socket to listen on{abstract}")
        return cls(forwards=forwards, labels=labels, **groups)


def _is_given(name: str, given: Mapping[str, Any]) -> bool:
    """Is it on the command line? Of an option that may be repeated click makes an empty tuple if it is not."""
    return given.get(name) not in (None, ())


def _check_forwards(
    remote: str | None, values: Mapping[str, Any], named: Sequence[str], labels: Mapping[str, str]
) -> None:
    """UsageError: there is neither a remote nor a forward, or both.

    Args:
        remote: what the remote is called, if there is one.
        values: of all options.
        named: the options that are given and that forwards replace.
    """
    forwards, has_forwards = labels["forwards"], bool(values["forwards"])
    if not has_forwards and not remote:
        raise UsageError(f"remote is missing, {ANY_REMOTE}, or {forwards}")
    for other in [*([remote] if remote else []), *(labels[name] for name in named)]:
        if has_forwards:
            raise UsageError(f"{other} and {forwards} are both given: put it into the forward, [ADDR:]PORT:REMOTE")
    bind = values["bind"]
    if "port" in named and (isinstance(bind, os.PathLike) or (isinstance(bind, str) and is_path(bind))):
        raise UsageError(f"{labels['port']} is given, and {labels['bind']} is a UNIX socket, which has none")


def _check_targets(forwards: Sequence[ForwardSpec], given: str) -> None:
    """UsageError: a forward has a target twice, or there are too many.

    Args:
        forwards: all of them.
        given: what they are called: `remote`, or the option.
    """
    for each in forwards:
        what = f"{given} {quoted(each.remote if given == 'remote' else each.text)}"
        if len(each.targets) > LIMITS["targets"]:
            raise UsageError(f"{what} has {len(each.targets)} targets, expected at most {LIMITS['targets']}")
        names = list(map(str, each.targets))
        if len(set(names)) < len(names):
            raise UsageError(f"{what} has the target {max(names, key=names.count)} twice")
    count = sum(len(each.targets) for each in forwards)
    if count > LIMITS["all_targets"]:
        raise UsageError(f"{given}: {count} targets in all, expected at most {LIMITS['all_targets']}")


def _check_seeing(seeing: Seeing, values: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Checks options together: an option that can have no effect is an error."""
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


_BESIDE = ("on_event", "record", "sockets", "faults", "seed")
"""Arguments of Proxy that are no options."""

_IN_PROGRAM = {"fault": "'faults'", "preset": "faults=tcpproxy.faults.preset(NAME)"}
"""Options of the command that an argument with another name replaces."""


def _check_proxying(values: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    default = next(row.default for row in ROWS["proxy_protocol"] if row.name == "proxy_header_timeout")
    if values["proxy_header_timeout"] != default and values["accept_proxy"] is None:
        raise UsageError(f"{labels['proxy_header_timeout']} needs {labels['accept_proxy']}")


def _check_argument(name: str) -> None:
    for row in every_row():
        if name == row.name and not row.command_only:
            return
        if name in (row.name, row.long.removeprefix("--").replace("-", "_")):
            there = _IN_PROGRAM.get(name) or ("" if row.command_only else f"{row.name!r}")
            hint = f"is {there} in a program" if there else "is an option of the command only"
            raise TypeError(f"Proxy() got an unexpected keyword argument {name!r}, which {hint}")
    import difflib  # only an error needs it

    close = difflib.get_close_matches(name, (*Options.__annotations__, *_BESIDE), 1, 0.75)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise TypeError(f"Proxy() got an unexpected keyword argument {name!r}{hint}")
