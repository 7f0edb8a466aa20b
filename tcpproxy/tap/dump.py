"""The bytes that pass, in hex or as text. Pure functions, except for the class Dump.

Bytes of a peer never reach the terminal unescaped, and never begin a line: lines of hex begin with an offset, lines of
text with two spaces.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..directions import DIRECTIONS
from ..text import clean, timestamp

PieceKind = Literal["data", "fin", "rst", "end", "gap", "lost"]
"""What a Piece is about.

data: a read brought bytes.
fin: the end of what `side` sends was passed on.
rst: the proxy has reset the other side; nothing more comes from `side`.
end: the connection has ended; `data` is the reason.
gap: `size` bytes of `side` are left out, because output was slow.
lost: the ends of `offset` other connections, and `size` of their bytes, are left out for the same reason.
"""


class Piece(NamedTuple):
    """Something to show.

    Attributes:
        kind: what it is about: a PieceKind.
        id: the number of the connection.
        side: who sent the bytes; 0: the client, 1: upstream.
        time_ns: when it happened, in nanoseconds since 1970.
        offset: bytes that `side` had sent before.
        size: bytes of the read; `data` may have only the first of them.
        data: the bytes.
    """

    kind: PieceKind
    id: int
    side: int
    time_ns: int
    offset: int
    size: int
    data: bytes


SIGNS = "><"
"""By side: toward upstream, toward the client."""

COLORS = ("\x1b[36m", "\x1b[33m")
"""By side. Cyan and yellow: people who confuse red and green can tell them apart."""
PLAIN = "\x1b[0m"

NOT_TEXT = 0.3
"""A read is shown in hex if more than this share of its bytes is neither printable nor white space. In colored text
escapes are a tenth; in a protocol with binary numbers the share is far above this limit."""

_ASCII = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\r"})


class Dump:
    """Shows pieces as text.

    Args:
        text: show a read as text if it is mostly text; False: all reads in hex.
        color: color the first line of each piece.
    """

    def __init__(self, *, text: bool = False, color: bool = False) -> None:
        self._text, self._color = text, color

    def __call__(self, piece: Piece) -> str:
        """The lines of a piece, each with its line break."""
        body = ""
        if piece.kind == "data":
            line = header(piece.side, timestamp(piece.time_ns), piece.id, piece.offset, piece.size)
            body = self._body(piece)
        else:
            line = _event(piece)
        if self._color and piece.kind not in ("end", "lost"):
            line = f"{COLORS[piece.side]}{line}{PLAIN}"
        return f"{line}\n{body}"

    def _body(self, piece: Piece) -> str:
        body = text_lines(piece.data) if self._text else ""
        body = body or hex_lines(piece.data, piece.offset)
        rest = piece.size - len(piece.data)
        return f"{body}… {rest:,} more bytes\n" if rest else body


JSON_KINDS = {"data": "data", "fin": "end-of-stream", "rst": "reset", "gap": "gap"}
"""Names of pieces in lines of JSON. There is none for `end`: JSON has a record for it without a dump, too."""


def fields(piece: Piece) -> dict[str, object]:
    """The fields of a piece of JSON_KINDS in a line of JSON, without `time`, `level` and `kind`; bytes in base64."""
    found: dict[str, object] = {"id": piece.id, "direction": DIRECTIONS[piece.side], "offset": piece.offset}
    if piece.kind in ("data", "gap"):
        found["size"] = piece.size
    if piece.kind == "data":
        import base64  # only a dump as JSON needs it

        found["data"] = base64.b64encode(piece.data).decode("ascii")
    return found


def header(side: int, when: str, id: int, offset: int, size: int) -> str:
    """The first line of a read, in socat's words.

    Args:
        side: who sent the bytes; 0: the client, 1: upstream.
        when: the time, as text.
        id: the number of the connection.
        offset: bytes that this side had sent before.
        size: bytes of the read, more than 0.
    """
    return f"{SIGNS[side]} {when} #{id} length={size} from={offset} to={offset + size - 1}"


def _event(piece: Piece) -> str:
    """The line of a piece that is no read."""
    start = f"{SIGNS[piece.side]} #{piece.id}"
    match piece.kind:
        case "fin":
            return f"{start} end of stream after {piece.offset:,} bytes"
        case "rst":
            return f"{start} reset after {piece.offset:,} bytes"
        case "gap":
            return f"{start} {piece.size:,} bytes not shown (output is slow)"
        case "end":
            return f"= #{piece.id} over: {clean(piece.data.decode('ascii', 'backslashreplace'))}"
    return f"= {lost(piece)}"


def lost(piece: Piece) -> str:
    """The text of a piece of the kind `lost`."""
    return f"the ends of {piece.offset:,} connections and {piece.size:,} bytes not shown (output is slow)"


def hex_lines(data: bytes, offset: int) -> str:
    """The lines of `hexdump -C`: a `*` stands for lines equal to the one before. Unlike there, the last line, which has
    the offset after the last byte, follows only a `*`.

    Args:
        data: the bytes.
        offset: the offset of the first byte.
    """
    digits, letters = data.hex(" "), data.translate(_ASCII).decode("ascii")
    lines = []
    before = b""
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        if line != before:
            start = at * 3
            lines.append(
                f"{offset + at:08x}  {digits[start : start + 23]:23}  {digits[start + 24 : start + 47]:23}"
                f"  |{letters[at : at + 16]}|\n"
            )
            before = line
        elif lines[-1] != "*\n":
            lines.append("*\n")
    if lines and lines[-1] == "*\n":
        lines.append(f"{offset + len(data):08x}\n")
    return "".join(lines)


def text_lines(data: bytes) -> str:
    r"""The bytes as UTF-8, with two spaces before each line; unprintable characters are escaped, as `\x1b` or `\r`.

    Empty: they are mostly not text.
    """
    valid = data.decode("utf-8", "ignore")
    odd = len(data) - len(valid.encode()) + len(data) - len(data.translate(None, _CONTROLS))
    if odd > NOT_TEXT * len(data):
        return ""
    lines = data.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n")
    return "".join(f"  {clean(line)}\n" for line in lines)
