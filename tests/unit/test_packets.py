"""Capture files: the blocks of pcapng, and the packets that are made from the records of the tap."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import captures
from support.captures import ACK, FIN, PSH, RST, SYN
from support.machine import needs

CLIENT, UPSTREAM = 0, 1
MS = 1_000_000
WALL_NS = 1_795_908_600_000_000_000
"""What makes the times of these tests a time of day: 2026-11-28T19:30:00Z is their 0."""

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="files are in the order of the machine")


def address(text: str, port: int) -> tuple[bytes, int]:
    return ip_address(text).packed, port


V4, V4_UPSTREAM = address("127.0.0.1", 50000), address("10.0.0.5", 5432)
V6, V6_UPSTREAM = address("2001:db8::1", 50000), address("::1", 6379)
LISTENER, LOCAL = address("127.0.0.1", 7000), address("10.0.0.9", 33412)


@dataclass
class Connection:
    """Writes the packets of a connection, whose records are made as a worker makes them."""

    capture: Any
    door: ModuleType
    id: int = 1
    start_ns: int = 0
    sent: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    file: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.flow = self.door.FlowDoor(self.capture, self.id)
        self.now = self.start_ns
        self.delivered = [0, 0]

    def open(self, client: Any = V4, upstream: Any = V4_UPSTREAM, connect: int = 3 * MS) -> Connection:
        self.begin(client)
        self.now += connect
        self.file += self.flow.connected(self.now, upstream, LOCAL)
        return self

    def begin(self, client: Any = V4) -> Connection:
        self.file += self.flow.open(self.now, client, LISTENER)
        return self

    def read(self, side: int, data: bytes) -> Connection:
        """A read, with nothing sent on yet."""
        self.now += 10_000
        self.file += self.flow.data(self.now, side, len(self.sent[side]), data)
        self.sent[side] += data
        return self

    def send(self, side: int, data: bytes, waits: int = 5_000) -> Connection:
        """A read that is sent on."""
        return self.read(side, data).deliver(side, waits)

    def deliver(self, side: int, waits: int = 5_000) -> Connection:
        self.now += waits
        self.delivered[side] = len(self.sent[side])
        self.file += self.flow.delivered(self.now, side, self.delivered[side])
        return self

    def fin(self, side: int) -> Connection:
        self.now += 10_000
        self.file += self.flow.fin(self.now, side, len(self.sent[side]))
        return self

    def rst(self, side: int) -> Connection:
        self.now += 10_000
        self.file += self.flow.rst(self.now, side)
        return self

    def end(self, reason: str = "client-eof", upstream: Any = None, more: int = 0) -> Connection:
        self.now += 10_000
        self.file += self.flow.end(self.now, reason, self.delivered[CLIENT] + more, self.delivered[UPSTREAM], upstream)
        return self

    def closed(self) -> Connection:
        return self.fin(CLIENT).fin(UPSTREAM).end()

    @property
    def packets(self) -> list[captures.Packet]:
        return captures.packets(head(self.door) + self.file)

    def shape(self) -> list[str]:
        """Each packet as its sender, its flags, its numbers (from 0 at the SYN) and its size."""
        names = {FIN: "F", SYN: "S", RST: "R", PSH: "P", ACK: "A"}
        first = {0: None, 1: None}
        lines = []
        for packet in self.packets:
            side = int(packet.inbound)
            if first[side] is None:
                first[side] = packet.seq
            flags = "".join(name for bit, name in names.items() if packet.flags & bit)
            seq = (packet.seq - first[side]) % 2**32
            acked = (packet.ack - first[not side]) % 2**32 if packet.flags & ACK else "-"
            lines.append(f"{'<' if side else '>'} {flags} {seq} {acked} {len(packet.payload)}")
        return lines


def head(door: ModuleType, interfaces: int = 1) -> bytes:
    described = (door.interface(f"127.0.0.1:{7000 + n}".encode(), b"db:5432") for n in range(interfaces))
    return door.start(b"tcpproxy 0.1.0", b"Linux 6.1") + b"".join(described)


def file(door: ModuleType, path: Path, connections: Iterable[Connection]) -> Path:
    """Packets in the order of the connections' ends, as one worker writes short connections."""
    body = b"".join(bytes(each.file) for each in connections)
    path.write_bytes(
        head(door) + body + door.end(0, WALL_NS, WALL_NS + 10**9, len(captures.packets(head(door) + body)))
    )
    return path


