"""The two directions of a connection, and the words for them."""

from __future__ import annotations

from .errors import UsageError
from .text import quoted

TYPE_CHECKING = False  # typing's own costs the command milliseconds
if TYPE_CHECKING:
    from .views import Direction

DIRECTIONS: tuple[Direction, Direction] = ("to_upstream", "to_client")
"""The directions, by the number of the side that sends: 0 is the client, 1 upstream."""

ALIASES = {"up": "to_upstream", "upstream": "to_upstream", "down": "to_client", "downstream": "to_client"}

STREAMS = {"to_upstream": 1, "to_client": 2, "both": 3}
"""The bits STREAM_ of _core/plan.pxd, and both."""


def known_word(value: object) -> str:
    """Returns a word with aliases resolved; empty if `value` is no text."""
    return ALIASES.get(value, value) if isinstance(value, str) else ""


def parse_side(what: str, value: object) -> int:
    """Returns the number of the side that sends in a direction.

    Raises:
        UsageError: it is no direction.
    """
    for side, direction in enumerate(DIRECTIONS):
        if known_word(value) == direction:
            return side
    raise UsageError(f"{what} {quoted(value)} is unknown, expected {' or '.join(DIRECTIONS)}")


def parse_stream(what: str, value: object) -> str:
    """Returns a direction, or `both`.

    Raises:
        UsageError: it is neither.
    """
    if (known := known_word(value)) in STREAMS:
        return known
    raise UsageError(f"{what} {quoted(value)} is unknown, expected to_upstream, to_client or both")
