"""Spellings of ssh, docker, kubectl, socat and URLs: their meaning here, or the error that shows the right spelling."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from tcpproxy import Proxy, UsageError
from tcpproxy.command.unknown import meant
from tcpproxy.config.config import Config
from tcpproxy.config.endpoints import (
    Endpoint,
    endpoint,
    parse_bind,
    parse_endpoint,
    parse_endpoints,
    parse_local_port,
    parse_sources,
)

BARE = "which is a bare number, expected HOST:PORT; "
NO_PATH = "is not how a UNIX socket is spelled here, expected /PATH; to forward to "

REMOTES = {
    # docker, kubectl
    "18080:16379": f"has the host '18080', {BARE}to listen on port 18080 and forward to localhost:16379: "
    "tcpproxy -l 18080 localhost:16379",
    "18080:16379/tcp": "tcpproxy -l 18080 localhost:16379",
    "53:53/udp": "is not TCP, expected HOST:PORT",
    "127.0.0.1:8080:80": "has 3 fields, expected HOST:PORT; to listen on 127.0.0.1 port 8080 and forward to "
    "localhost:80: tcpproxy -b 127.0.0.1 -l 8080 localhost:80",
    "127.0.0.1::80": "to listen on 127.0.0.1 and forward to localhost:80: tcpproxy -b 127.0.0.1 localhost:80",
    ":16379": "has an empty host, expected HOST:PORT; to forward to localhost:16379: tcpproxy localhost:16379",
    "16379": "has no host, expected HOST:PORT; to forward to localhost:16379: tcpproxy localhost:16379",
    "8080:db": f"has the host '8080', {BARE}to listen on port 8080 and forward to db:PORT: tcpproxy -l 8080 db:PORT",
    # ssh
    "8080:db:5432": "has 3 fields, expected HOST:PORT; to listen on port 8080 and forward to db:5432: "
    "tcpproxy -l 8080 db:5432",
    "*:8080:db:5432": "tcpproxy -b :: -l 8080 db:5432",
    ":8080:db:5432": "has 4 fields, expected HOST:PORT; to listen on port 8080 and forward to db:5432: "
    "tcpproxy -l 8080 db:5432",
    "localhost:8080:db:5432": "tcpproxy -b localhost -l 8080 db:5432",
    "0:db:5432": "to listen on port 0 and forward to db:5432: tcpproxy -l 0 db:5432",
    "8080:[::1]:5432": "to listen on port 8080 and forward to [::1]:5432: tcpproxy -l 8080 '[::1]:5432'",
    "[::1]:8080:[2001:db8::5]:443": "has 4 fields, expected HOST:PORT; to listen on ::1 port 8080 and forward to "
    "[2001:db8::5]:443: tcpproxy -b ::1 -l 8080 '[2001:db8::5]:443'",
    "1:2:3:4:5": "has more than one ':', expected HOST:PORT",
    "8080:db:http": "has more than one ':', expected HOST:PORT",
    # URLs, socat
    "http://db:80": "is a URL, expected HOST:PORT; to forward to db:80: tcpproxy db:80",
    "http://db:80/path?x=1#y": "tcpproxy db:80",
    "https://db": "tcpproxy db:443",
    "redis://localhost:16379/0": "is a URL, expected HOST:PORT; to forward to localhost:16379: "
    "tcpproxy localhost:16379",
    "tcp://localhost:16379": "is a URL, expected HOST:PORT; to forward to localhost:16379: tcpproxy localhost:16379",
    "tcp://db": "tcpproxy db:PORT",
    "tcp://:80": "tcpproxy localhost:80",
    "http://[::1]:8080/": "tcpproxy '[::1]:8080'",
    "http://[::1]": "tcpproxy '[::1]:80'",
    "http://": "is a URL, expected HOST:PORT",
    "mongodb://a:1,b:2/x": "is a URL, expected HOST:PORT",
    "tcp:db:80": "begins with 'tcp', expected HOST:PORT; to forward to db:80: tcpproxy db:80",
    "TCP4:db:80": "begins with 'TCP4', expected HOST:PORT; to forward to db:80: tcpproxy db:80",
    "db:80/tcp": "ends with '/tcp', expected HOST:PORT; to forward to db:80: tcpproxy db:80",
    "db1:80,db2:80": "has a ',', expected one HOST:PORT",
    # UNIX sockets
    "run/docker.sock": f"{NO_PATH}./run/docker.sock: tcpproxy ./run/docker.sock",
    "UNIX-CONNECT:/x": f"{NO_PATH}/x: tcpproxy /x",
    "unix:///run/x": "is a URL, expected HOST:PORT; to forward to /run/x: tcpproxy /run/x",
    "http+unix://%2Frun%2Fx": "is a URL, expected HOST:PORT; to forward to /run/x: tcpproxy /run/x",
    "~/x": "begins with '~', which only a shell expands, expected /PATH",
    "8080:/run/x": "has the host '8080', which is a bare number, expected HOST:PORT; to listen on port 8080 and "
    "forward to /run/x: tcpproxy -l 8080 /run/x",
    "/run/": "is a directory, expected the path of a UNIX socket",
    "..": "has no port, expected HOST:PORT",
    "../..": "is a directory, expected the path of a UNIX socket",
    "@": "has no path of a UNIX socket, expected /PATH",
    "unix:": "has no path of a UNIX socket, expected /PATH",
    "/a\0b": "has a NUL, which no path can have",
    f"/{'x' * 107}": "has a path of 108 bytes, expected at most 107",
    f"unix:{chr(0xFC) * 53}": "has a path of 108 bytes, expected at most 107",
    # numbers that inet_aton takes for an address
    "0:80": "has '0', which is a bare number (in full: 0.0.0.0), expected HOST:PORT",
    "2130706433:80": "has '2130706433', which is a bare number (in full: 127.0.0.1), expected HOST:PORT",
    "0x7f000001:80": "has '0x7f000001', which is a bare number (in full: 127.0.0.1), expected HOST:PORT",
    "99999999999:80": "has '99999999999', which is a bare number, expected HOST:PORT",
    "\uff11\uff18\uff10\uff18\uff10:80": "which is a bare number, expected HOST:PORT",
    "10.1:80": "has '10.1', which is not an IPv4 address (in full: 10.0.0.1), expected HOST:PORT",
    "1.2.3:80": "has '1.2.3', which is not an IPv4 address (in full: 1.2.0.3), expected HOST:PORT",
    "0177.1:80": "has '0177.1', which is not an IPv4 address, expected HOST:PORT",
    "127.01:80": "has '127.01', which is not an IPv4 address, expected HOST:PORT",
    "0x7f.1:80": "has '0x7f.1', which is not an IPv4 address (in full: 127.0.0.1), expected HOST:PORT",
    "127.99999999:80": "has '127.99999999', which is not an IPv4 address, expected HOST:PORT",
    "18080.:80": "has '18080.', which is not an IPv4 address, expected HOST:PORT",
    # no port; IPv6
    "db": "has no port, expected HOST:PORT",
    "65536": "has no port, expected HOST:PORT",
    "::1": "is an IPv6 address without brackets, expected [IPv6]:PORT",
    "::1:80": "is an IPv6 address without brackets, expected [IPv6]:PORT",
    "fe80::1%eth0:80": "is an IPv6 address without brackets, expected [IPv6]:PORT",
    "[::1]": "has no port behind the ']', expected [IPv6]:PORT",
}


@pytest.mark.parametrize("text", REMOTES)
def test_remote_of_another_program(text: str) -> None:
    """The sentence has the value, what is wrong with it, and the command line."""
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)
    sentence = str(caught.value)
    assert sentence.startswith(f"remote {text!r} ")
    assert sentence.endswith(REMOTES[text])
    assert "brackets" not in sentence or text.count(":") > 1


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.1:80", "127.1"),
        ("127.0.1:80", "127.0.1"),
        ("unix:80", "unix"),
        ("tcp:80", "tcp"),
        ("db.1:80", "db.1"),
        ("1password:80", "1password"),
        ("0xdb.example:80", "0xdb.example"),
        ("[fe80::1%25eth0]:80", "fe80::1%eth0"),
        ("[fe80::1%2525eth0]:80", "fe80::1%25eth0"),
        ("[fe80::1%25]:80", "fe80::1%25"),
        ("[fe80::1%253]:80", "fe80::1%253"),
    ],
)
def test_remote_that_stays(text: str, host: str) -> None:
    """Names that look like something else, an address that stays on this machine, and RFC 6874's `%25`."""
    assert parse_endpoint(text) == Endpoint(host, 80)