@pytest.fixture
def connection(door: ModuleType) -> Connection:
    return Connection(door.CaptureDoor(WALL_NS), door)


# --- blocks ---


@little_endian
def test_golden(door: ModuleType) -> None:
    """Every byte of a file with one packet of each kind of block, compared by hand with the draft."""
    capture = door.CaptureDoor(WALL_NS)
    flow = door.FlowDoor(capture, 1)
    assert flow.open(0, V4, LISTENER) == b""
    written = (
        door.start(b"tcpproxy", b"Linux")
        + door.interface(b"127.0.0.1:7000", b"db:5432")
        + door.name(V4_UPSTREAM, b"db")
        + flow.end(2 * MS, "connect-refused", upstream=V4_UPSTREAM)
        + door.end(0, WALL_NS, WALL_NS + 1, capture.count)
    )
    expected = "".join(line for line in GOLDEN.splitlines() if not line.startswith("#"))
    assert written.hex(" ", 4) == bytes.fromhex(expected).hex(" ", 4)


GOLDEN = """
# section header: type, length, byte order, version 1.0, length of the section unknown
0a0d0d0a e0000000 4d3c2b1a 01000000 ffffffff ffffffff
# opt_comment, 162 bytes
0100a200 4d616465 20627920 61207072 6f787920 66726f6d 20776861 74206974 2072656c 61796564 3a206120 7365676d 656e7420
6973206f 6e652072 6561642c 20616e20 41434b20 73617973 20746861 74207468 65207265 63656976 65722773 206b6572 6e656c20
68617320 74616b65 6e207468 65206279 7465732c 20746865 20616464 72657373 65732061 72652074 686f7365 206f6620 74686520
74776f20 70656572 732e0000
# shb_os, 5 bytes
03000500 4c696e75 78000000
# shb_userappl, 8 bytes; opt_endofopt, length
04000800 74637070 726f7879 00000000 e0000000

# interface: type, length, LINKTYPE_RAW, snapshot length 262144
01000000 40000000 65000000 00000400
# if_name, 14 bytes; if_description, 7 bytes
02000e00 3132372e 302e302e 313a3730 30300000 03000700 64623a35 34333200
# if_tsresol, 1 byte: 10^-9 s; opt_endofopt, length
09000100 09000000 00000000 40000000

# names: type, length, nrb_record_ipv4 of 7 bytes, nrb_record_end, opt_endofopt, length
04000000 20000000 01000700 0a000005 64620000 00000000 00000000 20000000

# packet: type, length, interface, time (high, low), captured, original length
06000000 80000000 00000000 5b59ec18 00b01148 30000000 30000000
# IPv4: 48 bytes, not to be fragmented, TTL 64, TCP, checksum, 127.0.0.1, 10.0.0.5
45000030 00004000 4006b1c2 7f000001 0a000005
# TCP: 50000 -> 5432, sequence number, no ACK, 28 bytes header, SYN, window 65535, checksum
c3501538 9e3779b1 00000000 7002ffff 204d0000
# MSS 61440, NOP, window scale 14
0204f000 0103030e
# epb_flags: outbound; opt_comment, 29 bytes; opt_endofopt, length
02000400 02000000 01001d00 2331206c 69737465 6e656420 6f6e2031 32372e30 2e302e31 3a373030 30000000 00000000 80000000

# packet, 2 ms later
06000000 a8000000 00000000 5b59ec18 80343048 28000000 28000000
# IPv4
45000028 00004000 4006b1ca 0a000005 7f000001
# TCP: 5432 -> 50000, sequence number 0, ACK of the SYN, RST and ACK
1538c350 00000000 9e3779b2 5014ffff 36580000
# epb_flags: inbound; opt_comment, 79 bytes; opt_endofopt, length
02000400 01000000 01004f00 23312063 6f6e6e65 63742d72 65667573 65642061 66746572 20302e30 30323030 3020732c 20302062
79746573 20746f20 75707374 7265616d 2c203020 62797465 7320746f 20746865 20636c69 656e7400 00000000 a8000000

# statistics: type, length, interface, time
05000000 4c000000 00000000 5b59ec18 01b01148
# isb_starttime, isb_endtime
02000800 5b59ec18 00b01148 03000800 5b59ec18 01b01148
# isb_ifrecv: 2, isb_ifdrop: 0; opt_endofopt, length
04000800 02000000 00000000 05000800 00000000 00000000 00000000 4c000000
"""


