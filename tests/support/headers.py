"""Headers of the PROXY protocol: one table of good and bad ones for the parser and for whole proxies."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
CLIENT4, DESTINATION4 = ("192.0.2.1", 56324), ("198.51.100.7", 443)
CLIENT6, DESTINATION6 = ("2001:db8::1", 56324), ("2001:db8:ffff::7", 443)
MOST = 4096


def packed(*ends: tuple[str, int]) -> bytes:
    """The addresses of version 2."""
    ips = b"".join(ipaddress.ip_address(host).packed for host, _ in ends)
    return ips + b"".join(struct.pack(">H", port) for _, port in ends)


V4, V6 = packed(CLIENT4, DESTINATION4), packed(CLIENT6, DESTINATION6)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def binary(command: int = PROXY, family: int = 0x11, body: bytes = V4, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack(">BBH", command, family, size) + body


def crc32c(data: bytes) -> int:
    """Bit by bit: not as the proxy computes it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_crc(before: bytes = b"", after: bytes = b"", wrong: int = 0) -> bytes:
    """A header with a checksum among its TLVs."""
    zeroed = binary(body=V4 + before + tlv(3, bytes(4)) + after)
    crc = struct.pack(">I", crc32c(zeroed) ^ wrong)
    return binary(body=V4 + before + tlv(3, crc) + after)


def line(text: str) -> bytes:
    return f"PROXY {text}\r\n".encode()


class Good(NamedTuple):
    """A header, and what it says; None: the real addresses count."""

    header: bytes
    client: str | None
    destination: str | None = None


TCP4, TCP6 = ("192.0.2.1:56324", "198.51.100.7:443"), ("[2001:db8::1]:56324", "[2001:db8:ffff::7]:443")