@pytest.mark.skipif(sys.platform != "linux", reason="107 bytes, and abstract names, on Linux")
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/run/x.sock", "/run/x.sock"),
        ("/run/x:80", "/run/x:80"),
        ("./x", "./x"),
        ("../x", "../x"),
        ("@name", "@name"),
        ("unix:/run/x", "/run/x"),
        ("unix:x", "./x"),
        ("UNIX:@x", "@x"),
        ("/" + "x" * 106, "/" + "x" * 106),
        ("/run/\udcff", "/run/\udcff"),
    ],
)
def test_paths(text: str, path: str) -> None:
    """Of UNIX sockets, as REMOTE and as -b; the last is no UTF-8."""
    assert parse_endpoint(text) == Endpoint(path=path)
    assert str(Endpoint(path=path)) == path
    assert parse_bind("bind", text) == path


def test_paths_of_a_program() -> None:
    """Those of os.PathLike need no `./`, and a number is no port."""
    assert endpoint(Path("a") / "b") == Endpoint(path="./a/b")
    assert endpoint(Path("80")) == Endpoint(path="./80")
    assert endpoint(Path("/run/x")) == Endpoint(path="/run/x")
    assert parse_bind("bind", Path("80")) == "./80"
    with pytest.raises(UsageError, match=r"^remote PosixPath\('/'\) is a directory"):
        endpoint(Path("/"))


