"""Reads capture files: with python-pcapng, a reader that is strict, and with tshark, capinfos and tcpdump."""

from __future__ import annotations

import ipaddress
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from support.machine import needs

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

Address = tuple[str, int]


@dataclass(frozen=True)
class Packet:
    time_ns: int
    interface: int
    source: Address
    destination: Address
    seq: int
    ack: int
    flags: int
    payload: bytes
    inbound: bool
    comment: str


def scan(data: bytes) -> Iterator[Any]:
    """The blocks of a file one by one, as pcapng.blocks has them. Raises at one that is not well-formed."""
    import pcapng

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own
        yield from pcapng.FileScanner(BytesIO(data))


def blocks(data: bytes) -> list[Any]:
    """All of them."""
    return list(scan(data))


def packets(data: bytes) -> list[Packet]:
    import pcapng

    return [packet(block) for block in blocks(data) if isinstance(block, pcapng.blocks.EnhancedPacket)]


def packet(block: Any) -> Packet:
    data = block.packet_data
    assert block.captured_len == block.packet_len == len(data)
    if data[0] >> 4 == 4:
        assert int.from_bytes(data[2:4], "big") == len(data)
        source, destination, tcp = data[12:16], data[16:20], data[20:]
    else:
        assert int.from_bytes(data[4:6], "big") == len(data) - 40
        source, destination, tcp = data[8:24], data[24:40], data[40:]
    ports = int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big")
    return Packet(
        block.timestamp_high << 32 | block.timestamp_low,
        block.interface_id,
        (str(ipaddress.ip_address(source)), ports[0]),
        (str(ipaddress.ip_address(destination)), ports[1]),
        int.from_bytes(tcp[4:8], "big"),
        int.from_bytes(tcp[8:12], "big"),
        tcp[13],
        tcp[(tcp[12] >> 4) * 4 :],
        block.options["epb_flags"].inout == "inbound",
        block.options.get("opt_comment", ""),
    )


def reassembled(found: list[Packet]) -> dict[tuple[Address, Address], bytes]:
    """What each direction has carried, by (source, destination). Raises AssertionError at a gap or an overlap."""
    streams: dict[tuple[Address, Address], bytearray] = {}
    following: dict[tuple[Address, Address], int] = {}
    for packet in found:
        key = packet.source, packet.destination
        if packet.flags & SYN or key not in following:
            following[key] = packet.seq
            streams.setdefault(key, bytearray())
        assert packet.seq == following[key], (packet, following[key])
        streams[key] += packet.payload
        following[key] = (packet.seq + len(packet.payload) + bool(packet.flags & (SYN | FIN))) % 2**32
    return {key: bytes(stream) for key, stream in streams.items()}


def tshark(path: Path, *arguments: str) -> list[str]:
    """Lines that tshark prints about a file, with all checksums checked. Skips the test where there is no tshark."""
    needs("tshark")
    checked = "tcp.check_checksum:TRUE", "ip.check_checksum:TRUE"
    options = [part for preference in checked for part in ("-o", preference)]
    command = ["tshark", "-2", "-n", "-r", str(path), *options, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, errors="backslashreplace", check=True, timeout=60
    ).stdout.splitlines()


def analysis(path: Path) -> list[str]:
    """Packets that Wireshark marks as wrong in any way, up to TCP: a random port may be that of any protocol."""
    return tshark(
        path,
        *("-d", "tcp.port==1-65535,data"),
        "-Y",
        "tcp.analysis.flags || _ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0",
    )


def fields(path: Path, *names: str) -> list[tuple[str, ...]]:
    """These fields of each packet."""
    arguments = [part for name in names for part in ("-e", name)]
    return [tuple(line.split("\t")) for line in tshark(path, "-T", "fields", *arguments)]


def completeness(path: Path) -> list[int]:
    """tcp.completeness of each stream: 31 if it ended with FINs, 47 if it was reset, 33 or 37 if it was refused."""
    values = {int(stream): int(value) for stream, value in fields(path, "tcp.stream", "tcp.completeness")}
    return [values[stream] for stream in sorted(values)]


def clients(path: Path) -> list[int]:
    """The port of each stream's client."""
    ports: dict[int, int] = {}
    for stream, port in fields(path, "tcp.stream", "tcp.srcport"):
        ports.setdefault(int(stream), int(port))
    return [ports[stream] for stream in sorted(ports)]


def followed(path: Path, stream: int) -> tuple[bytes, bytes]:
    """What the client and what upstream of a stream sent, as "Follow TCP Stream" shows it."""
    return _sides(tshark(path, "-q", "-z", f"follow,tcp,raw,{stream}"))


def follow_all(path: Path, count: int) -> list[tuple[bytes, bytes]]:
    """The same of the streams 0 to `count` - 1, in one run of tshark."""
    taps = [part for stream in range(count) for part in ("-z", f"follow,tcp,raw,{stream}")]
    found: dict[int, list[str]] = {}
    lines: list[str] = []
    for line in tshark(path, "-q", *taps):
        if line.startswith("Filter: tcp.stream eq "):
            lines = found.setdefault(int(line.split()[-1]), [])
        lines.append(line)
    return [_sides(found[stream]) for stream in range(count)]


def _sides(lines: list[str]) -> tuple[bytes, bytes]:
    body = [line for line in lines if line and set(line) <= set("\t0123456789abcdef")]
    client = b"".join(bytes.fromhex(line) for line in body if not line.startswith("\t"))
    return client, b"".join(bytes.fromhex(line.strip()) for line in body if line.startswith("\t"))
