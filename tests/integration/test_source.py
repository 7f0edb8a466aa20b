"""--source: where connections to upstream come from."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import Namespace, resolve_to
from support.command import Command
from support.peers import Echo, Upstream, connect
from support.streams import echoes, read_exactly
from support.waiting import eventually

import tcpproxy
from tcpproxy import Proxy, StartError, UsageError

MakeProxy = Callable[..., Proxy]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_from_there(make_proxy: MakeProxy, echo: Echo, workers: int, zero_copy: str) -> None:
    proxy = make_proxy(echo.name, source="127.0.0.5", workers=workers, zero_copy=zero_copy)
    for _ in range(4):
        with connect(proxy.address) as client:
            assert echoes(client, bytes(200_000))
            *_, it = proxy.connections()
            assert it.outgoing.startswith("127.0.0.5:")


def test_each_family_has_its_own(make_proxy: MakeProxy, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """IPv6 in brackets or not; a UNIX socket has none."""
    v4, v6 = (stack.enter_context(contextlib.closing(Upstream(host))) for host in ("127.0.0.1", "::1"))
    server = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
    server.bind(str(tmp_path / "x"))
    server.listen()
    forwards = [f"0:{v4.name}", f"0:{v6.name}", f"0:{tmp_path}/x"]
    proxy = make_proxy(None, forwards=forwards, source=["127.0.0.6", "[::1]"])
    for it, expected in zip(proxy.forwards, ("127.0.0.6", "::1"), strict=False):
        upstream = v4 if expected == "127.0.0.6" else v6
        with connect(it.address), upstream.socket.accept()[0] as peer:
            assert peer.getpeername()[0] == expected
    with connect(proxy.forwards[2].address) as client, server.accept()[0] as peer:
        peer.sendall(b"x")
        assert read_exactly(client, 1) == b"x"


def test_addresses_of_another_family_are_passed_over(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, echo: Echo, events: list[tcpproxy.Event]
) -> None:
    """A name has ::1 first; nobody may connect there from an IPv4 address, nor from one that the system chooses."""
    both = resolve_to(monkeypatch, "::1", "127.0.0.1")
    with contextlib.closing(Upstream("::1", echo.port)):
        proxy = make_proxy(f"both.test:{echo.port}", source="127.0.0.7")
        with connect(proxy.address) as client:
            assert echoes(client)
        del both[1:]
        proxy = make_proxy(f"both.test:{echo.port}", source="127.0.0.7")
        with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
            assert client.recv(1), "an end of file"
        proxy.wait_for(ended=1)
        proxy.stop()
    (failed,) = [it for it in events if it.kind == "failed"]
    assert failed.text == "failed to lookup address information: no address of the family of the source"


def test_ports_are_used_for_each_target(namespaces: Callable[[], Namespace], stack: contextlib.ExitStack) -> None:
    """With two ports for outgoing connections four connections stand, two to each target. A fifth one has none."""
    here = namespaces()
    here.sysctl("net.ipv4.ip_local_port_range", "40000 40001")
    servers = [stack.enter_context(contextlib.closing(here.call(Upstream, "127.0.0.1", port))) for port in (81, 82)]
    forwards = [
        word for port, server in zip((83, 84), servers, strict=True) for word in ("-L", f"{port}:{server.name}")
    ]
    command = stack.enter_context(contextlib.closing(Closing(*forwards, "--source", "127.0.0.9", wrapper=here.wrapper)))
    assert command.address
    assert len(command.stdout) >= 1
    for port, server in zip((83, 84), servers, strict=True):
        for nth in range(2):
            own = stack.enter_context(here.call(connect_from, ("127.0.0.1", port), 50000 + 10 * port + nth))
            peer = stack.enter_context(server.accept())
            assert peer.getpeername()[0] == "127.0.0.9"
            peer.sendall(b"x")
            assert read_exactly(own, 1) == b"x"
    with contextlib.suppress(ConnectionResetError):
        assert not stack.enter_context(here.call(connect_from, ("127.0.0.1", 83), 52000)).recv(1)
        pytest.fail("an end of file")
    eventually(lambda: command.complaints)
    assert "no free local port: " in command.complaints[0]


class Closing(Command):
    close = Command.end


def connect_from(address: tuple[str, int], port: int) -> socket.socket:
    return socket.create_connection(address, 10, ("127.0.0.1", port))


# --- what is refused ---

NOT_OF_ONE = "source '{}' is a multicast or broadcast address, expected an IP address of this machine, like 10.0.0.5"


@pytest.mark.parametrize("source", ["203.0.113.77", "2001:db8::77", "fe80::1%none", "::1%lo"])
def test_not_of_this_machine(echo: Echo, source: str) -> None:
    """Nothing listens then."""
    proxy = Proxy("localhost:1", source=source)
    with pytest.raises(StartError, match=f"^cannot connect from {source}, which is no address of ") as error:
        proxy.start()
    assert not proxy.addresses
    if "%" not in source:
        assert error.value.errno == errno.EADDRNOTAVAIL
    with contextlib.closing(Closing("--source", source, echo.name)) as command:
        assert (command.wait(), command.stdout) == (1, [])
        (said,) = command.stderr
    assert said.startswith(f"tcpproxy: cannot connect from {source}, which is no address of this machine: ")
    assert "Unknown error" not in said


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("10.0.0.0/8", "source '10.0.0.0/8' is no IP address, expected an IP address of this machine, like 10.0.0.5"),
        ("", "source '' is no IP address, expected an IP address of this machine, like 10.0.0.5"),
        ("10.0.0.1%1", "source '10.0.0.1%1' is no IP address, expected an IP address of this machine, like 10.0.0.5"),
        (5, "source 5 is no address, expected an IP address of this machine, like 10.0.0.5"),
        ("0.0.0.0", "source '0.0.0.0' is every address, expected an IP address of this machine, like 10.0.0.5"),
        ("0:0::0", "source '0:0::0' is every address, expected an IP address of this machine, like 10.0.0.5"),
        ("224.0.0.1", NOT_OF_ONE.format("224.0.0.1")),
        ("255.255.255.255", NOT_OF_ONE.format("255.255.255.255")),
        ("ff02::1", NOT_OF_ONE.format("ff02::1")),
        (["::1", "::2"], "source '::2' is the second IPv6 address, expected one of a family"),
    ],
)
def test_bad_source(source: object, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        Proxy("db:1", source=source)  # type: ignore[arg-type]
    assert str(error.value) == sentence


def test_target_of_the_other_family() -> None:
    with pytest.raises(UsageError, match=r"^source 127\.0\.0\.1 needs one of IPv6, which \[::1\]:80 is$"):
        Proxy("[::1]:80", source="127.0.0.1").start()
    with contextlib.closing(Closing("--source", "127.0.0.1", "[::1]:80")) as command:
        assert (command.wait(), command.stdout) == (2, [])
