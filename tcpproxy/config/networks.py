"""Parses lists of networks. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..text import quoted

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

UNIX = "unix"
"""Stands for every peer of a UNIX socket."""

EXPECTED = "expected addresses and networks like 10.0.0.0/8, ::1 or 2001:db8::/32"

_NO_EXCEPTIONS = {
    "allow": "; addresses to refuse are for the option deny, without '!'",
    "deny": "; to refuse all others: the option allow, without '!'",
}
"""What the error adds about a network that begins with '!', by the name of the option."""


def parse_networks(what: str, value: Any) -> tuple[IPv4Network | IPv6Network, ...] | None:
    """Parses networks: a text with commas between them, several texts, or objects of `ipaddress`. None stays None.

    IPv4-mapped networks become IPv4 networks.

    Args:
        what: the name of the argument, for errors.
        value: what was given.

    Raises:
        UsageError: a network is malformed, or there is none: an empty list would let in everybody, or nobody.
    """
    if value is None:
        return None
    return tuple(_network(what, text, EXPECTED, _hint) for text in _texts(what, value, EXPECTED))


def parse_proxies(what: str, value: Any) -> tuple[IPv4Network | IPv6Network | str, ...] | None:
    """The same, and the word `unix`."""
    if value is None:
        return None
    expected = f"{EXPECTED}, or {UNIX}"
    texts = _texts(what, value, expected)
    return tuple(UNIX if text == UNIX else _network(what, text, expected, _hint_for_proxies) for text in texts)


def _texts(what: str, value: Any, expected: str) -> list[str]:
    """Returns the text of each network. One of `ipaddress` alone is no list: it would give all its addresses."""
    alone = isinstance(value, str) or not isinstance(value, Iterable) or hasattr(value, "prefixlen")
    texts = [text.strip() for each in ([value] if alone else value) for text in str(each).split(",")]
    if not texts:
        raise UsageError(f"{what} is empty, {expected}")
    return texts


def _network(what: str, text: str, expected: str, hint: Callable[[str, str], str]) -> IPv4Network | IPv6Network:
    import ipaddress  # it takes milliseconds

    try:
        if not re.fullmatch(r"[0-9A-Fa-f:.]+(/\d+)?", text, re.ASCII):
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise UsageError(f"{what} {quoted(text)} is no network, {expected}{hint(what, text)}") from None
    if network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise UsageError(f"{what} {quoted(text)} has host bits set, expected {network} or a single address")
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _hint_for_proxies(what: str, text: str) -> str:
    """The same as `_hint` for those that send PROXY headers."""
    if re.fullmatch(r"on|off|yes|no|true|false|v?[12]|proxy([-_]?protocol)?", text, re.I):
        return "; it names the peers that send a header, v1 or v2; for all peers: 0.0.0.0/0,::/0"
    if re.match(r"unix\b", text, re.I):
        return f"; all peers of UNIX sockets: {UNIX}"
    return _hint(what, text)


def _hint(what: str, text: str) -> str:
    """Returns the end of the error for texts that other programs accept; empty: the text is none of these."""
    if text in ("*", "all", "any"):
        return "; for everybody: 0.0.0.0/0,::/0"
    if re.search(r"^@|^\.*/", text):
        return "; lists are not read from files"
    if text.startswith("!"):
        return _NO_EXCEPTIONS.get(what.lstrip("-"), "; a network has no exceptions")
    if re.fullmatch(r"unix(:.*)?", text, re.I):
        return "; clients of UNIX sockets are always admitted"
    octets = re.fullmatch(r"((?:\d{1,3}\.){1,3})\*?", text, re.ASCII)
    if octets:
        count = octets[1].count(".")
        return _as_network(f"{octets[1]}{'.'.join('0' * (4 - count))}/{8 * count}")
    if re.fullmatch(r"[\d.]+/(\d+\.){3}\d+", text, re.ASCII):
        return _as_network(text)
    if re.fullmatch(r"[\d.]+\s*-\s*[\d.]+", text, re.ASCII):
        return "; a range is written as networks"
    if "%" in text:
        return "; an interface has no place in it"
    if re.fullmatch(r"\[[0-9A-Fa-f:.]+\](/\d+)?", text):
        return "; without brackets"
    is_name = re.search(r"[g-zG-Z]", text) or re.fullmatch(r"[A-Za-z][\w-]*(:\d+)?", text)
    return "; names are not looked up" if is_name else ""


def _as_network(text: str) -> str:
    """The hint with the network that the text, also one with a netmask, stands for; empty: it stands for none."""
    import ipaddress

    try:
        return f"; as a network: {ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        return ""
