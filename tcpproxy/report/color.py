"""Whether to color what is written to a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping


def wants_color(choice: str, stream: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Are colors wanted?

    Args:
        choice: `always`, `never`, or `auto`: on a terminal that has them, unless the user wants none.
        stream: the descriptor that is written to.
        environ: NO_COLOR is looked up there, and TERM; on Windows WT_SESSION, because older consoles print escapes.
    """
    if choice != "auto":
        return choice == "always"
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not os.isatty(stream):
        return False
    return os.name != "nt" or "WT_SESSION" in environ