@pytest.mark.parametrize(("platform", "text"), [("darwin", "@name"), ("freebsd15", "@name")])
def test_abstract_names(monkeypatch: pytest.MonkeyPatch, platform: str, text: str) -> None:
    """Only Linux has them."""
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UsageError, match=r"^remote '@name' is an abstract UNIX socket, which only Linux has"):
        parse_endpoint(text)


def test_a_python_without_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Windows."""
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(UsageError, match=r"is for a UNIX socket, which Python does not have on this system$"):
        parse_endpoint("/run/x")


def test_hints_are_right() -> None:
    """Each remote that a hint names is accepted."""
    for text in REMOTES:
        with pytest.raises(UsageError) as caught:
            parse_endpoint(text, program=True)
        _, call, arguments = str(caught.value).partition(": Proxy(")
        if call and "PORT'" not in arguments:
            eval(f"Proxy({arguments}", {"Proxy": Proxy})


LISTS = {
    "db1:1, db2:1": "has a space beside a ',', expected HOST:PORT,HOST:PORT; without it: tcpproxy db1:1,db2:1",
    "db1:1 ,/x": "has a space beside a ',', expected HOST:PORT,HOST:PORT; without it: tcpproxy db1:1,/x",
    "db:1,": "has an empty target, expected HOST:PORT,HOST:PORT; without it: tcpproxy db:1",
    ",db:1": "has an empty target, expected HOST:PORT,HOST:PORT; without it: tcpproxy db:1",
    "db1:1,,db2:1": "has an empty target, expected HOST:PORT,HOST:PORT; without it: tcpproxy db1:1,db2:1",
    "db1:1, ,db2:1": "has an empty target, expected HOST:PORT,HOST:PORT; without it: tcpproxy db1:1,db2:1",
}


@pytest.mark.parametrize("text", LISTS)
def test_list_of_targets(text: str) -> None:
    """As in a sentence, or with one comma too many."""
    with pytest.raises(UsageError) as caught:
        parse_endpoints(text)
    assert str(caught.value) == f"remote {text!r} {LISTS[text]}"


def test_password_is_not_shown() -> None:
    """An error is printed, and often kept."""
    with pytest.raises(UsageError) as caught:
        parse_endpoint("postgresql://me:s@cret/@db/x")
    assert str(caught.value) == (
        "remote 'postgresql://...@db/x' is a URL, expected HOST:PORT; to forward to db:5432: tcpproxy db:5432"
    )


def test_service_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not accepted, because they differ between machines; the error has the number of this machine."""
    monkeypatch.setattr(socket, "getservbyname", lambda name, _: 6379 if name == "redis" else int(""))
    with pytest.raises(UsageError) as caught:
        parse_endpoint("localhost:redis")
    assert str(caught.value) == (
        "port of remote 'localhost:redis': 'redis' is not a whole number from 1 to 65535; "
        "the service redis has port 6379: tcpproxy localhost:6379"
    )
    with pytest.raises(UsageError, match=r"from 1 to 65535$"):
        parse_endpoint("localhost:nonsense")
    with pytest.raises(UsageError, match=r"from 0 to 65535; to listen on port 6379: -l 6379$"):
        parse_local_port("--local-port", "redis")


# --- where to listen ---

