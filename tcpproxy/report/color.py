"""Whether to color what is written to a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping


def wants_color(choice: str, stream: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Are colors wanted?

    Args:
        choice: `always`, `never`, or `auto`: on a terminal with colors, unless the user wants none.
        stream: the descriptor of the output.
        environ: has NO_COLOR, TERM, and on Windows WT_SESSION: older consoles there print escapes as text.
    """
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not os.isatty(stream):
        return False
    return os.name != "nt" or "WT_SESSION" in environ
