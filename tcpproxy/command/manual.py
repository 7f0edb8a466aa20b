"""The texts of --help and --help-faults."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

from ..config.groups import HEADINGS, ROWS, every_row
from ..config.options import Option

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


def columns() -> int:
    """The width of the terminal, or COLUMNS."""
    return shutil.get_terminal_size().columns


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