PORT = "has a port, which is an option of its own, expected a name, an IP address or /PATH; "
BINDS = {
    "127.0.0.1:8080": f"{PORT}to listen on 127.0.0.1 port 8080: -b 127.0.0.1 -l 8080",
    ":8080": f"{PORT}to listen on port 8080: -l 8080",
    "localhost:0": f"{PORT}to listen on localhost port 0: -b localhost -l 0",
    "[::1]:80": f"{PORT}to listen on ::1 port 80: -b ::1 -l 80",
    "*:80": f"{PORT}to listen on :: port 80: -b :: -l 80",
    "8080:db:5432": f"{PORT}to listen on port 8080 and forward to db:5432: tcpproxy -l 8080 db:5432",
    "8080": "is a bare number, expected a name, an IP address or /PATH; to listen on port 8080: -l 8080",
    "0": "is a bare number (in full: 0.0.0.0), expected a name, an IP address or /PATH",
    "10.1": "is not an IPv4 address (in full: 10.0.0.1), expected a name, an IP address or /PATH",
    "tcp://0.0.0.0:80": "is a URL, expected a name, an IP address or /PATH; to listen on 0.0.0.0 port 80: "
    "-b 0.0.0.0 -l 80",
    "http://here": "is a URL, expected a name, an IP address or /PATH",
    "run/x.sock": "is not how a UNIX socket is spelled here, expected /PATH; to listen on ./run/x.sock: "
    "-b ./run/x.sock",
    "UNIX-LISTEN:/x": "is not how a UNIX socket is spelled here, expected /PATH; to listen on /x: -b /x",
    "/run/": "is a directory, expected the path of a UNIX socket",
    "a,b": "has a ',', expected a name, an IP address or /PATH; each address has a forward of its own, "
    "like -L a:PORT:REMOTE",
    "::1,127.0.0.1": "has a ',', expected a name, an IP address or /PATH; each address has a forward of its own, "
    "like -L '[::1]:PORT:REMOTE'",
    "[::1],[::2]": "has a ',', expected a name, an IP address or /PATH; each address has a forward of its own, "
    "like -L '[::1]:PORT:REMOTE'",
}


@pytest.mark.parametrize("text", BINDS)
def test_bind_of_another_program(text: str) -> None:
    """In the command."""
    with pytest.raises(UsageError) as caught:
        parse_bind("--bind", text)
    assert str(caught.value) == f"--bind {text!r} {BINDS[text]}"


LOCAL_PORTS = {
    "127.0.0.1:8080": "to listen on 127.0.0.1 port 8080: -b 127.0.0.1 -l 8080",
    ":18080": "to listen on port 18080: -l 18080",
    "*:80": "to listen on :: port 80: -b :: -l 80",
    "[::1]:80": "to listen on ::1 port 80: -b ::1 -l 80",
    "8080:5432": "to listen on port 8080 and forward to localhost:5432: tcpproxy -l 8080 localhost:5432",
    "8080:db:5432": "to listen on port 8080 and forward to db:5432: tcpproxy -l 8080 db:5432",
    "8080/tcp": "to listen on port 8080: -l 8080",
    "tcp://:80": "to listen on port 80: -l 80",
    "/run/x": "to listen on /run/x: -b /run/x",
    "unix:/x": "to listen on /x: -b /x",
    "@x": "to listen on @x: -b @x",
    "UNIX-LISTEN:x": "to listen on ./x: -b ./x",
    "8080,8081": "each port has a forward of its own, like -L 8080:REMOTE",
    "8080-8090": "each port has a forward of its own, like -L 8080:REMOTE",
    "8k": "in digits: 8000",
}


@pytest.mark.parametrize("text", LOCAL_PORTS)
def test_local_port_of_another_program(text: str) -> None:
    """In the command."""
    with pytest.raises(UsageError) as caught:
        parse_local_port("--local-port", text)
    assert str(caught.value) == f"--local-port {text!r} is not a whole number from 0 to 65535; {LOCAL_PORTS[text]}"


@pytest.mark.parametrize("text", ["99999", "nonsense", "-1", "99k", "~/x", "8080,x"])
def test_local_port_without_a_hint(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError, match=r"is not a whole number from 0 to 65535$"):
        parse_local_port("--local-port", text)