@little_endian
def test_text_is_cut_at_a_character(door: ModuleType) -> None:
    text = "ä".encode() * 200
    block = captures.blocks(door.start(text, b""))[0]
    assert block.options["shb_userappl"] == "ä" * (door.TEXT // 2)
    assert "shb_os" not in block.options, "an option without text is left out"


def test_blocks_tell_what_they_were_given(door: ModuleType) -> None:
    start, first, second, v4, v6, end = captures.blocks(
        head(door, 2)
        + door.name(address("::ffff:10.0.0.5", 1), b"db.example")
        + door.name(V6_UPSTREAM, b"localhost")
        + door.end(1, WALL_NS, WALL_NS + 5, 7)
    )
    assert start.options["shb_os"] == "Linux 6.1"
    assert "proxy" in start.options["opt_comment"]
    assert [each.options["if_name"] for each in (first, second)] == ["127.0.0.1:7000", "127.0.0.1:7001"]
    assert {(each.link_type, each.snaplen, each.timestamp_resolution) for each in (first, second)} == {
        (101, 262144, 1e-9)
    }
    assert v4.records == [{"type": 1, "address": "10.0.0.5", "names": ["db.example"]}]
    assert v6.records == [{"type": 2, "address": "::1", "names": ["localhost"]}]
    assert end.interface_id == 1
    assert (end.options["isb_ifrecv"], end.options["isb_ifdrop"]) == (7, 0)


@pytest.mark.parametrize("name", [b"", b"x" * 256])
def test_a_name_that_cannot_be_written_is_left_out(door: ModuleType, name: bytes) -> None:
    assert door.name(V4, name) == b""


def test_an_address_that_is_no_ip_address_has_no_name_block(door: ModuleType) -> None:
    assert door.name((b"", 0), b"db") == b""


# --- one connection ---


def test_request_and_answer(connection: Connection) -> None:
    """The acknowledgement of each segment is in the next one of the other direction."""
    connection.open().send(CLIENT, b"question").send(UPSTREAM, b"answer").send(CLIENT, b"more").closed()
    assert connection.shape() == [
        "> S 0 - 0",
        "< SA 0 1 0",
        "> A 1 1 0",
        "> PA 1 1 8",
        "< PA 1 9 6",
        "> PA 9 7 4",
        "> FA 13 7 0",
        "< A 7 14 0",
        "< FA 7 14 0",
        "> A 14 8 0",
    ]


def test_times(connection: Connection) -> None:
    """SYN when the client was accepted, SYN-ACK when upstream was connected: between them is the connect."""
    connection.open(connect=3 * MS).send(CLIENT, b"x").rst(CLIENT).end("client-reset")
    times = [packet.time_ns - WALL_NS for packet in connection.packets]
    assert times == [0, 3 * MS, 3 * MS, 3 * MS + 10_000, 3 * MS + 25_000, 3 * MS + 25_000]


def test_comments(connection: Connection) -> None:
    connection.open(connect=3_250_000).send(CLIENT, b"question").send(UPSTREAM, b"answer").closed()
    first, *between, last = [packet.comment for packet in connection.packets]
    assert first == "#1 listened on 127.0.0.1:7000, left from 10.0.0.9:33412, connected in 3.2 ms"
    assert last == "#1 client-eof after 0.003310 s, 8 bytes to upstream, 6 bytes to the client"
    assert set(between) == {""}


def test_two_segments_are_acknowledged(connection: Connection) -> None:
    connection.open()
    for _ in range(5):
        connection.send(CLIENT, b"x")
    assert connection.shape()[3:] == [
        *("> PA 1 1 1", "> PA 2 1 1", "< A 1 3 0"),
        *("> PA 3 1 1", "> PA 4 1 1", "< A 1 5 0"),
        "> PA 5 1 1",
    ]


def test_bytes_that_waited_are_acknowledged_when_they_were_taken(connection: Connection) -> None:
    connection.open().send(CLIENT, b"x", waits=20 * MS)
    assert connection.shape()[3:] == ["> PA 1 1 1", "< A 1 2 0"]
    data, ack = connection.packets[3:]
    assert ack.time_ns - data.time_ns == 20 * MS


def test_bytes_that_were_never_taken_are_never_acknowledged(connection: Connection) -> None:
    connection.open().send(CLIENT, b"taken").read(CLIENT, b"lost").rst(UPSTREAM).end("upstream-reset")
    assert connection.shape()[3:] == ["> PA 1 1 5", "> PA 6 1 4", "< RA 1 6 0"]


def test_half_close(connection: Connection) -> None:
    """Bytes of the other direction follow a FIN, and acknowledge it."""
    connection.open().send(CLIENT, b"all").fin(CLIENT).send(UPSTREAM, b"answer").send(UPSTREAM, b"more").fin(UPSTREAM)
    connection.end()
    assert connection.shape()[3:] == [
        *("> PA 1 1 3", "> FA 4 1 0", "< A 1 5 0"),
        *("< PA 1 5 6", "< PA 7 5 4", "> A 5 11 0"),
        *("< FA 11 5 0", "> A 5 12 0"),
    ]


def test_a_time_out_resets_both(connection: Connection) -> None:
    connection.open().send(CLIENT, b"x").rst(CLIENT).rst(UPSTREAM).end("idle")
    assert connection.shape()[4:] == ["> RA 2 1 0", "< RA 1 2 0"]
    assert [packet.comment[:8] for packet in connection.packets[4:]] == ["", "#1 idle "]


def test_a_reset_of_the_client_says_what_upstream_took(connection: Connection) -> None:
    connection.open().send(CLIENT, b"x").send(UPSTREAM, b"yy").send(CLIENT, b"z").rst(CLIENT).end("client-reset")
    assert connection.shape()[5:] == ["> PA 2 3 1", "< A 3 3 0", "> RA 3 3 0"]


@pytest.mark.parametrize(("side", "reason", "sign"), [(CLIENT, "client-reset", ">"), (UPSTREAM, "upstream-reset", "<")])
def test_a_reset_comes_from_the_side_that_reset(connection: Connection, side: int, reason: str, sign: str) -> None:
    """The worker closes the socket of that side with a reset, too, and first."""
    connection.open().send(CLIENT, b"x").send(UPSTREAM, b"x").rst(1 - side).rst(side).end(reason)
    assert [line[:4] for line in connection.shape()[5:] if "R" in line] == [f"{sign} RA"]
    assert connection.packets[-1].time_ns == WALL_NS + connection.now - 10_000


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("shutdown", ["> RA 2 1 0", "< RA 1 2 0"]),
        ("client-eof", ["> FA 2 1 0", "< A 1 3 0", "< FA 1 3 0", "> A 3 2 0"]),
    ],
)
def test_an_end_without_records_of_its_fins(connection: Connection, reason: str, expected: list[str]) -> None:
    connection.open().send(CLIENT, b"x").end(reason)
    assert connection.shape()[4:] == expected
    assert connection.packets[-1].comment


