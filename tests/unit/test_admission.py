"""Networks: as they are written, as one table of bounds, and as the core searches it."""

from __future__ import annotations

import ipaddress
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpproxy.config.networks import parse_networks, parse_proxies
from tcpproxy.errors import UsageError
from tcpproxy.network.networks import Network, admitted

# --- as they are written ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("192.0.2.1", ["192.0.2.1/32"]),
        ("::1", ["::1/128"]),
        ("2001:db8::/32, 10.0.0.1", ["2001:db8::/32", "10.0.0.1/32"]),
        (("10.0.0.0/8,::1", "192.0.2.0/24"), ["10.0.0.0/8", "::1/128", "192.0.2.0/24"]),
        (["0.0.0.0/0", "::/0"], ["0.0.0.0/0", "::/0"]),
        ("::ffff:10.0.0.0/104", ["10.0.0.0/8"]),
        ("::ffff:192.0.2.1", ["192.0.2.1/32"]),
        ("::ffff:0:0/96", ["0.0.0.0/0"]),
        ("::/64", ["::/64"]),
        ([IPv4Network("10.0.0.0/8"), IPv6Address("::1")], ["10.0.0.0/8", "::1/128"]),
        (IPv4Address("10.0.0.1"), ["10.0.0.1/32"]),
        ("FE80::/10", ["fe80::/10"]),
    ],
)
def test_networks(value: object, expected: list[str]) -> None:
    assert [str(each) for each in parse_networks("allow", value) or ()] == expected


def test_no_list() -> None:
    assert parse_networks("allow", None) is None


NOT_ONE = "is no network, expected addresses and networks like 10.0.0.0/8, ::1 or 2001:db8::/32"


def test_network_that_is_no_list() -> None:
    """One of `ipaddress` gives all its addresses, as if it were a list."""
    network = IPv4Network("10.0.0.0/24")
    assert parse_networks("allow", network) == (network,)
    assert parse_proxies("accept_proxy", network) == (network,)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", f"allow '' {NOT_ONE}"),
        (",", f"allow '' {NOT_ONE}"),
        ("10.0.0.0/8,", f"allow '' {NOT_ONE}"),
        ([], "allow is empty, expected addresses and networks like 10.0.0.0/8, ::1 or 2001:db8::/32"),
        ("10.0.0.1/8", "allow '10.0.0.1/8' has host bits set, expected 10.0.0.0/8 or a single address"),
        (
            "2001:db8::1/32",
            "allow '2001:db8::1/32' has host bits set, expected 2001:db8::/32 or a single address",
        ),
        ("10.0.0.0/33", f"allow '10.0.0.0/33' {NOT_ONE}"),
        ("10.0.0", f"allow '10.0.0' {NOT_ONE}"),
        ("10.00.0.1", f"allow '10.00.0.1' {NOT_ONE}"),
        ("10.0.0.0/-1", f"allow '10.0.0.0/-1' {NOT_ONE}"),
        ("1", f"allow '1' {NOT_ONE}"),
        ("\u0661\u0660.0.0.0/8", f"allow '\u0661\u0660.0.0.0/8' {NOT_ONE}"),
        ("localhost", f"allow 'localhost' {NOT_ONE}; names are not looked up"),
        ("10.0.0.0/255.0.0.0", f"allow '10.0.0.0/255.0.0.0' {NOT_ONE}; as a network: 10.0.0.0/8"),
        ("10.0.0.0/255.0.255.0", f"allow '10.0.0.0/255.0.255.0' {NOT_ONE}"),
        ("10.*", f"allow '10.*' {NOT_ONE}; as a network: 10.0.0.0/8"),
        ("192.168.", f"allow '192.168.' {NOT_ONE}; as a network: 192.168.0.0/16"),
        ("300.*", f"allow '300.*' {NOT_ONE}"),
        ("10.0.0.1-10.0.0.9", f"allow '10.0.0.1-10.0.0.9' {NOT_ONE}; a range is written as networks"),
        ("unix:", f"allow 'unix:' {NOT_ONE}; clients of UNIX sockets are always admitted"),
        ("!10.0.0.1", f"allow '!10.0.0.1' {NOT_ONE}; addresses to refuse are for the option deny, without '!'"),
        ("@/etc/hosts", f"allow '@/etc/hosts' {NOT_ONE}; lists are not read from files"),
        ("./clients", f"allow './clients' {NOT_ONE}; lists are not read from files"),
        ("unix", f"allow 'unix' {NOT_ONE}; clients of UNIX sockets are always admitted"),
        ("*", f"allow '*' {NOT_ONE}; for everybody: 0.0.0.0/0,::/0"),
        ("all", f"allow 'all' {NOT_ONE}; for everybody: 0.0.0.0/0,::/0"),
        ("fe80::1%eth0", f"allow 'fe80::1%eth0' {NOT_ONE}; an interface has no place in it"),
        ("[::1]", f"allow '[::1]' {NOT_ONE}; without brackets"),
        (["10.0.0.0/8", "nobody.example"], f"allow 'nobody.example' {NOT_ONE}; names are not looked up"),
        (10, f"allow '10' {NOT_ONE}"),
        (b"10.0.0.0/8", f"allow '49' {NOT_ONE}"),
    ],
)
def test_bad_networks(value: object, error: str) -> None:
    """A wrong list is an error, so that it admits nobody by mistake."""
    with pytest.raises(UsageError) as caught:
        parse_networks("allow", value)
    assert str(caught.value) == error