@pytest.mark.parametrize(
    ("typed", "value", "hint"),
    [
        ("-p", "18080", "-l 18080"),
        ("-p", "18080:16379", "tcpproxy -l 18080 localhost:16379"),
        ("-p", "*:80:db:1", "tcpproxy -b :: -l 80 db:1"),
        ("--port", "18080", "-l 18080"),
        ("--listen", "0.0.0.0:80", "-b 0.0.0.0 -l 80"),
        ("--listen", ":80", "-l 80"),
        ("--listen", "", "-l"),
        ("--listen", "/run/x", "-b /run/x"),
        ("--listen", "unix:x", "-b ./x"),
        ("--listen", "here", "-b or -l"),
        ("--address", "0.0.0.0", "-b 0.0.0.0"),
        ("--bind-address", "here", "-b here"),
        ("--bind-address", "::1", "-b ::1"),
        ("--bind-address", "", "-b"),
        ("--bind-addr", ":80", "-l 80"),
        ("--listen", "*", "-b ::"),
        ("--target", "db:80", "tcpproxy db:80"),
        ("--target", "db", ""),
        ("--nonsense", "80", ""),
    ],
)
def test_option_of_another_program(typed: str, value: str, hint: str) -> None:
    """With its value."""
    assert " or ".join(meant(typed, value)) == hint


SOURCES = {
    "127.0.0.1:0": "; the port is the system's choice: 127.0.0.1",
    "[::1]:0": "; the port is the system's choice: ::1",
    "eth0": "; for a name or a network interface: one of its addresses",
    "db.example": "; for a name or a network interface: one of its addresses",
    "10.0.0": "",
    ":0": "",
}


@pytest.mark.parametrize("text", SOURCES)
def test_source_of_another_program(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sources("--source", (text,))
    expected = "expected an IP address of this machine, like 10.0.0.5"
    assert str(caught.value) == f"--source {text!r} is no IP address, {expected}{SOURCES[text]}"


# --- in a program ---


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        (16379, "localhost:16379"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        (("127.0.0.1", 16379), "127.0.0.1:16379"),
        (("db", 5432), "db:5432"),
        (("::1", 80), "[::1]:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, 3), "[fe80::1%3]:80"),
        (("fe80::1%eth0", 80, 0, 3), "[fe80::1%eth0]:80"),
    ],
)
def test_remote_in_a_program(remote: object, text: str) -> None:
    """A port of localhost, a pair, or an address of a socket."""
    assert str(Config.make(remote).remote) == text  # type: ignore[arg-type]


def test_address_of_a_socket() -> None:
    """Of both families, as it comes."""
    for family, host in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
        with contextlib.suppress(OSError), socket.create_server((host, 0), family=family) as server:
            assert endpoint(server.getsockname()) == Endpoint(host, server.getsockname()[1])


NO_ADDRESS = "is no address, expected HOST:PORT, [IPv6]:PORT or /PATH, a port of localhost, or (host, port)"


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        *((each, f"remote {each!r} {NO_ADDRESS}") for each in (True, b"db:80", 1.5, ("db",), (1, 2))),
        (["db", 80], "remote 'db' has no port, expected HOST:PORT"),
        ([], "remote [] is empty, expected HOST:PORT, [IPv6]:PORT or /PATH"),
        (None, "remote is missing, expected HOST:PORT, [IPv6]:PORT or /PATH, or forwards"),
        (0, "port 0 is not a whole number from 1 to 65535"),
        (65536, "port 65536 is not a whole number from 1 to 65535"),
        (("db", 0), "port of remote ('db', 0): 0 is not a whole number from 1 to 65535"),
        (("18080", 80), "remote ('18080', 80) has '18080', which is a bare number, expected (host, port)"),
        (("", 80), "remote ('', 80) has an empty host, expected (host, port)"),
        (
            "18080:16379",
            f"remote '18080:16379' has the host '18080', {BARE}"
            "to listen on port 18080 and forward to localhost:16379: Proxy('localhost:16379', port=18080)",
        ),
    ],
)
def test_bad_remote_in_a_program(remote: object, sentence: str) -> None:
    """One sentence; its hints are calls."""
    with pytest.raises(UsageError) as caught:
        Config.make(remote)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_bad_bind_in_a_program() -> None:
    """Its hints are arguments."""
    with pytest.raises(UsageError, match=r"; to listen on 127.0.0.1 port 80: bind='127.0.0.1', port=80$"):
        Config.make(1, bind="127.0.0.1:80")
    assert Config.make(1, bind="*").listening.bind == "::"
    with pytest.raises(UsageError, match=r"^port ':80' is not a whole number from 0 to 65535; .*: port=80$"):
        Config.make(1, port=":80")


@pytest.mark.skipif(os.name == "nt", reason="Windows knows interfaces by number alone")
def test_port_and_host() -> None:
    """Those of the first address."""
    proxy = Proxy(9)
    for name in "port", "host":
        with pytest.raises(RuntimeError, match="has not been started"):
            getattr(proxy, name)
    with proxy:
        assert (proxy.host, proxy.port) == proxy.address