def test_the_end_tells_of_bytes_that_were_taken_last(connection: Connection) -> None:
    """The counts of the last record include what the kernel took of a read that it did not take whole."""
    connection.open().read(CLIENT, b"0123456789").rst(UPSTREAM).end("upstream-reset", more=4)
    assert connection.shape()[3:] == ["> PA 1 1 10", "< RA 1 5 0"]


def test_never_connected(connection: Connection) -> None:
    connection.begin().end("connect-refused", V4_UPSTREAM)
    assert connection.shape() == ["> S 0 - 0", "< RA 0 1 0"]
    syn, rst = connection.packets
    assert syn.comment == "#1 listened on 127.0.0.1:7000"
    assert rst.comment == "#1 connect-refused after 0.000010 s, 0 bytes to upstream, 0 bytes to the client"
    assert syn.destination == ("10.0.0.5", 5432)


def test_a_client_that_leaves_before_upstream_is_connected(connection: Connection) -> None:
    connection.begin().end("client-reset", V4_UPSTREAM)
    assert connection.shape() == ["> S 0 - 0", "> R 1 - 0"]


@pytest.mark.parametrize(("client", "unknown"), [(V4, "0.0.0.0"), (V6, "::")])
def test_an_upstream_without_an_address(connection: Connection, client: Any, unknown: str) -> None:
    connection.begin(client).end("dns")
    assert connection.packets[0].destination == (unknown, 0)


def test_other_records_of_a_connection_that_was_never_connected_are_no_packets(connection: Connection) -> None:
    connection.begin().read(CLIENT, b"x").deliver(CLIENT).fin(CLIENT)
    assert connection.file == b""


def test_records_of_an_unknown_connection_are_no_packets(connection: Connection) -> None:
    connection.read(CLIENT, b"x").deliver(CLIENT).fin(CLIENT).rst(CLIENT).end()
    connection.file += connection.flow.connected(1, V4_UPSTREAM, LOCAL)
    assert connection.file == b""


