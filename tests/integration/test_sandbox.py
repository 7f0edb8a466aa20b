"""What the command gives up when it starts: as /proc shows it, and as attempts from inside show it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import Closed, Namespace
from support.command import Command
from support.machine import needs, needs_proc
from support.peers import Echo, Upstream, connect
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

import tcpproxy
from tcpproxy.command import sandbox
from tcpproxy.config.config import Config

ABI = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else -1
needs_landlock = pytest.mark.skipif(ABI < 4, reason=f"the kernel has no Landlock for TCP (version {ABI})")

ATTEMPTS = """
import json, os, signal, socket, subprocess, sys

folder, other_port = sys.argv[1], int(sys.argv[2])
del sys.argv[1:6]  # and "python -m tcpproxy"

def attempt(what, *args):
    try:
        what(*args)
    except OSError as error:
        return error.strerror
    return "done"

def attempts(*_):
    said = {
        "write": attempt(open, folder + "/old", "r+"),
        "make": attempt(open, folder + "/new", "w"),
        "remove": attempt(os.unlink, folder + "/older"),
        "cut": attempt(os.truncate, folder + "/old", 0),
        "run": attempt(subprocess.run, ["/bin/true"]),
        "signal": attempt(os.kill, os.getppid(), 0),
        "connect": attempt(socket.create_connection, ("127.0.0.1", other_port)),
        "read": attempt(open, folder + "/old"),
        "look up": attempt(socket.getaddrinfo, "localhost", 80),
    }
    sys.stderr.write(json.dumps(said) + "\\n")
    sys.stderr.flush()