GOOD = {
    "v1 TCP4": Good(line("TCP4 192.0.2.1 198.51.100.7 56324 443"), *TCP4),
    "v1 TCP6": Good(line("TCP6 2001:db8::1 2001:db8:ffff::7 56324 443"), *TCP6),
    "v1 TCP4, longest": Good(
        line("TCP4 255.255.255.255 255.255.255.255 65535 65535"), "255.255.255.255:65535", "255.255.255.255:65535"
    ),
    "v1 TCP6, longest": Good(
        line(f"TCP6 {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535"),
        f"[{':'.join(['ffff'] * 8)}]:65535",
        f"[{':'.join(['ffff'] * 8)}]:65535",
    ),
    "v1 port 0": Good(line("TCP4 192.0.2.1 198.51.100.7 0 0"), "192.0.2.1:0", "198.51.100.7:0"),
    "v1 mapped": Good(line("TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.7 56324 443"), *TCP4),
    "v1 UNKNOWN": Good(line("UNKNOWN"), None),
    "v1 UNKNOWN, more": Good(line("UNKNOWN ffff::1 ffff::2 1 2"), None),
    "v1 UNKNOWN, anything": Good(b"PROXY UNKNOWN \0\xff  x\r\n", None),
    "v1 UNKNOWN, longest": Good(b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", None),
    "v2 TCP4": Good(binary(), *TCP4),
    "v2 TCP6": Good(binary(family=0x21, body=V6), *TCP6),
    "v2 UDP4": Good(binary(family=0x12), *TCP4),
    "v2 UDP6": Good(binary(family=0x22, body=V6), *TCP6),
    "v2 UNIX stream": Good(binary(family=0x31, body=UNIX), None),
    "v2 UNIX datagram": Good(binary(family=0x32, body=UNIX), None),
    "v2 UNSPEC": Good(binary(family=0, body=b""), None),
    "v2 UNSPEC, bytes": Good(binary(family=0, body=b"\xff" * 7), None),
    "v2 LOCAL": Good(binary(LOCAL, 0, b""), None),
    "v2 LOCAL, TCP4": Good(binary(LOCAL, 0x11, V4), None),
    "v2 LOCAL, no addresses": Good(binary(LOCAL, 0x11, b""), None),
    "v2 LOCAL, half an address": Good(binary(LOCAL, 0x21, b"12345"), None),
    "v2 LOCAL, odd family": Good(binary(LOCAL, 0xFF, b"\xff" * 40), None),
    "v2 LOCAL, no TLV": Good(binary(LOCAL, 0x11, V4 + b"\3\xff\xff"), None),
    "v2 TLVs": Good(binary(body=V4 + tlv(4, bytes(9)) + tlv(1, b"h2") + tlv(0xE0, b"") + tlv(5, b"x" * 128)), *TCP4),
    "v2 payload in a TLV": Good(binary(body=V4 + tlv(0xEE, binary())), *TCP4),
    "v2 certificate": Good(binary(body=V4 + tlv(0x20, b"x" * 2000)), *TCP4),
    "v2 longest": Good(binary(body=V4 + tlv(4, bytes(MOST - 16 - 12 - 3))), *TCP4),
    "v2 checksum": Good(with_crc(), *TCP4),
    "v2 checksum between": Good(with_crc(tlv(1, b"h2"), tlv(4, b"abc")), *TCP4),
    "v2 mapped": Good(
        binary(family=0x21, body=packed(("::ffff:192.0.2.1", 56324), ("::ffff:198.51.100.7", 443))), *TCP4
    ),
}

NO_SIGNATURE = "neither version of the header begins so"
NO_CRLF = "a line of version 1 without CRLF in 107 bytes"
LINE_END = "a line of version 1 with a CR or LF that does not end it"
PROTOCOL = "a line of version 1 of another protocol than TCP4, TCP6 or UNKNOWN"
FIELDS = "a line of version 1 with fields that are missing, too many or not one space apart"
ADDRESS = "a line of version 1 with an address that is none of its protocol"
PORT = "a line of version 1 with a port that is none"
VERSION = "another version than 1 or 2"
COMMAND = "version 2 with another command than LOCAL or PROXY"
FAMILY = "version 2 with an unknown family or transport"
SHORT = "version 2, shorter than its addresses"
LONG = "version 2 with more than 4096 bytes"
TLV = "version 2 with a field (TLV) that runs over the end"
CRC = "version 2 with a wrong checksum"
ENDED = "it ended inside of the header"
LATE = "the header was not complete in time"

_A = "192.0.2.1 198.51.100.7"

BAD = {
    "nothing like it": (b"GET / HTTP/1.1\r\n\r\n", NO_SIGNATURE),
    "lower case": (b"proxy TCP4 192.0.2.1 198.51.100.7 1 2\r\n", NO_SIGNATURE),
    "a word that begins so": (b"PROXYjunk\r\n", NO_SIGNATURE),
    "tab": (b"PROXY\tTCP4 192.0.2.1 198.51.100.7 1 2\r\n", NO_SIGNATURE),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", NO_SIGNATURE),
    "a broken signature": (SIGNATURE[:-1] + b"\r" + b"!\x11\0\x0c" + V4, NO_SIGNATURE),
    "v1 without an end": (b"PROXY UNKNOWN ".ljust(107, b"x"), NO_CRLF),
    "v1 with a late end": (b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n", NO_CRLF),
    "v1 LF alone": (b"PROXY UNKNOWN\n", LINE_END),
    "v1 CR alone": (b"PROXY UNKNOWN\rx\r\n", LINE_END),
    "v1 LF inside": (b"PROXY UNKNOWN\nx\r\n", LINE_END),
    "v1 CR CR LF": (b"PROXY UNKNOWN\r\r\n", LINE_END),
    "v1 no protocol": (b"PROXY \r\n", PROTOCOL),
    "v1 UDP4": (line(f"UDP4 {_A} 1 2"), PROTOCOL),
    "v1 TCP5": (line(f"TCP5 {_A} 1 2"), PROTOCOL),
    "v1 TCP4 and no space": (line("TCP4"), PROTOCOL),
    "v1 UNKNOWNX": (line("UNKNOWNX"), PROTOCOL),
    "v1 unknown": (line("unknown"), PROTOCOL),
    "v1 nothing behind": (line("TCP4 "), FIELDS),
    "v1 no ports": (line(f"TCP4 {_A}"), FIELDS),
    "v1 one port": (line(f"TCP4 {_A} 1"), FIELDS),
    "v1 three ports": (line(f"TCP4 {_A} 1 2 3"), FIELDS),
    "v1 two spaces": (line("TCP4 192.0.2.1  198.51.100.7 1 2"), FIELDS),
    "v1 space in front": (line(f"TCP4  {_A} 1 2"), FIELDS),
    "v1 space at the end": (line(f"TCP4 {_A} 1 2 "), FIELDS),
    "v1 IPv6 in TCP4": (line("TCP4 ::1 ::2 1 2"), ADDRESS),
    "v1 IPv4 in TCP6": (line(f"TCP6 {_A} 1 2"), ADDRESS),
    "v1 mapped in TCP4": (line("TCP4 ::ffff:192.0.2.1 198.51.100.7 1 2"), ADDRESS),
    "v1 mixed": (line("TCP6 2001:db8:: 192.0.2.1 1 2"), ADDRESS),
    "v1 zero in front": (line("TCP4 192.000.002.001 198.51.100.7 1 2"), ADDRESS),
    "v1 three numbers": (line("TCP4 192.0.2 198.51.100.7 1 2"), ADDRESS),
    "v1 256": (line("TCP4 192.0.2.256 198.51.100.7 1 2"), ADDRESS),
    "v1 name": (line("TCP4 localhost 198.51.100.7 1 2"), ADDRESS),
    "v1 scope": (line("TCP6 fe80::1%eth0 fe80::2 1 2"), ADDRESS),
    "v1 brackets": (line("TCP6 [::1] ::2 1 2"), ADDRESS),
    "v1 NUL": (b"PROXY TCP4 192.0.2.1\0x 198.51.100.7 1 2\r\n", ADDRESS),
    "v1 no ASCII": ("PROXY TCP4 192.0.2.\u0661 198.51.100.7 1 2\r\n".encode(), ADDRESS),
    "v1 long address": (line(f"TCP6 {'0' * 46} ::1 1 2"), ADDRESS),
    "v1 port 65536": (line(f"TCP4 {_A} 65536 2"), PORT),
    "v1 port 99999": (line(f"TCP4 {_A} 1 99999"), PORT),
    "v1 port 000001": (line(f"TCP4 {_A} 000001 2"), PORT),
    "v1 port 01": (line(f"TCP4 {_A} 01 2"), PORT),
    "v1 port 00": (line(f"TCP4 {_A} 00 2"), PORT),
    "v1 port +1": (line(f"TCP4 {_A} +1 2"), PORT),
    "v1 port -1": (line(f"TCP4 {_A} 1 -1"), PORT),
    "v1 port 1x": (line(f"TCP4 {_A} 1 2x"), PORT),
    "v1 port 0x10": (line(f"TCP4 {_A} 0x10 2"), PORT),
    "v2 version 1": (binary(0x11), VERSION),
    "v2 version 3": (binary(0x31), VERSION),
    "v2 version 0": (binary(0x01), VERSION),
    "v2 command 2": (binary(0x22), COMMAND),
    "v2 command 15": (binary(0x2F), COMMAND),
    "v2 family 0, stream": (binary(family=0x01), FAMILY),
    "v2 family 1, unspec": (binary(family=0x10), FAMILY),
    "v2 family 1, transport 3": (binary(family=0x13), FAMILY),
    "v2 family 4": (binary(family=0x41, body=V6), FAMILY),
    "v2 family 15": (binary(family=0xFF), FAMILY),
    "v2 no addresses": (binary(body=b""), SHORT),
    "v2 11 bytes": (binary(body=V4[:11]), SHORT),
    "v2 IPv4 for IPv6": (binary(family=0x21, body=V4), SHORT),
    "v2 215 bytes": (binary(family=0x31, body=UNIX[:215]), SHORT),
    "v2 one byte too long": (binary(body=V4 + tlv(4, bytes(MOST - 16 - 12 - 2))), LONG),
    "v2 64 KiB": (binary(body=V4, length=0xFFFF), LONG),
    "v2 LOCAL, 64 KiB": (binary(LOCAL, 0, b"", length=0xFFFF), LONG),
    "v2 TLV over the end": (binary(body=V4 + b"\4\0\5abcd"), TLV),
    "v2 TLV of 64 KiB": (binary(body=V4 + b"\4\xff\xff"), TLV),
    "v2 TLV cut": (binary(body=V4 + b"\4\0"), TLV),
    "v2 one byte more": (binary(body=V4 + b"\4"), TLV),
    "v2 a TLV and one byte": (binary(body=V4 + tlv(4, b"abc") + b"\0"), TLV),
    "v2 checksum of 3 bytes": (binary(body=V4 + tlv(3, b"abc")), TLV),
    "v2 checksum of 5 bytes": (binary(body=V4 + tlv(3, b"abcde")), TLV),
    "v2 wrong checksum": (with_crc(wrong=1), CRC),
    "v2 two checksums": (with_crc(after=tlv(3, bytes(4))), CRC),
}
