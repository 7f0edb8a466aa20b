"""A picture of horizontal bars, one panel a case, written as SVG without any library."""

from __future__ import annotations

from html import escape

WIDTH, COLUMNS, MARGIN = 1140, 3, 16
LABELS, VALUES, BAR, HEAD = 98, 62, 17, 26
PANEL = (WIDTH - MARGIN * (COLUMNS + 1)) // COLUMNS
STYLE = """text { font: 11px sans-serif; fill: #222 } .title { font-size: 15px; font-weight: bold }
.head { font-weight: bold }
.bar { fill: #a9b4c2 } .ours { fill: #d1495b } .direct { fill: #dfe4ea } .value, .label { font-size: 10px }"""

Panel = tuple[str, dict[str, float], int]


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _panel(x: float, y: float, panel: Panel) -> list[str]:
    """Returns the elements of one panel with its upper left corner at (x, y); the longest bar is the largest figure."""
    head, bars, digits = panel
    most = max(bars.values(), default=0.0) or 1.0
    room = PANEL - LABELS - VALUES
    parts = [_text(x, y + 14, head, "head")]
    for row, (peer, value) in enumerate(bars.items()):
        top = y + HEAD + row * BAR
        kind = peer if peer in ("ours", "direct") else "bar"
        length = max(room * value / most, 1.0)
        parts.append(_text(x + LABELS - 6, top + 10, peer, "label", "end"))
        parts.append(f'<rect x="{x + LABELS}" y="{top}" width="{length:.1f}" height="{BAR - 5}" class="{kind}"/>')
        parts.append(_text(x + LABELS + length + 5, top + 10, f"{value:,.{digits}f}", "value"))
    return parts


def picture(title: str, panels: list[Panel]) -> str:
    """Returns an SVG document with the panels in rows of three."""
    parts = [_text(MARGIN, 26, title, "title")]
    y = 44
    for first in range(0, len(panels), COLUMNS):
        row = panels[first : first + COLUMNS]
        for column, panel in enumerate(row):
            parts += _panel(MARGIN + column * (PANEL + MARGIN), y, panel)
        y += HEAD + BAR * max(len(bars) for _, bars, _ in row) + MARGIN
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>"]
    lines += ['<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]
    return "\n".join(lines) + "\n"
