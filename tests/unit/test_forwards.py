"""Forwards: what -L and `forwards` take, and the sentence for everything else."""

from __future__ import annotations

import shlex
import socket
import sys

import pytest

from tcpproxy import UsageError
from tcpproxy.config.endpoints import Endpoint
from tcpproxy.config.forwards import parse_forward

GOOD = {
    "8080:db:5432": ("127.0.0.1:8080", "db:5432"),
    "0:db:1": ("127.0.0.1:0", "db:1"),
    "08080:db:05432": ("127.0.0.1:8080", "db:5432"),
    "0.0.0.0:0:db:1": ("0.0.0.0:0", "db:1"),
    "localhost:8080:db:5432": ("localhost:8080", "db:5432"),
    "*:8080:db:5432": ("[::]:8080", "db:5432"),
    "[::]:8080:db:5432": ("[::]:8080", "db:5432"),
    "here:8080:127.0.0.1:65535": ("here:8080", "127.0.0.1:65535"),
    # IPv6
    "80:[::1]:90": ("127.0.0.1:80", "[::1]:90"),
    "80:[fe80::1%eth0]:90": ("127.0.0.1:80", "[fe80::1%eth0]:90"),
    "[fe80::1%25eth0]:80:[::1]:90": ("[fe80::1%eth0]:80", "[::1]:90"),
    "[::1]:0:[2001:db8::5]:443": ("[::1]:0", "[2001:db8::5]:443"),
    # names that look like something else
    "R:8080:db:1": ("R:8080", "db:1"),
    "8080:unix:80": ("127.0.0.1:8080", "unix:80"),
    "8080:fd:80": ("127.0.0.1:8080", "fd:80"),
    # several targets
    "8080:db1:1,db2:2": ("127.0.0.1:8080", "db1:1", "db2:2"),
    "8080:[::1]:1,/run/x,@y": ("127.0.0.1:8080", "[::1]:1", "/run/x", "@y"),
    # UNIX sockets
    "/run/db.sock:db:5432": ("/run/db.sock", "db:5432"),
    "/run/a,b:db:5432": ("/run/a,b", "db:5432"),
    "@name:db:5432": ("@name", "db:5432"),
    "./x:../y": ("./x", "../y"),
    "unix:x:db:1": ("./x", "db:1"),
    "unix:/run/x:db:1": ("/run/x", "db:1"),
    "8080:/run/postgresql/.s.PGSQL.5432": ("127.0.0.1:8080", "/run/postgresql/.s.PGSQL.5432"),
    "[::1]:8080:@x": ("[::1]:8080", "@x"),
    "8080:unix:x": ("127.0.0.1:8080", "./x"),
    f"/{'x' * 106}:/y": (f"/{'x' * 106}", "/y"),
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names, and paths of 107 bytes")


@linux
@pytest.mark.parametrize("text", GOOD)
def test_forward(text: str) -> None:
    """Where it listens, and its targets in order."""
    found = parse_forward("--forward", text)
    assert (str(found.listener), *map(str, found.targets)) == GOOD[text]
    assert found.text == text
    assert found.target == found.targets[0]


def test_the_endpoints_of_a_forward() -> None:
    """A host has no brackets; a path is no host."""
    found = parse_forward("forwards", "[::1]:80:/x")
    assert (found.listener, found.target) == (Endpoint("::1", 80), Endpoint(path="/x"))


WANT = "expected [ADDR:]PORT:REMOTE"
BARE = f"has an IPv6 address without brackets, {WANT}; with them: "
BAD = {
    "": f"is empty, {WANT}",
    # no remote
    "8080": f"has no REMOTE, {WANT}; to forward to localhost:8080: tcpproxy localhost:8080",
    ":80": f"has no REMOTE, {WANT}; to forward to localhost:80: tcpproxy localhost:80",
    "db:5432": f"has no REMOTE, {WANT}; to forward to db:5432: tcpproxy db:5432",
    "8080:": f"has no REMOTE, {WANT}",
    "a:8080:": f"has no REMOTE, {WANT}",
    "/run/x": f"has no REMOTE, {WANT}",
    ":": f"has no REMOTE, {WANT}",
    "8080=db:5432": f"has no REMOTE, {WANT}",
    "8080 db:5432": f"has no REMOTE, {WANT}; to forward to db:5432: -L 8080:db:5432",
    # the address to listen on
    ":8080:h:1": f"has an empty address, {WANT}; for this machine alone: -L 8080:h:1, for all: -L '*:8080:h:1'",
    "::1:80:h:1": f"{BARE}-L '[::1]:80:h:1'",
    "2001:db8::1:80:h:1": f"{BARE}-L '[2001:db8::1]:80:h:1'",
    "fe80::1%eth0:80:h:1": f"{BARE}-L '[fe80::1%eth0]:80:h:1'",
    "::1:80:/x": f"{BARE}-L '[::1]:80:/x'",
    "[::1]x:80:h:1": f"has '[::1]x', which is not an IPv6 address in brackets, {WANT}",
    "[::1:80:h:1": f"has '[', which is not an IPv6 address in brackets, {WANT}",
    "[127.0.0.1]:80:h:1": f"has '[127.0.0.1]', which is not an IPv6 address in brackets, {WANT}",
    "1.2.3.999:80:h:1": f"has '1.2.3.999', which is not an IPv4 address, {WANT}",
    "a b:80:h:1": f"has 'a b', which cannot be a host name, {WANT}",
    "fd:3:db:1": "begins with 'fd:', which is for inherited sockets: not supported yet",
    # its port
    "+80:h:1": f"begins with '+80', which is no port, {WANT}",
    " 80:h:1": f"begins with ' 80', which is no port, {WANT}",
    "\u0668\u0660:h:1": f"begins with '\u0668\u0660', which is no port, {WANT}",
    "-1:h:1": f"begins with '-1', which is no port, {WANT}",
    ",8080:db:1": f"begins with ',8080', which is no port, {WANT}",
    "8080-8090:db:1": f"begins with '8080-8090', a range of ports, {WANT} for each of them",
    "127.0.0.1::80": f"has an empty port, {WANT}; for a free port: -L 127.0.0.1:0:localhost:80",
    "127.0.0.1::db:80": f"has an empty port, {WANT}; for a free port: -L 127.0.0.1:0:db:80",
    "run/x.sock:db:1": f"begins with 'run/x.sock', which is no port, {WANT}; to forward to db:1: -L ./run/x.sock:db:1",
    # the remote
    "8080:h": ": remote 'h' has no port, expected HOST:PORT",
    "[::1]:80:h": ": remote 'h' has no port, expected HOST:PORT",
    "8080:h:0": ": port of remote 'h:0': '0' is not a whole number from 1 to 65535",
    "80:::1:90": ": remote '::1:90' is an IPv6 address without brackets, expected [IPv6]:PORT",
    "8080:5432": ": remote '5432' has no host, expected HOST:PORT; to forward to localhost:5432: "
    "-L 8080:localhost:5432",
    "8080::5432": ": remote ':5432' has an empty host, expected HOST:PORT; to forward to localhost:5432: "
    "-L 8080:localhost:5432",
    "0.0.0.0:8080:5432": ": remote '5432' has no host, expected HOST:PORT; to forward to localhost:5432: "
    "-L 0.0.0.0:8080:localhost:5432",
    "8080:80:db:5432": ": remote '80:db:5432' has 3 fields, expected HOST:PORT",
    "8080:db:5432:1": ": remote 'db:5432:1' has 3 fields, expected HOST:PORT",
    "8080:db:5432/tcp": ": remote 'db:5432/tcp' ends with '/tcp', expected HOST:PORT; to forward to db:5432: "
    "-L 8080:db:5432",
    "8080:db:53/udp": ": remote 'db:53/udp' is not TCP, expected HOST:PORT",
    "8080:http://db:80": ": remote 'http://db:80' is a URL, expected HOST:PORT; to forward to db:80: -L 8080:db:80",
    "tcp://:8080/db:1": f"is a URL, {WANT}",
    "8080:db:5432,": ": remote 'db:5432,' has an empty target, expected HOST:PORT,HOST:PORT; without it: "
    "-L 8080:db:5432",
    "8080:db1:1, db2:1": ": remote 'db1:1, db2:1' has a space beside a ',', expected HOST:PORT,HOST:PORT; without it: "
    "-L 8080:db1:1,db2:1",
    "a,b:80:h:1": f"has 'a,b', which cannot be a host name, {WANT}",
    "80:" + "x" * 300 + ":1": "which cannot be a host name, expected HOST:PORT",
    # UNIX sockets
    "8080:unix:///run/x": ": remote 'unix:///run/x' is a URL, expected HOST:PORT; to forward to /run/x: -L 8080:/run/x",
    "8080:run/x.sock": ": remote 'run/x.sock' is not how a UNIX socket is spelled here, expected /PATH; to forward to "
    "./run/x.sock: -L 8080:./run/x.sock",
    "8080:UNIX-CONNECT:/x": "expected /PATH; to forward to /x: -L 8080:/x",
    "8080:~/x": ": remote '~/x' begins with '~', which only a shell expands, expected /PATH",
    "/run/a:b:db:1": ": remote 'b:db:1' has more than one ':', expected HOST:PORT",
    "unix::db:1": "has no path of a UNIX socket, expected /PATH",
    "@:db:1": "has no path of a UNIX socket, expected /PATH",
    "/run/:db:1": "is a directory, expected the path of a UNIX socket",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_forward(text: str) -> None:
    """The error has the value, what is wrong with it, and the right spelling."""
    with pytest.raises(UsageError) as caught:
        parse_forward("--forward", text)
    sentence = str(caught.value)
    assert sentence.startswith(f"--forward {text!r}")
    assert sentence.endswith(BAD[text])
    assert sentence.isprintable()


def test_hints_are_right() -> None:
    """Each forward that a hint names is accepted, on a command line and in a program."""
    found = 0
    for text in BAD:
        with pytest.raises(UsageError) as caught:
            parse_forward("--forward", text)
        for hint in str(caught.value).split(" -L ")[1:]:
            parse_forward("--forward", shlex.split(hint)[0].removesuffix(","))
            found += 1
        with pytest.raises(UsageError) as caught:
            parse_forward("forwards", text)
        for hint in str(caught.value).split("forwards=[")[1:]:
            parse_forward("forwards", eval(hint.split("']")[0] + "'"))
            found += 1
    assert found > 30


@pytest.mark.parametrize("value", [None, 8080, b"8080:db:1", ["8080:db:1"]])
def test_what_is_no_text(value: object) -> None:
    """In a program."""
    with pytest.raises(UsageError, match=r"^forwards .* is not a text, expected \[ADDR:\]PORT:REMOTE$"):
        parse_forward("forwards", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("port", ["65536", "99999999999"])
def test_a_port_that_is_too_large(port: str) -> None:
    """The value is the port, the context the forward."""
    sentence = rf"^port of --forward '{port}:h:1': '{port}' is not a whole number from 0 to 65535$"
    with pytest.raises(UsageError, match=sentence):
        parse_forward("--forward", f"{port}:h:1")


def test_service_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not accepted; the error has the number of this machine."""
    monkeypatch.setattr(socket, "getservbyname", lambda name, _: 80 if name == "http" else int(""))
    with pytest.raises(UsageError, match=r"the service http has port 80: -L 80:db:1$"):
        parse_forward("--forward", "http:db:1")
    with pytest.raises(UsageError, match=r"the service http has port 80: -L 1:db:80$"):
        parse_forward("--forward", "1:db:http")