signal.signal(signal.SIGUSR1, attempts)
from tcpproxy.__main__ import main
main()
"""


@pytest.fixture
def attempts(
    tmp_path: Path, stack: contextlib.ExitStack, echo: Echo, command: Callable[..., Command]
) -> Callable[..., dict[str, str]]:
    """Runs the command with a signal handler that tries what it should not need; returns the results."""

    def run(*options: str) -> dict[str, str]:
        for name in "old", "older":
            (tmp_path / name).write_text(name)
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        wrapper = (sys.executable, "-c", ATTEMPTS, str(tmp_path), str(other.getsockname()[1]))
        process = command("-q", *options, echo.name.replace("127.0.0.1", "localhost"), wrapper=wrapper)
        client = stack.enter_context(connect(process.address))
        assert echoes(client)
        process.signal(signal.SIGUSR1)
        eventually(lambda: process.stderr, TIMEOUT)
        assert echoes(client)
        assert echoes(stack.enter_context(connect(process.address)))
        client.close()
        process.signal(signal.SIGTERM)
        return json.loads(process.stderr[0])

    return run


def privileges(pid: int) -> set[str]:
    """What /proc says of all its threads."""
    needs_proc()
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found |= {line for line in (thread / "status").read_text().splitlines() if "NoNewPrivs" in line}
    return found


@pytest.mark.parametrize(("mode", "given_up"), [("auto", 1), ("off", 0)])
def test_no_new_privileges(command: Callable[..., Command], echo: Echo, mode: str, given_up: int) -> None:
    """In every thread of the command."""
    process = command("--sandbox", mode, "--workers", "2", echo.name)
    assert echoes(connect(process.address))
    assert privileges(process.process.pid) == {f"NoNewPrivs:\t{given_up}"}


@needs_landlock
@pytest.mark.parametrize("mode", ["auto", "require"])
def test_what_is_given_up(attempts: Callable[..., dict[str, str]], tmp_path: Path, mode: str) -> None:
    """None of these attempts works while connections go on; what relaying needs does work."""
    said = attempts("--sandbox", mode)
    denied = {"write", "make", "remove", "cut", "run", "connect"} | ({"signal"} if ABI >= 6 else set())
    assert {what for what, how in said.items() if how in ("Permission denied", "Operation not permitted")} == denied
    assert {said["read"], said["look up"]} == {"done"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old", "older": "older"}


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_what_is_kept_without_it(attempts: Callable[..., dict[str, str]]) -> None:
    """The control: these attempts work."""
    assert set(attempts("--sandbox", "off").values()) == {"done"}


def without(call: str, trace: Path) -> tuple[str, ...]:
    """Makes a command run on a kernel that does not know this call."""
    needs("strace")
    refused = f"inject={call}:error=ENOSYS"
    return ("strace", "-D", "-f", "-e", f"trace={call}", "-e", refused, "-o", str(trace))


@pytest.mark.parametrize("call", ["prctl", "landlock_create_ruleset", "landlock_restrict_self"])
def test_a_system_without(command: Callable[..., Command], echo: Echo, tmp_path: Path, call: str) -> None:
    """`auto` goes on without a word; `require` does not start, and says why in one sentence."""
    if call != "prctl" and ABI < 4:
        pytest.skip("the kernel has no Landlock anyway")
    auto = command("-q", echo.name, wrapper=without(call, tmp_path / "auto"))
    assert echoes(connect(auto.address))
    auto.signal(signal.SIGTERM)
    assert auto.wait() == 0
    assert auto.complaints == []
    require = command("--sandbox", "require", echo.name, wrapper=without(call, tmp_path / "require"))
    assert require.wait() == 1
    assert require.stdout == []
    assert len(require.stderr) == 1
    assert require.stderr[0].startswith("tcpproxy: cannot enter the sandbox that is required: ")
    assert "ENOSYS" in (tmp_path / "require").read_text()


@needs_landlock
def test_a_library_restricts_nobody(echo: Echo) -> None:
    """A Proxy leaves its program as it is."""
    with tcpproxy.Proxy(echo.name) as proxy:
        assert echoes(connect(proxy.address))
        assert privileges(os.getpid()) == privileges(os.getppid())
        subprocess.run([sys.executable, "-c", ""], check=True)


@needs_landlock
@pytest.mark.parametrize(
    ("remote", "hosts", "ports"),
    [
        ("192.0.2.1:80", "nis", {80}),
        ("[2001:db8::1]:80", "nis", {80}),
        ("[fe80::1%eth0]:80", "nis", {80}),
        ("db.example:80", "files dns", {80, 53}),
        ("db.example:80", "files mdns4_minimal [NOTFOUND=return] dns myhostname", {80, 53}),
        ("db.example:80", "files nis dns", None),
        ("db.example:80", None, {80, 53}),
    ],
)
def test_ports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remote: str, hosts: str | None, ports: set[int] | None
) -> None:
    """Where names come from decides which ports their look-up may need."""
    switch = tmp_path / "nsswitch.conf"
    if hosts:
        switch.write_text(f"# hosts: nis\npasswd: files nis\nhosts: {hosts} # ldap\n")
    monkeypatch.setattr(sandbox, "NSSWITCH", str(switch))
    assert sandbox.ports_to_reach(Config.make(remote)) == ports


# --- a library that has taken connect() over ---

REDIRECT = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

int connect(int fd, const struct sockaddr *to, socklen_t length)  /* as proxychains and torsocks have it */
{
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    const char *port = getenv("PROXY_PORT"), *error = getenv("PROXY_ERROR");
    struct sockaddr_in elsewhere = {AF_INET, htons(port ? atoi(port) : 0), {htonl(INADDR_LOOPBACK)}, {0}};
    int result = port && to->sa_family == AF_INET ? next(fd, (struct sockaddr *)&elsewhere, sizeof elsewhere)
                                                  : next(fd, to, length);
    if (result < 0 && errno == EACCES && error)
        errno = atoi(error);
    return result;
}
"""


