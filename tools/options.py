"""Writes what the documentation says of the options: docs/options.md, and the tables in README.md and docs/library.md.

python tools/options.py            writes all of them
python tools/options.py --check    writes nothing; exit code 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from tcpproxy.config.groups import HEADINGS, ROWS, every_row
from tcpproxy.config.options import Option

ROOT = Path(__file__).parents[1]
README, PAGE, LIBRARY = ROOT / "README.md", ROOT / "docs/options.md", ROOT / "docs/library.md"
BEGIN, END = "<!-- options -->\n", "<!-- /options -->\n"

HEAD = """\
<!-- Written by tools/options.py from tcpproxy/config/groups.py: change it there. -->

# Options

`tcpproxy [OPTIONS] REMOTE` forwards TCP connections to REMOTE, which is `HOST:PORT`, `[IPv6]:PORT`, or the path of a
UNIX socket; [forwards.md](forwards.md) has all forms. In a program,
`tcpproxy.Proxy(remote, ...)` takes the same options as keyword arguments ([library.md](library.md)).

**Times** are seconds, or a number with `ms`, `s`, `m`, `h` or `d`: `250ms`, `10s`, `1.5m`. The longest is 365 days.

**Sizes** are bytes, or a whole number with a unit. `KiB`, `MiB`, `GiB` and a letter alone (`K`, `k`, `M`, `m`, `G`,
`g`) are powers of 1024; `kB`, `KB`, `MB`, `GB` are powers of 1000.

In a program times and sizes may be numbers, in seconds and bytes.

**`off` and `0`** are the same for `--idle-timeout`, `--keepalive`, `--socket-buffer`, `--dump-limit`,
`--capture-rotate` and `--busy-poll`; in a program `None` is so too, except for `busy_poll`. Three others accept `0`,
with a meaning of its own, and no `off`: `--half-close-timeout 0` closes both directions at the first end, `--grace 0`
resets connections at once, `-l 0` picks a free port. For `max_connections`, `max_connections_per_source`,
`allow` and `deny` `None` is the default.

Options come from the command line only. There is no environment variable and no configuration file for them. A value
may be given once: `-l 1 -l 2` is an error.
"""

TAIL = """
## Version and help

`-V`, `--version` prints the version, with the poller and the features that are compiled in: `tcpproxy 0.1.0 (epoll,
splice)`. `-h`, `--help` prints a summary of this page.
"""


def readme_table() -> str:
    """The table between the two marks in README.md: the options that are no details of others."""
    lines = ["| option | default | |", "|---|---|---|"]
    for row in sorted([row for row in every_row() if not row.minor], key=lambda row: not row.first):
        names = f"`{row.short}`, `{typed(row)}`" if row.short else f"`{typed(row)}`"
        help = row.help[0].lower() + row.help[1:].removesuffix(".")
        names = names.replace("|", "\\|")
        lines.append(f"| {names} | {default(row)} | {help} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def library_table() -> str:
    """The table between the two marks in docs/library.md: arguments, their defaults, their places in `Proxy.config`."""
    lines = ["| argument | default | in `config` | option of the command |", "|---|---|---|---|"]
    for group, options in ROWS.items():
        for row in options:
            if not row.command_only:
                shown = f": {row.shown}" if row.shown and row.embedded is None else ""
                other = "" if row.embedded is None else f" (the command: {default(row)})"
                told = f"`{row.default_in_program!r}`{shown}{other}"
                lines.append(f"| `{row.name}` | {told} | `{group}.{row.name}` | `{row.long}` |")
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """All of docs/options.md."""
    parts = [HEAD]
    for group, options in ROWS.items():
        parts.append(f"\n## {HEADINGS[group]}\n")
        parts += [section(row) for row in options]
    return "".join([*parts, TAIL])


def section(row: Option) -> str:
    """One option, with all that there is to say."""
    names = f"{row.short}, {typed(row)}" if row.short else typed(row)
    told = f"Default: {default(row)}. " if row.metavar else ""
    if row.command_only:
        told += "Not in a program."
    elif row.embedded is None:
        told += f"In a program: `{row.name}`, with the same default."
    else:
        told += f"In a program: `{row.name}`, default `{row.embedded!r}`."
    return f"\n### `{names}`\n\n{filled(f'{row.help} {row.doc}')}\n\n{filled(told)}\n"


def filled(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def typed(row: Option) -> str:
    """As it is written on the command line."""
    return f"{row.long} {row.metavar}".rstrip()


def default(row: Option) -> str:
    """The default of the command."""
    return row.shown or f"`{row.default}`" if row.metavar else ""


def with_table(path: Path, table: str) -> str:
    """The text of a file with the table between its two marks."""
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + table + END + after


def pages() -> dict[Path, str]:
    """Each file with the text that it should have."""
    return {
        README: with_table(README, readme_table()),
        PAGE: options_page(),
        LIBRARY: with_table(LIBRARY, library_table()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what is out of date")
    check = parser.parse_args().check
    stale = 0
    for path, text in pages().items():
        if not path.exists() or path.read_text("utf-8") != text:
            stale += 1
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'is written'}")
            if not check:
                path.write_text(text, "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
