"""Where a proxy listens and what it reaches: both families, scopes, and addresses that cannot be had."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from networks import Namespace
from support.command import Command
from support.machine import descriptors
from support.peers import Echo, Upstream, connect, free_port
from support.streams import payload, read_all, read_exactly, send_and_shut
from support.waiting import eventually, in_background

import tcpproxy
from tcpproxy.errors import describe

NOT_OURS = "203.0.113.1"
"""Reserved for documentation (RFC 5737), like 2001:db8::/32."""


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")


def passes(address: tuple[str, int]) -> bool:
    """Does an echo come back from there? False: nobody listens."""
    try:
        connection = connect(address)
    except ConnectionRefusedError:
        return False
    with connection:
        connection.sendall(b"hello")
        return read_exactly(connection, 5) == b"hello"


@needs_ipv6
@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "[::1]"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_family_to_each(
    make_proxy: Callable[..., tcpproxy.Proxy], stack: contextlib.ExitStack, bind: str, host: str, workers: int
) -> None:
    """Row 93: IPv4 and IPv6 on either side, bytes exact both ways."""
    upstream = stack.enter_context(contextlib.closing(Upstream(host)))
    proxy = make_proxy(upstream.name, bind=bind, workers=workers)
    assert proxy.address[0] == bind.strip("[]")
    up, down = payload(300_000, 1), payload(200_000, 2)
    with connect(proxy.address) as client, upstream.accept() as server:
        assert server.getpeername()[0] == host
        with (
            in_background(send_and_shut, client, up),
            in_background(send_and_shut, server, down),
            in_background(read_all, client) as received,
        ):
            assert read_all(server) == up
        assert received == [down]


@needs_ipv6
def test_unspecified_ipv6_takes_both_families(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event]
) -> None:
    """Row 93: `[::]` is dual-stack; an IPv4 client is called by its IPv4 address."""
    proxy = make_proxy(echo.name, bind="[::]")
    port = proxy.address[1]
    assert proxy.addresses == [("::", port)]
    for host in "127.0.0.1", "::1":
        with connect((host, port)) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            name = "{}:{}".format(*client.getsockname()) if "." in host else f"[::1]:{client.getsockname()[1]}"
            eventually(lambda name=name: [it for it in events if (it.kind, it.client) == ("new", name)])
            assert [it.client for it in proxy.connections() if it.client == name]


@needs_ipv6
@pytest.mark.parametrize(("bind", "other"), [("0.0.0.0", "::1"), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_other_family_is_refused(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, bind: str, other: str) -> None:
    """Row 93: a listener of one family, other than `[::]`, takes nobody of the other."""
    proxy = make_proxy(echo.name, bind=bind, port=free_port())
    assert passes(proxy.address)
    assert not passes((other, proxy.address[1]))


@needs_ipv6
def test_localhost_is_both_families_on_one_port(
    make_proxy: Callable[..., tcpproxy.Proxy], command: Callable[..., Command], echo: Echo
) -> None:
    """Row 93: in the library and as a command, which says so in a line for each."""
    for _ in range(20):  # each with another random port, free in both
        proxy = make_proxy(echo.name, bind="localhost")
        port = proxy.address[1]
        assert proxy.addresses == [("127.0.0.1", port), ("::1", port)]
        assert passes(("127.0.0.1", port))
        assert passes(("::1", port))
    process = command("-b", "localhost", echo.name)
    port = process.address[1]
    eventually(lambda: len(process.stdout) == 2)
    assert process.stdout == [f"Listening on 127.0.0.1:{port}", f"Listening on [::1]:{port}"]
    assert passes(("127.0.0.1", port))
    assert passes(("::1", port))
    assert process.complaints == []


@needs_ipv6
@pytest.mark.parametrize(("taken", "free"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_localhost_with_a_port_taken_in_one_family(
    stack: contextlib.ExitStack, echo: Echo, taken: str, free: str
) -> None:
    """Row 96: it fails, and the other family is not left listening."""
    holder = stack.enter_context(contextlib.closing(Upstream(taken, free_port())))
    before = descriptors()
    with pytest.raises(tcpproxy.StartError) as caught:
        tcpproxy.Proxy(echo.name, bind="localhost", port=holder.port).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert not passes((free, holder.port))
    assert descriptors() == before


@needs_ipv6
def test_localhost_as_upstream(make_proxy: Callable[..., tcpproxy.Proxy], stack: contextlib.ExitStack) -> None:
    """Rows 44, 93: it is reached whichever family it listens on."""
    # Some machines call only 127.0.0.1 localhost.
    for host in sorted({str(info[4][0]) for info in socket.getaddrinfo("localhost", None)}):
        echo = stack.enter_context(contextlib.closing(Echo(host)))
        assert passes(make_proxy(f"localhost:{echo.port}").address)


@pytest.mark.parametrize("bind", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_port_in_use(command: Callable[..., Command], stack: contextlib.ExitStack, echo: Echo, bind: str) -> None:
    """Row 96: one sentence with the address and what the system says, exit 1, errno for a program."""
    holder = stack.enter_context(contextlib.closing(Upstream(bind)))
    sentence = f"cannot listen on {holder.name}: {describe(errno.EADDRINUSE)}"
    process = command("-b", bind, "-l", str(holder.port), echo.name)
    assert process.wait() == 1
    assert process.stdout == []
    assert process.stderr == [f"tcpproxy: {sentence}"]
    with pytest.raises(tcpproxy.StartError) as caught:
        tcpproxy.Proxy(echo.name, bind=bind, port=holder.port).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value) == sentence


@pytest.mark.parametrize("workers", [1, 2])
def test_second_proxy_on_one_port(
    make_proxy: Callable[..., tcpproxy.Proxy], command: Callable[..., Command], echo: Echo, workers: int
) -> None:
    """Row 96: it fails at once, from this process and from another, and the first goes on alone."""
    first = make_proxy(echo.name, workers=workers)
    port = first.address[1]
    before = descriptors()
    for _ in range(3):
        with pytest.raises(tcpproxy.StartError, match=describe(errno.EADDRINUSE)):
            tcpproxy.Proxy(echo.name, port=port, workers=workers).start()
    assert descriptors() == before
    process = command("-l", str(port), "--workers", str(workers), echo.name)
    assert process.wait() == 1
    assert process.stdout == []
    for _ in range(20):
        assert passes(first.address)
    assert first.stats().accepted == 20


def test_port_of_a_proxy_that_has_just_stopped(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream) -> None:
    """Row 96: the port is free again at once, although connections that the proxy closed first wait in the kernel."""
    port = free_port()
    for _ in range(5):
        proxy = make_proxy(upstream.name, port=port)
        with connect(proxy.address) as client:
            upstream.accept().close()
            assert read_all(client) == b""
            client.shutdown(socket.SHUT_WR)
        eventually(lambda proxy=proxy: proxy.stats().active == 0)
        proxy.stop()


@pytest.mark.parametrize("host", [NOT_OURS, pytest.param("2001:db8::1", marks=needs_ipv6)])
def test_address_that_is_not_ours(command: Callable[..., Command], host: str) -> None:
    """Row 96: the same for an address of somebody else's."""
    where = f"[{host}]:4321" if ":" in host else f"{host}:4321"
    process = command("-b", host, "-l", "4321", "127.0.0.1:9")
    assert process.wait() == 1
    assert process.stdout == []
    assert process.stderr == [f"tcpproxy: cannot listen on {where}: Cannot assign requested address"]
    before = descriptors()
    with pytest.raises(tcpproxy.StartError) as caught:
        tcpproxy.Proxy("127.0.0.1:9", bind=host).start()
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert host in str(caught.value)
    assert descriptors() == before