def test_exception_of_those_to_refuse() -> None:
    """The error of --deny is not to name --deny."""
    with pytest.raises(UsageError) as caught:
        parse_networks("--deny", "!10.0.0.1")
    hint = "to refuse all others: the option allow, without '!'"
    assert str(caught.value) == f"--deny '!10.0.0.1' {NOT_ONE}; {hint}"


ALL_PEERS = "; it names the peers that send a header, v1 or v2; for all peers: 0.0.0.0/0,::/0"
BAD_PROXIES = {
    **dict.fromkeys(("on", "v2", "1", "yes", "proxy-protocol"), ALL_PEERS),
    **dict.fromkeys(("unix:", "UNIX", "unix:/run/x"), "; all peers of UNIX sockets: unix"),
    "!10.0.0.1": "; a network has no exceptions",
    "*": "; for everybody: 0.0.0.0/0,::/0",
    "db:5432": "; names are not looked up",
    "10.0.0.1:80": "",
    "": "",
}


@pytest.mark.parametrize("text", BAD_PROXIES)
def test_bad_proxies(text: str) -> None:
    """A switch or a version is no list, as other programs take it."""
    for value in (text, ["10.0.0.0/8", text], ["unix", text]):
        with pytest.raises(UsageError) as caught:
            parse_proxies("--accept-proxy", value)
        assert str(caught.value) == f"--accept-proxy {text!r} {NOT_ONE}, or unix{BAD_PROXIES[text]}"


def test_proxies() -> None:
    """In any order, among networks."""
    assert parse_proxies("accept_proxy", "unix, 10.0.0.0/8") == ("unix", IPv4Network("10.0.0.0/8"))


# --- the verdict ---


def networks(*texts: str) -> list[Network]:
    return [ipaddress.ip_network(text) for text in texts]