def test_captured_from_its_middle(connection: Connection) -> None:
    """A new file begins in the middle of connections: they go on, without a SYN."""
    connection.open().send(CLIENT, b"before").send(UPSTREAM, b"answer")
    connection.file.clear()
    connection.send(CLIENT, b"after").closed()
    assert list(captures.reassembled(connection.packets).values()) == [b"after", b""]


@pytest.mark.parametrize(
    ("client", "upstream", "expected"),
    [
        (V4, V4_UPSTREAM, (("127.0.0.1", 50000), ("10.0.0.5", 5432))),
        (V6, V6_UPSTREAM, (("2001:db8::1", 50000), ("::1", 6379))),
        (V4, V6_UPSTREAM, (("::ffff:127.0.0.1", 50000), ("::1", 6379))),
        (V6, V4_UPSTREAM, (("2001:db8::1", 50000), ("::ffff:10.0.0.5", 5432))),
        (address("::ffff:127.0.0.1", 50000), V4_UPSTREAM, (("127.0.0.1", 50000), ("10.0.0.5", 5432))),
        ((b"", 0), V4_UPSTREAM, (("127.0.0.1", 1025), ("10.0.0.5", 5432))),
        ((b"", 0), V6_UPSTREAM, (("::1", 1025), ("::1", 6379))),
        (V6, (b"", 0), (("2001:db8::1", 50000), ("::1", 65535))),
        ((b"", 0), (b"", 0), (("127.0.0.1", 1025), ("127.0.0.1", 65535))),
    ],
)
def test_addresses(connection: Connection, client: Any, upstream: Any, expected: Any) -> None:
    """One family in a stream. A side that has no IP address is at the loopback address."""
    connection.open(client, upstream).send(UPSTREAM, b"hello").closed()
    ends = [
        (each.destination, each.source) if each.inbound else (each.source, each.destination)
        for each in connection.packets
    ]
    assert {(ipv4_mapped(a), ipv4_mapped(b)) for a, b in ends} == {(ipv4_mapped(expected[0]), ipv4_mapped(expected[1]))}


def ipv4_mapped(end: captures.Address) -> tuple[bytes, int]:
    """Compares addresses whichever way ipaddress writes a mapped one; not as equal to IPv4."""
    return ip_address(end[0]).packed, end[1]


def test_sequence_numbers_of_connections_differ(door: ModuleType) -> None:
    """A port that a client uses again begins a new stream in Wireshark, except with the same or a very low number."""
    capture = door.CaptureDoor()
    first = [
        Connection(capture, door, id=number).open().packets[0].seq for number in (*range(1, 2000), 2**32, 2**32 + 1)
    ]
    assert len(set(first)) >= len(first) - 1, "2**32 + 1 is 1 again"
    assert min(first) >= 256


def test_sequence_numbers_wrap(door: ModuleType, tmp_path: Path) -> None:
    """The tap counts on in 64 bits, also where a reader of it has missed records."""
    for round_ in range(2):
        connection = Connection(door.CaptureDoor(WALL_NS), door).open().send(CLIENT, b"x").send(CLIENT, b"x")
        at = (round_ + 1) * 2**32 - connection.packets[0].seq - 11  # the first segment ends 10 numbers before the wrap
        connection.file.clear()
        for size, place in ((10, at - 10), (20, at), (5, at + 20)):
            connection.now += 10_000
            connection.file += connection.flow.data(connection.now, CLIENT, place, bytes(size))
            connection.file += connection.flow.delivered(connection.now, CLIENT, place + size)
        found = connection.packets
        assert [each.seq for each in found if each.payload] == [2**32 - 20, 2**32 - 10, 10]
        assert [each.ack for each in found if not each.payload] == [10]
        path = tmp_path / f"{round_}.pcapng"
        path.write_bytes(head(door) + connection.file)
        assert captures.analysis(path) == []


def test_counts_packets(door: ModuleType) -> None:
    capture = door.CaptureDoor()
    found = [Connection(capture, door, id=number).open().closed().packets for number in (1, 2)]
    assert capture.count == sum(map(len, found))


# --- any connection ---

chunks = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 70), st.integers(0, 2), st.booleans()), max_size=40)
ends = st.sampled_from(["fin", "fin upstream", "rst client", "rst upstream", "both", "none"])


