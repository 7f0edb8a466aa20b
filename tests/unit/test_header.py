"""The header of the PROXY protocol: read strictly, cut anywhere, written exactly."""

from __future__ import annotations

import ipaddress
import struct
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.headers import BAD, GOOD, LOCAL, PROXY, SIGNATURE, V4, Good, binary, crc32c, line, tlv, with_crc

PARTIAL = 0
PAYLOADS = (b"", b"x", b"\n", b"\r\n", b"\0\0\0", SIGNATURE, b"PROXY UNKNOWN\r\n", bytes(5000))


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_good(door: ModuleType, good: Good) -> None:
    """Rows 107 and 109: cut at every byte it is a part; whole it is one, whatever comes behind it."""
    for size in range(len(good.header)):
        assert door.read(good.header[:size]) == (PARTIAL, "", "")
    for payload in PAYLOADS:
        assert door.read(good.header + payload) == (len(good.header), good.client or "", good.destination or "")


@pytest.mark.parametrize(("header", "problem"), BAD.values(), ids=BAD)
def test_bad(door: ModuleType, header: bytes, problem: str) -> None:
    """Row 108: it is refused, with the first wrong thing, and more bytes do not heal it."""
    verdicts = [door.read(header[:size])[0] for size in range(len(header) + 1)]
    for payload in PAYLOADS:
        result, *addresses = door.read(header + payload)
        assert door.problem(result) == problem
        assert addresses == ["", ""]
    begin = next(size for size, verdict in enumerate(verdicts) if verdict != PARTIAL)
    assert set(verdicts[:begin]) == {PARTIAL}
    assert {door.problem(verdict) for verdict in verdicts[begin:]} == {problem}


def test_every_problem_has_a_text(door: ModuleType) -> None:
    texts = [door.problem(-code) for code in range(1, door.PROBLEMS)]
    assert len(set(texts)) == len(texts)
    assert all(texts)
    assert {problem for _, problem in BAD.values()} == set(texts[:-2])
    assert [door.problem(code) for code in (0, 1, -door.PROBLEMS, -1000)] == [""] * 4


def test_every_family_and_command(door: ModuleType) -> None:
    """Of all 65,536 pairs of these bytes 7 are PROXY, and 256 are LOCAL."""
    sizes = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
    for command in range(256):
        for family in range(256):
            header = binary(command, family, bytes(216))
            if command == PROXY and family in sizes:
                header = binary(command, family, bytes(sizes[family]))
            good = command == LOCAL or (command == PROXY and family in sizes)
            result = door.read(header)[0]
            assert (result > 0) == good, (command, family)
            assert result <= 0 or result == len(header)


def test_checksum_of_the_example() -> None:
    """The control: the check value of CRC-32C."""
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("byte", sorted({*range(len(with_crc()))} - {28}))  # that one says that there is a checksum
@pytest.mark.parametrize("bit", [0, 3, 7])
def test_checksum_finds_every_bit(door: ModuleType, byte: int, bit: int) -> None:
    header = bytearray(with_crc())
    header[byte] ^= 1 << bit
    result, client, _ = door.read(bytes(header))
    changed_length = byte in (14, 15)  # that header is another one, of which this is a part, or too short
    local = header[12] == LOCAL
    assert result < 0 or (changed_length and result == PARTIAL) or (local and client == "")