def test_loopback_without_a_warning(command: Callable[..., Command], echo: Echo) -> None:
    """Row 93: nothing on stderr for an address that only this machine reaches."""
    for bind in "127.0.0.1", "127.0.0.2", *(["::1", "localhost"] if has_ipv6() else []):
        process = command("-b", bind, echo.name)
        assert passes(process.address)
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.complaints == []


@pytest.mark.parametrize("bind", ["0.0.0.0", pytest.param("::", marks=needs_ipv6)])
def test_warning_beyond_loopback(command: Callable[..., Command], echo: Echo, bind: str) -> None:
    """Row 93: a line says that other machines may come, and with -q too."""
    for quiet in [], ["-q"]:
        process = command("-b", bind, *quiet, echo.name)
        port = process.address[1]
        where = f"[::]:{port}" if bind == "::" else f"0.0.0.0:{port}"
        assert passes(("127.0.0.1", port))
        assert process.stdout[0] == f"Listening on {where}"
        eventually(lambda process=process: process.stderr)
        assert process.stderr == [f"warning: listening on {where}, which other machines may reach"]


def test_abbreviated_ipv4(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """Row 94: addresses as inet_aton knows them are still addresses."""
    proxy = make_proxy(f"127.1:{echo.port}", bind="127.1")
    assert proxy.address[0] == "127.0.0.1"
    assert passes(proxy.address)


@pytest.fixture
def link_local(namespaces: Callable[[], Namespace]) -> Callable[[str], dict[str, object]]:
    """Runs a program where fe80::1 is the address of an interface `here`. It prints JSON."""
    namespace = namespaces()
    namespace.ip("link", "add", "here", "type", "veth", "peer", "name", "there")
    namespace.ip("link", "set", "there", "up")
    try:
        namespace.address("here", "fe80::1/64", "nodad")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no interface with a link-local address: {error.stderr}")

    def run(program: str) -> dict[str, object]:
        argv = [*namespace.wrapper, sys.executable, "-c", textwrap.dedent(program)]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=30)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_scope_id(link_local: Callable[[str], dict[str, object]]) -> None:
    """Row 94: `[address%interface]` to listen on and as upstream, by name and by number; bytes both ways."""
    result = link_local("""
        import json, socket, tcpproxy
        index = socket.if_nametoindex("here")
        upstream = socket.socket(socket.AF_INET6)
        upstream.bind(("fe80::1", 0, 0, index))
        upstream.listen()
        port = upstream.getsockname()[1]
        result = {"events": [], "addresses": [], "answers": [], "views": []}
        for scope in "here", index:
            bind = f"[fe80::1%{scope}]"
            with tcpproxy.Proxy(f"{bind}:{port}", bind=bind, on_event=lambda it: result["events"].append(it)) as proxy:
                result["addresses"].append(proxy.address)
                with socket.create_connection(proxy.address, timeout=10) as client:
                    upstream.settimeout(10)
                    server, _ = upstream.accept()
                    with server:
                        client.sendall(b"question")
                        question = server.recv(100)
                        server.sendall(b"answer to " + question)
                        result["answers"].append(client.recv(100).decode())
                        result["views"].append(proxy.connections()[0].client.rpartition(":")[0])
        result["index"] = index
        print(json.dumps(result))
    """)
    assert result["answers"] == ["answer to question"] * 2
    own = ("fe80::1%here", f"fe80::1%{result['index']}")
    assert all(host in own for host, _ in result["addresses"])  # type: ignore[attr-defined]
    clients = [event[3] for event in result["events"] if event[0] == "new"]  # type: ignore[attr-defined]
    assert len(clients) == 2
    assert all(client.startswith("[fe80::1%here]:") for client in clients)
    ends = [event for event in result["events"] if event[0] == "end"]  # type: ignore[attr-defined]
    assert all(end[3].startswith("[fe80::1%here]:") and end[4].startswith("[fe80::1%here]:") for end in ends)
    texts = [event[9] for event in result["events"] if event[0] == "listening"]  # type: ignore[attr-defined]
    assert [text.rpartition(":")[0] for text in texts] == ["[fe80::1%here]"] * 2
    assert result["views"] == ["[fe80::1%here]"] * 2


def test_scope_id_that_is_missing_or_unknown(link_local: Callable[[str], dict[str, object]]) -> None:
    """Row 94: a link-local address without its interface, or with another's, cannot be listened on: one sentence."""
    result = link_local("""
        import json, tcpproxy
        result = {}
        for bind in "fe80::1", "fe80::1%there", "fe80::1%nowhere":
            try:
                tcpproxy.Proxy("127.0.0.1:9", bind=bind, port=4321).start()
            except tcpproxy.StartError as error:
                result[bind] = str(error)
        print(json.dumps(result))
    """)
    assert result["fe80::1"] == "cannot listen on [fe80::1]:4321: Invalid argument"
    wrong_scope = r"cannot listen on \[fe80::1%(there|\d+)\]:4321: Cannot assign requested address"
    assert re.fullmatch(wrong_scope, str(result["fe80::1%there"]))
    assert str(result["fe80::1%nowhere"]).startswith("cannot listen on fe80::1%nowhere: ")
