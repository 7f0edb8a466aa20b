"""Formats the live view: makes lines for a terminal from a Picture. The only importer of rich; imported on demand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.screen import Screen
from rich.table import Table
from rich.text import Text

from ..report.event import Event
from ..report.table import Rates, waits_for
from ..text import bytes_text, span
from ..views import Connection
from .picture import MANY, SLOW_PERIOD, Picture

HEADER = 5
"""Lines above the table; the last one is mostly empty, and shows for example that the view is paused."""

MOST_LINES = 6
"""The most lines of the log, at the bottom."""

WIDE, MEDIUM = 100, 70
"""A terminal with fewer columns than WIDE lacks idle times and totals; with fewer than MEDIUM also upstream."""

NOT_NARROW, NOT_MEDIUM = ("upstream",), ("idle", "up", "down")

LEAST = {
    "#": 4,
    "client": 15,
    "upstream": 13,
    "state": 11,
    "age": 6,
    "idle": 6,
    "up/s": 7,
    "down/s": 7,
    "up": 7,
    "down": 7,
}
"""Columns of the table, and their least widths, so that the layout does not change with every number."""

RIGHT = ("#", "age", "idle", "up/s", "down/s", "up", "down")
"""Columns that are aligned to the right."""

SHRINKING = ("upstream", "state", "client")
"""Columns that are cut if there is not enough room, in this order."""

KEYS = (
    ("q", "stop, as Ctrl-C does: connections may end for the grace time; again: at once"),
    ("space", "hold the picture, and go on"),
    ("s, S", "sort by the next column; the other way round"),
    ("arrows", "one connection up or down; PgUp, PgDn: a page; Home, End: all the way"),
    ("Ctrl-Z", "put it aside; the shell's fg brings it back"),
    ("?", "this help, and back"),
)

STATES = {"relaying": "green", "connecting": "cyan", "resolving": "cyan", "closing": "magenta"}


@dataclass(frozen=True)
class Glyphs:
    """Signs that not every terminal has."""

    up: str = "↑"
    down: str = "↓"
    to: str = "→"
    bars: str = " ▁▂▃▄▅▆▇█"


PLAIN = Glyphs("^", "v", "->", " .:-=+*#@")


class Painter:
    """Paints pictures for the terminal on stdout, with its colours (NO_COLOR, TERM, COLORTERM) and its signs."""

    def __init__(self) -> None:
        self._encoding = sys.stdout.encoding
        self._glyphs = Glyphs() if self._encoding.lower().replace("-", "") == "utf8" else PLAIN
        self._console = Console(file=StringIO(), force_terminal=True, legacy_windows=False, highlight=False)

    def paint(self, picture: Picture, columns: int, lines: int) -> bytes:
        """Returns the bytes that draw the whole screen."""
        self._console.size = (columns, lines)
        with self._console.capture() as capture:
            screen = Screen(frame(picture, columns, lines, self._glyphs), application_mode=True)
            self._console.print(screen, end="")
        return capture.get().encode(self._encoding, "replace")


def page(picture: Picture, lines: int) -> int:
    """How many live connections a screen of `lines` lines shows."""
    room = _room(lines)
    return max(1, room - _ended_shown(picture, room))


def frame(picture: Picture, columns: int, lines: int, glyphs: Glyphs = Glyphs()) -> RenderableType:
    """The picture, in exactly `lines` lines."""
    room = _room(lines)
    shown = picture.connections[picture.first : picture.first + page(picture, lines)]
    count = _ended_shown(picture, room)
    ended = picture.ended[len(picture.ended) - count :]
    middle: list[RenderableType]
    if picture.help:
        middle = [_line(f"  {key:8}{what}") for key, what in KEYS[: room + 1]]
        used = len(middle)
    else:
        middle = [table(shown, picture.rates, ended, columns, glyphs)]
        used = 1 + len(shown) + len(ended)
    gap: list[RenderableType] = [Text("")] * max(0, room + 1 - used)
    return Group(*_header(picture, columns, glyphs), *middle, *gap, *_foot(picture, lines, len(shown)))


def table(
    connections: Sequence[Connection], rates: Rates, ended: Sequence[Event], columns: int, glyphs: Glyphs = Glyphs()
) -> Table:
    """One line a connection. Those that have ended are below, dim, with their reason.

    Args:
        connections: in the order of the lines.
        rates: see `report.table.measure`.
        ended: events of the kinds `end` and `failed`.
        columns: of the terminal.
        glyphs: signs for the directions.
    """
    left_out = NOT_MEDIUM * (columns < WIDE) + NOT_NARROW * (columns < MEDIUM)
    over = [_cells_of_ended(event) for event in ended]
    for exact in (True, False):
        rows = [_cells(it, *rates.get(it.id, (0.0, 0.0)), exact) for it in connections]
        widths = {
            name: max(least, *(len(row[name]) for row in (*rows, *over)), 0)
            for name, least in LEAST.items()
            if name not in left_out
        }
        excess = sum(widths.values()) + len(widths) - 1 - columns
        if excess <= 0:
            break
    for name in SHRINKING:
        if name in widths and excess > 0:
            cut = min(excess, widths[name] - LEAST[name])
            widths[name] -= cut
            excess -= cut
    found = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for name, width in widths.items():
        heading = name.replace("up/", f"{glyphs.up}/").replace("down/", f"{glyphs.down}/")
        heading = {"up": glyphs.up, "down": glyphs.down}.get(heading, heading)
        found.add_column(
            heading, width=width, justify="right" if name in RIGHT else "left", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        found.add_row(*(Text(row[name], style=_style(name, row[name])) for name in widths))
    for row in over:
        found.add_row(*(Text(row[name]) for name in widths), style="dim")
    return found


def sparkline(values: Sequence[float], room: int, bars: str) -> str:
    """A bar for each value, or for the mean of several if there is not room for all; the highest bar is full."""
    each = -(-len(values) // max(1, room))
    groups = [values[start : start + each] for start in range(0, len(values), max(1, each))]
    means = [sum(group) / len(group) for group in groups]
    highest = max(means, default=0) or 1
    return "".join(bars[math.ceil(mean / highest * (len(bars) - 1))] for mean in means)


def _room(lines: int) -> int:
    """Lines for connections, below the headings."""
    return max(0, lines - HEADER - 1 - _log_lines(lines) - 1)


def _log_lines(lines: int) -> int:
    return min(MOST_LINES, lines // 4)


def _ended_shown(picture: Picture, room: int) -> int:
    """How many ended connections are shown: as many as live ones leave room for, but at least a third of the room."""
    return min(len(picture.ended), max(room - len(picture.connections), room // 3))


def _header(picture: Picture, columns: int, glyphs: Glyphs) -> list[Text]:
    stats = picture.stats
    route = Text.assemble("tcpproxy  ", (picture.route[0], "bold"), f" {glyphs.to} ", (picture.route[1], "bold"))
    numbers = Text(f"{stats.active:,} open  {stats.accepted:,} accepted")
    for number, what in ((stats.failed, "failed"), (stats.refused, "refused")):
        numbers.append(f"  {number:,} {what}", style="red" if number else "")
    unusual = [("paused", "reverse")] * picture.paused
    if picture.is_slow:
        unusual.append((f"over {MANY:,} connections: drawn every {SLOW_PERIOD:g} s", "yellow"))
    state = Text("  ").join(Text(text, style=style) for text, style in unusual)
    lines = [_both_sides(route, Text(f"up {span(picture.up)}"), columns), _line(numbers)]
    for number, (arrow, what) in enumerate(((glyphs.up, "to upstream"), (glyphs.down, "to clients"))):
        start = f"{arrow} {what:11} {bytes_text(round(picture.rate[number])):>10}/s  "
        past = [rates[number] for rates in picture.history]
        bars = sparkline(past, columns - len(start), glyphs.bars)
        lines.append(_line(Text.assemble(start, (bars, "cyan"))))
    return [*lines, _line(state)]


def _foot(picture: Picture, lines: int, shown: int) -> list[Text]:
    count = _log_lines(lines)
    log = picture.lines[-count:] if count else []
    rows = [_line(Text(text, style="red" if trouble else "dim")) for text, trouble in log]
    rows = [Text("")] * (count - len(rows)) + rows
    if not picture.keys:
        return [*rows, _line("Ctrl-C stops")]
    order = f"{picture.order}{' reversed' * picture.reverse}"
    keys = f"q stop  space {'go on' if picture.paused else 'pause'}  s/S sort: {order}  ? help"
    far = len(picture.connections)
    where = f"  {picture.first + 1:,}-{picture.first + shown:,} of {far:,}" if shown < far else ""
    return [*rows, _line(Text(keys + where, style="reverse"))]


def _both_sides(left: Text, right: Text, columns: int) -> Text:
    gap = max(2, columns - left.cell_len - right.cell_len)
    return _line(Text.assemble(left, " " * gap, right))


def _line(text: str | Text) -> Text:
    line = Text(text) if isinstance(text, str) else text
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _cells(it: Connection, rate_up: float, rate_down: float, exact: bool) -> dict[str, str]:
    waiting = waits_for(it) if it.state in ("relaying", "closing") else ""
    if not exact:
        waiting = ", ".join(side.partition(" ")[0] for side in waiting.split(", "))
    return {
        "#": f"#{it.id}",
        "client": it.client,
        "upstream": it.upstream or "-",
        "state": f"slow {waiting}".replace("(", "").replace(")", "") if waiting else it.state,
        "age": _short(span(it.age)),
        "idle": _short(span(it.idle)),
        "up/s": _short(bytes_text(round(rate_up))),
        "down/s": _short(bytes_text(round(rate_down))),
        "up": _short(bytes_text(it.to_upstream)),
        "down": _short(bytes_text(it.to_client)),
    }


def _cells_of_ended(event: Event) -> dict[str, str]:
    return {
        "#": f"#{event.id}",
        "client": event.client,
        "upstream": event.upstream or "-",
        "state": event.reason,
        "age": _short(span(event.duration)),
        "idle": "",
        "up/s": "",
        "down/s": "",
        "up": _short(bytes_text(event.to_upstream)),
        "down": _short(bytes_text(event.to_client)),
    }


def _style(name: str, text: str) -> str:
    if name == "state":
        return STATES.get(text, "yellow")
    return "dim" if text in ("0B", "-") else ""


def _short(text: str) -> str:
    """Makes `2h13m` from `2 h 13 min`, for a column."""
    return text.replace(" min", "m").replace(" ", "")