def play(connection: Connection, plan: Iterable[tuple[int, int, int, bool]], end: str) -> Connection:
    """Reads in both directions, some of which are sent on at once, some later and some never."""
    for side, size, wait, delivered in plan:
        connection.read(side, random.Random(size).randbytes(size))
        if delivered:
            connection.deliver(side, waits=(1_000, 400_000, 30 * MS)[wait])
    clean = end.startswith("fin")
    for side in (CLIENT, UPSTREAM) if end != "fin upstream" else (UPSTREAM, CLIENT):
        if clean:
            connection.deliver(side).fin(side)
        elif end in ("both", "rst client" if side == CLIENT else "rst upstream"):
            connection.rst(side)
    return connection.end("client-eof" if clean else "idle")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chunks, ends, st.sampled_from([V4, V6]), st.integers(1, 2**64 - 1))
def test_reassembly_is_what_was_read(door: ModuleType, plan: Any, end: str, client: Any, number: int) -> None:
    connection = play(Connection(door.CaptureDoor(WALL_NS), door, id=number).open(client), plan, end)
    packets = connection.packets
    source, destination = packets[0].source, packets[0].destination
    streams = captures.reassembled(packets)
    assert streams == {
        (source, destination): connection.sent[CLIENT],
        (destination, source): connection.sent[UPSTREAM],
    }
    assert packets == sorted(packets, key=lambda packet: packet.time_ns)
    assert [bool(packet.comment) for packet in packets] == [True, *[False] * (len(packets) - 2), True]
    pure = [(each.inbound, each.ack) for each in packets if each.flags == ACK and not each.payload]
    assert len(pure) == len(set(pure)), "a number is acknowledged by a pure ACK once"


# --- what other programs say ---


def every_kind(door: ModuleType) -> list[tuple[Connection, int]]:
    """Connections that end in each way, and the completeness that Wireshark gives each."""
    capture, made = door.CaptureDoor(WALL_NS), list[tuple[Connection, int]]()
    rng = random.Random(1)
    pairs = [(V4, V4_UPSTREAM), (V6, V6_UPSTREAM), (V4, V6_UPSTREAM)]

    def new(ip: bytes) -> tuple[Connection, Any]:
        number = len(made) + 1
        return Connection(capture, door, number, start_ns=number * 10**9), (ip, 50000 + number)

    for (ip, _), upstream in pairs:
        for end, value in (("fin", 31), ("fin upstream", 31), ("rst client", 47), ("rst upstream", 47), ("both", 47)):
            each, source = new(ip)
            plan = [(rng.randrange(2), rng.randrange(1, 3000), rng.randrange(3), rng.random() < 0.9) for _ in range(60)]
            made.append((play(each.open(source, upstream), plan, end), value))
        each, source = new(ip)
        made.append((each.begin(source).end("connect-refused", upstream), 33 + 4))
        each, source = new(ip)
        made.append((each.begin(source).end("client-reset", upstream), 33))
        each, source = new(ip)
        each.open(source, upstream).send(CLIENT, b"x").fin(CLIENT).rst(CLIENT).rst(UPSTREAM).end("half-close-timeout")
        made.append((each, 63))
        each, source = new(ip)
        made.append((each.open(source, upstream).closed(), 23))
        each, source = new(ip)
        each.open(source, upstream)
        for size in (door.READ, 65535 - door.READ, *[door.READ] * 40):  # the second ends with upstream's first window
            each.send(CLIENT, bytes(size))
        made.append((each.closed(), 31))
    return made


def test_wireshark_finds_nothing_wrong(door: ModuleType, tmp_path: Path) -> None:
    made = every_kind(door)
    path = file(door, tmp_path / "all.pcapng", [each for each, _ in made])
    assert captures.analysis(path) == []
    assert captures.completeness(path) == [value for _, value in made]
    for stream in (0, 2, 13):
        assert captures.followed(path, stream) == tuple(map(bytes, made[stream][0].sent))


def test_other_readers_open_it(door: ModuleType, tmp_path: Path) -> None:
    """libpcap is stricter than Wireshark about the interfaces of a file; tcpdump -v checks checksums."""
    needs("tcpdump", "capinfos")
    made = every_kind(door)
    path = file(door, tmp_path / "all.pcapng", [each for each, _ in made])
    count = sum(len(each.packets) for each, _ in made)
    done = subprocess.run(["tcpdump", "-n", "-v", "-r", path], capture_output=True, text=True, check=True, timeout=60)
    assert "incorrect" not in done.stdout
    assert "bad" not in done.stdout
    assert done.stdout.count("Flags [") == count
    report = subprocess.run(["capinfos", "-M", path], capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"Number of packets:   {count}\n" in report