@pytest.mark.parametrize(
    ("allow", "deny", "client", "expected"),
    [
        (None, [], "192.0.2.1", True),
        (["10.0.0.0/8"], [], "10.255.255.255", True),
        (["10.0.0.0/8"], [], "11.0.0.0", False),
        (["10.0.0.0/8"], [], "9.255.255.255", False),
        (["10.0.0.0/8"], [], "::1", False),
        (["10.0.0.0/8"], [], "::ffff:10.0.0.1", True),
        (["::/0"], [], "10.0.0.1", False),
        (["::/0"], [], "::ffff:10.0.0.1", False),
        (["::/0"], [], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
        (["::/0"], [], "::", True),
        (["0.0.0.0/0"], [], "255.255.255.255", True),
        (["0.0.0.0/0"], [], "::1:0:0:0", False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.2.3", False),
        (["10.1.0.0/16"], ["10.0.0.0/8"], "10.1.2.3", False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.2.0.0", True),
        (None, ["10.0.0.0/8"], "10.0.0.1", False),
        (None, ["10.0.0.0/8"], "11.0.0.1", True),
        (None, ["10.0.0.0/8"], "::1", True),
        (None, ["0.0.0.0/0", "::/0"], "::1", False),
        (None, ["0.0.0.0/0", "::/0"], "10.0.0.1", False),
        (["10.0.0.0/9", "10.128.0.0/9"], [], "10.128.0.0", True),
        (["10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/30"], [], "10.0.0.9", True),
    ],
)
def test_verdict(door: ModuleType, allow: list[str] | None, deny: list[str], client: str, expected: bool) -> None:
    """Row 60: a network of `deny` refuses; else one of `allow` must match, if there are any. Families are apart."""
    table = door.AdmissionDoor(admitted(None if allow is None else networks(*allow), networks(*deny)))
    assert table.admits(ipaddress.ip_address(client).packed) == expected
    assert table.admits(None)


def test_without_lists(door: ModuleType) -> None:
    assert door.AdmissionDoor().admits(bytes(4))


def near(network: Network) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The first and the last address of a network, and those beside them."""
    numbers = (int(network.network_address), int(network.broadcast_address))
    make, bits = (IPv4Address, 32) if network.version == 4 else (IPv6Address, 128)
    return [make(number + off) for number in numbers for off in (-1, 0, 1) if 0 <= number + off < 1 << bits]


def expected(allow: list[Network] | None, deny: list[Network], client: IPv4Address | IPv6Address) -> bool:
    """What `ipaddress` says."""
    client = (client.ipv4_mapped if client.version == 6 else None) or client
    matches = [any(client in network for network in each) for each in (allow or [], deny)]
    return not matches[1] and (allow is None or matches[0])


FEW_V4 = st.builds(
    lambda number, prefix: IPv4Network((number << 24 | number << 8, prefix), strict=False),
    st.integers(0, 255),
    st.integers(0, 32),
)
FEW_V6 = st.builds(
    lambda number, prefix: IPv6Network((number, prefix), strict=False),
    st.one_of(st.integers(0, (1 << 128) - 1), st.integers(0xFFFE_FFFFFFFF, 0x10000_00000001)),
    st.integers(0, 128),
).filter(lambda it: not (it.prefixlen >= 96 and it.network_address.ipv4_mapped))
LISTS = st.lists(st.one_of(FEW_V4, FEW_V6), max_size=12)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.none(), LISTS), LISTS)
def test_as_ipaddress_says(door: ModuleType, allow: list[Network] | None, deny: list[Network]) -> None:
    """At the edges of every network, of both families, and of IPv4-mapped addresses too."""
    table = door.AdmissionDoor(admitted(allow, deny))
    edges = [address for network in [*(allow or []), *deny] for address in near(network)]
    edges += [IPv4Address(0), IPv4Address("255.255.255.255"), IPv6Address(0), IPv6Address((1 << 128) - 1)]
    edges += [IPv6Address(f"::ffff:{address}") for address in edges if address.version == 4]
    assert [table.admits(each.packed) for each in edges] == [expected(allow, deny, each) for each in edges]


def test_ten_thousand_networks(door: ModuleType) -> None:
    """All of them are found, and nobody else is."""
    chance = random.Random(1)
    numbers = chance.sample(range(1 << 24), 10_000)
    table = door.AdmissionDoor(admitted([IPv4Network((number << 8, 24)) for number in numbers], []))
    among = set(numbers)
    for number in [*numbers, *chance.sample(range(1 << 24), 10_000)]:
        assert table.admits((number << 8 | 77).to_bytes(4, "big")) == (number in among)