# --- anything ---

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b" ", b"\r\n", b"\r", b"\n", b"192.0.2.1", b"::1", b"80"]
        ),
        st.sampled_from([SIGNATURE, b"\x21", b"\x20", b"\x11", b"\x21\x11\0\x0c", b"\0\x10", b"\3\0\4", V4]),
    ),
    max_size=12,
).map(b"".join)


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """A header of the table, with a few bytes changed, left out or doubled."""
    headers = [*(good.header for good in GOOD.values()), *(header for header, _ in BAD.values())]
    header = bytearray(draw(st.sampled_from([each for each in headers if len(each) < 600])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(header) - 1, 0)))
        header[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(header)


def agrees_with_itself(door: ModuleType, data: bytes) -> None:
    """A verdict stands from the byte on at which it falls, does not look behind the header, and has its addresses."""
    verdicts = [door.read(data[:size]) for size in range(len(data) + 1)]
    last = verdicts[-1]
    decided = next((size for size, verdict in enumerate(verdicts) if verdict[0] != PARTIAL), len(data) + 1)
    assert all(verdict == (PARTIAL, "", "") for verdict in verdicts[:decided])
    if last[0] > 0:
        assert decided == last[0]
        assert all(verdict == last for verdict in verdicts[decided:])
        assert bool(last[1]) == bool(last[2])
    elif last[0] < 0:
        assert all(verdict[0] == last[0] for verdict in verdicts[decided:])
        assert door.problem(last[0])


@settings(deadline=None, max_examples=400)
@given(st.one_of(PIECES, bent(), st.binary(max_size=200)))
@example(b"P")
@example(b"\r")
def test_anything(door: ModuleType, data: bytes) -> None:
    """Row 108. `--rounds` plays more of it, in test_much_of_anything."""
    agrees_with_itself(door, data)


def test_much_of_anything(door: ModuleType, rounds: int) -> None:
    """The long form: `pytest tests/unit/test_header.py -k much --rounds 200`."""
    if rounds == 1:
        pytest.skip("only with --rounds")

    @settings(deadline=None, max_examples=2000 * rounds, database=None)
    @given(st.one_of(PIECES, bent(), st.binary(max_size=200)))
    def play(data: bytes) -> None:
        agrees_with_itself(door, data)

    play()


# --- written ---

V4_END = st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 65535))
V6_END = st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 65535))


def name(end: tuple[bytes, int]) -> str:
    """As log lines write it."""
    ip = ipaddress.ip_address(end[0])
    ip = (ip.ipv4_mapped if ip.version == 6 else None) or ip
    return f"{ip}:{end[1]}" if ip.version == 4 else f"[{ip}]:{end[1]}"


@settings(deadline=None)
@given(st.sampled_from([1, 2]), st.one_of(V4_END, V6_END), st.one_of(V4_END, V6_END))
@example(1, (bytes(10) + b"\xff\xff\xc0\0\2\1", 1), (bytes(10) + b"\xff\xff\xc0\0\2\2", 2))
@example(1, (b"\xff" * 16, 65535), (b"\xff" * 16, 65535))
@example(1, (b"\xff" * 16, 65535), (b"\xff" * 4, 65535))
def test_what_is_written_is_read(
    door: ModuleType, version: int, client: tuple[bytes, int], destination: tuple[bytes, int]
) -> None:
    header = door.write(version, client, destination)
    result, *addresses = door.read(header)
    assert result == len(header) <= (107 if version == 1 else 52)
    told = [text.rpartition(":") for text in addresses]
    expected = [name(end).rpartition(":") for end in (client, destination)]
    assert [int(port) for *_, port in told] == [int(port) for *_, port in expected]
    plain = [[ipaddress.ip_address(host.strip("[]")) for host, *_ in each] for each in (told, expected)]
    assert plain[0] == plain[1]


A4, B4 = (b"\xc0\0\2\1", 56324), (b"\xc6\x33\x64\7", 443)
MAPPED = (bytes(10) + b"\xff\xff" + A4[0], 56324)
A6, B6 = (ipaddress.ip_address("2001:db8::1").packed, 56324), (ipaddress.ip_address("2001:db8::2").packed, 443)


@pytest.mark.parametrize(
    ("client", "destination", "v1", "v2"),
    [
        (A4, B4, line("TCP4 192.0.2.1 198.51.100.7 56324 443"), binary()),
        (MAPPED, B4, line("TCP4 192.0.2.1 198.51.100.7 56324 443"), binary()),
        (
            A6,
            B6,
            line("TCP6 2001:db8::1 2001:db8::2 56324 443"),
            binary(family=0x21, body=A6[0] + B6[0] + struct.pack(">HH", 56324, 443)),
        ),
        (
            A4,
            B6,
            line("TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443"),
            binary(family=0x21, body=MAPPED[0] + B6[0] + struct.pack(">HH", 56324, 443)),
        ),
        (None, None, b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0"),
        (None, B4, b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0"),
        (A4, None, b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0"),
    ],
)
def test_written(door: ModuleType, client: object, destination: object, v1: bytes, v2: bytes) -> None:
    """Row 112: exact bytes, family included: IPv4 only if both are, and LOCAL or UNKNOWN without an address."""
    assert door.write(1, client, destination) == v1
    assert door.write(2, client, destination) == v2


def test_tlv() -> None:
    """The control."""
    assert tlv(4, b"abc") == b"\4\0\3abc"