@pytest.fixture
def redirect(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a library that redirects connect() to another port, and may change the errno of a refusal."""
    if not (compiler := shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "redirect.c", tmp_path / "redirect.so"
    source.write_text(REDIRECT)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def make(port: int | None, error: int | None = None) -> dict[str, str]:
        told = {"PROXY_PORT": port, "PROXY_ERROR": error}
        return {**os.environ, "LD_PRELOAD": str(library), **{name: str(it) for name, it in told.items() if it}}

    return make


@needs_landlock
@pytest.mark.parametrize("error", [errno.EACCES, errno.ECONNREFUSED], ids=["torsocks", "proxychains"])
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(("mode", "workers"), [("auto", "1"), ("require", "2")])
def test_a_library_that_connects_elsewhere(
    command: Callable[..., Command],
    redirect: Callable[..., dict[str, str]],
    upstream: Upstream,
    echo: Echo,
    error: int,
    log_format: str,
    mode: str,
    workers: int,
) -> None:
    """The sandbox refuses it the other port. One line names the library, and the option with which it works."""
    environment = redirect(echo.port, error)
    options = ("--sandbox", mode, "--workers", workers, "--log-format", log_format, upstream.name)
    process = command(*options, env=environment)
    where = ("127.0.0.1", process_port(process, log_format))
    for number in range(2, 5):
        turned_away(where)
        eventually(lambda number=number: len(trouble(process, log_format)) == number)
    failed, warning, *others = trouble(process, log_format)
    assert os.strerror(error) in failed
    assert "redirect.so has taken connect() over in this process, and the sandbox refuses it every port but " in warning
    assert f"{upstream.port}; --sandbox off lifts that" in warning
    assert not [line for line in others if "sandbox" in line]
    if log_format == "json":
        kinds = [json.loads(line)["kind"] for line in trouble(process, log_format)]
        assert kinds == ["failed", "warning", "failed", "failed"]
    lifted = command("--sandbox", "off", upstream.name, env=environment)
    assert echoes(connect(lifted.address))
    assert lifted.complaints == []


@needs_landlock
def test_refusals_that_are_not_the_sandbox(
    command: Callable[..., Command],
    redirect: Callable[..., dict[str, str]],
    closed: Closed,
    echo: Echo,
    namespaces: Callable[[], Namespace],
) -> None:
    """None: upstream refuses; the system does, with the same errno; the sandbox is off; the library is harmless."""
    namespace = namespaces()
    for kind, address, family in (("prohibit", "192.0.2.1", "-4"), ("prohibit", "2001:db8::1", "-6")):
        namespace.ip(family, "route", "add", kind, address)
    plain, off = command(closed.name), command("--sandbox", "off", closed.name, env=redirect(None))
    prohibited = [command(target, wrapper=namespace.wrapper) for target in ("192.0.2.1:80", "[2001:db8::1]:80")]
    for process in (plain, off):
        turned_away(process.address)
        eventually(lambda process=process: process.stderr)
    for process in prohibited:
        namespace.call(turned_away, process.address)
        eventually(lambda process=process: process.stderr)
        assert os.strerror(errno.EACCES) in process.stderr[0]
    harmless = command(echo.name, env=redirect(None))
    assert echoes(connect(harmless.address))
    for process in (plain, off, *prohibited, harmless):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not [line for line in process.stderr if "sandbox" in line]


@needs_landlock
def test_a_library_that_looks_names_up_elsewhere(
    command: Callable[..., Command], redirect: Callable[..., dict[str, str]], echo: Echo
) -> None:
    """torsocks asks its proxy for names as well, so that the look-up is what fails."""
    process = command("name.invalid:80", env=redirect(echo.port))
    turned_away(process.address)
    eventually(lambda: len(process.stderr) == 3)
    assert "redirect.so has taken connect() over in this process" in process.stderr[2]
    assert "every port but 80 and 53; " in process.stderr[2]


def turned_away(address: tuple[str, int]) -> None:
    """By a reset, which may come before connect() has returned."""
    with pytest.raises(ConnectionResetError), connect(address) as client:
        client.recv(1)


def trouble(process: Command, log_format: str) -> list[str]:
    """What went wrong: stderr, or the records that are about it."""
    if log_format == "text":
        return process.stderr
    return [line for line in process.stdout if json.loads(line)["kind"] in ("failed", "warning")]


def process_port(process: Command, log_format: str) -> int:
    if log_format == "text":
        return process.address[1]
    eventually(lambda: process.stdout, TIMEOUT)
    return int(json.loads(process.stdout[0])["listener"].rpartition(":")[2])
