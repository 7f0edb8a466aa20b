"""A Python interpreter with a proxy in it: interrupted while it imports, its end, its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from support.peers import Echo, Upstream, connect, free_port, reset
from support.streams import echoes, fill, is_over, payload, read_exactly
from support.waiting import TIMEOUT, in_background

# --- import ---


SIGNALLED_WHILE_IMPORTING = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
module, sys.argv[1:] = sys.argv[1], ["--version"]
from tcpproxy.__main__ import main
main()
"""


interrupts_itself = pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process here, whatever the signal is")


IMPORTED = ["tcpproxy.command.cli", "click", "tcpproxy._core.worker", "tcpproxy.command.signals"]


@interrupts_itself
@pytest.mark.parametrize("module", IMPORTED)
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_interrupted_while_it_is_imported(module: str, ignored: bool) -> None:
    """A SIGINT before the command has its handlers ends it without a traceback; one that is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        argv = [sys.executable, "-c", SIGNALLED_WHILE_IMPORTING, module]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    if ignored:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("tcpproxy ")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# --- the end of an interpreter with a proxy in it ---

# An import of logging in a thread at the wrong moment makes CPython forget that an interrupt ended the main thread.
BEGIN = """
import gc, logging, os, signal, sys, threading, time, tcpproxy
def view():
    while True:
        proxy.stats(), proxy.connections()
{before}
print(proxy.address[1], flush=True)
sys.stdin.readline()
{after}
"""
MAKE = "proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()"

EXITS = {
    "end-of-script": (MAKE, "", 0, ""),
    "sys.exit": (MAKE, "sys.exit(3)", 3, ""),
    "exception": (MAKE, "raise ValueError('boom')", 1, "ValueError: boom"),
    "exception-in-with": (
        "proxy = tcpproxy.Proxy(sys.argv[1]).__enter__()",
        "with __import__('contextlib').ExitStack() as stack: stack.push(proxy); raise ValueError('boom')",
        1,
        "ValueError: boom",
    ),
    "interrupt": (
        # Whoever starts the tests in the background may have it ignored.
        f"signal.signal(signal.SIGINT, signal.default_int_handler); {MAKE}",
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        -2,
        "KeyboardInterrupt",
    ),
    "stopped-first": (MAKE, "proxy.stop()", 0, ""),
    "stopped-twice-at-once": (MAKE, "threading.Thread(target=proxy.stop).start(); proxy.stop()", 0, ""),
    "forgotten": (MAKE, "del proxy; gc.collect()", 0, ""),
    "grace": ("proxy = tcpproxy.Proxy(sys.argv[1], grace=3600).start()", "", 0, ""),
    "several": (f"{MAKE}; others = [tcpproxy.Proxy(sys.argv[1]).start() for _ in range(5)]", "", 0, ""),
    "daemon-thread": (f"{MAKE}; threading.Thread(target=view, daemon=True).start()", "", 0, ""),
    "daemon-thread-waits": (f"{MAKE}; threading.Thread(target=proxy.wait, daemon=True).start()", "", 0, ""),
    "callback-stuck": (
        "proxy = tcpproxy.Proxy(sys.argv[1], on_event=lambda event: threading.Event().wait()).start()",
        "",
        0,
        "",
    ),
    "started-by-a-thread": (
        "def make(): global proxy; proxy = tcpproxy.Proxy(sys.argv[1]).start()\n"
        "thread = threading.Thread(target=make); thread.start(); thread.join()",
        "",
        0,
        "",
    ),
}


def script(stack: contextlib.ExitStack, text: str, *args: str) -> subprocess.Popen[str]:
    """A Python program with pipes on its stdin, stdout and stderr; it and its children are ended after the test."""
    argv = [sys.executable, "-X", "faulthandler", "-c", text, *args]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(argv, cwd="/", text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    stack.enter_context(process)
    stack.callback(end_group, process)
    return process


def end_group(process: subprocess.Popen[str]) -> None:
    if os.name != "posix":  # where a process has no children that go on without it: there is no fork
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def tell(process: subprocess.Popen[str]) -> None:
    """Lets a script go on that reads a line."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def ask(process: subprocess.Popen[str], what: str) -> str:
    """The next line of a script. It is ended, and the test fails, if that does not come."""
    assert process.stdout
    late = threading.Timer(2 * TIMEOUT, end_group, (process,))
    late.start()
    line = process.stdout.readline()
    late.cancel()
    assert line, what
    return line.rstrip("\n")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=interrupts_itself if how == "interrupt" else ()) for how in EXITS]
)
def test_interpreter_exit_with_live_connections(stack: contextlib.ExitStack, upstream: Upstream, how: str) -> None:
    """Row 100: no crash, no hang, the exit code of the program, an empty stderr, and the peers see an end."""
    before, after, code, words = EXITS[how]
    process = script(stack, BEGIN.format(before=before, after=after), upstream.name)
    address = ("127.0.0.1", int(ask(process, "it does not start")))
    idle = stack.enter_context(connect(address))
    idle_server = stack.enter_context(upstream.accept())
    busy = stack.enter_context(connect(address))
    busy_server = stack.enter_context(upstream.accept())

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                busy.sendall(bytes(1 << 16))

    with in_background(send), in_background(is_over, busy_server):
        start = time.monotonic()
        _, stderr = process.communicate("\n", TIMEOUT)
        assert time.monotonic() - start < 5
        assert process.returncode == code
        lines = stderr.splitlines()
        assert (lines[-1] if lines else "") == words
        assert len(lines) == 0 or lines[0].startswith("Traceback")
        assert stderr.count("Traceback") <= 1
        for sock in (idle, idle_server):
            assert is_over(sock)


VIEWS = """
import sys, threading, tcpproxy
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
print(proxy.address[1], flush=True)
sys.stdin.readline()
def look():
    for _ in range(500 if sys.platform != "win32" else 50):  # 5 to 50 ms each under wine
        assert len(proxy.connections()) == proxy.stats().active == 1
threads = [threading.Thread(target=look) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done", flush=True)
"""


def test_views_from_several_threads(stack: contextlib.ExitStack, echo: Echo) -> None:
    """Row 72: several threads may look at the connections of one proxy at the same time."""
    process = script(stack, VIEWS, echo.name)
    with connect(("127.0.0.1", int(ask(process, "it does not start")))) as client:
        assert echoes(client)
        tell(process)
        assert ask(process, "a thread waits for ever") == "done"
    assert process.wait(TIMEOUT) == 0


# --- fork ---

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

FORK = """
import os, sys, tcpproxy
def descriptors(): return len(os.listdir("/proc/self/fd"))
before = descriptors()
proxy = tcpproxy.Proxy(sys.argv[1], workers=2, port=sys.argv[2]).start()
print(proxy.address[1], flush=True)
sys.stdin.readline()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    assert proxy.connections() == [] and proxy.stats().active == 0
    assert descriptors() == before + 1, (descriptors(), before)
    proxy.stop()
    own = tcpproxy.Proxy(sys.argv[1], workers=2).start()
    print(own.address[1], flush=True)
    os.read(reader, 1)
    sys.exit(7)
os.close(reader)
sys.stdin.readline()
proxy.stop()
print("stopped", flush=True)
sys.stdin.readline()
os.close(writer)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@needs_fork
def test_a_forked_child_holds_nothing(stack: contextlib.ExitStack, upstream: Upstream) -> None:
    """Rows 73, 100: resets and ends still reach the peers, the port is free, and the child can have its own proxy."""
    process = script(stack, FORK, upstream.name, str(free_port()))

    def pair(port: int) -> tuple[socket.socket, socket.socket]:
        client = stack.enter_context(connect(("127.0.0.1", port)))
        server = stack.enter_context(upstream.accept())
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        return client, server

    port = int(ask(process, "it does not start"))
    pairs = [pair(port) for _ in range(5)]
    stalled = pair(port)
    fill(stalled[0])  # bulk, of which something is in the hands of the proxy at the fork
    tell(process)
    own = int(ask(process, "the child's proxy does not start"))
    for near, far in (pairs[0], pairs[1][::-1]):  # a reset, both ways
        reset(near)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
    client, server = pairs[2]  # an end of file, and then a full close: nobody answers any more
    client.close()
    assert server.recv(1) == b""
    server.close()
    pairs.append(pair(port))  # the parent still accepts
    for client, server in pairs[3:]:
        client.sendall(b"parent")
        assert read_exactly(server, 6) == b"parent"
    of_child = pair(own)
    tell(process)
    assert ask(process, "the parent does not stop") == "stopped"
    for client, server in pairs[3:]:
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port))
    of_child[0].sendall(b"child")
    assert read_exactly(of_child[1], 5) == b"child"
    tell(process)
    assert ask(process, "the child does not end") == "7"
    for sock in of_child:
        assert is_over(sock)
    assert process.wait(TIMEOUT) == 0


FORKS = """
import gc, os, sys, threading, tcpproxy
sys.setswitchinterval(1e-6)
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
def wait():
    while not proxy.wait(0): pass
for _ in range(3):
    threading.Thread(target=wait, daemon=True).start()
print(proxy.address[1], flush=True)
for _ in range(150):
    if (child := os.fork()) == 0:
        del proxy
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print("done", flush=True)
sys.stdin.readline()
"""


@needs_fork
def test_many_forks_while_bytes_flow(stack: contextlib.ExitStack, echo: Echo) -> None:
    """Rows 73, 100: whatever the threads of the parent do, each child ends, and no byte is lost."""
    process = script(stack, FORKS, echo.name)
    done = threading.Event()
    with connect(("127.0.0.1", int(ask(process, "it does not start")))) as client:

        def rounds() -> int:
            data = payload(200_000)
            count = 0
            while not done.is_set():
                with in_background(client.sendall, data):
                    assert read_exactly(client, len(data)) == data
                count += 1
            return count

        with in_background(rounds) as count:
            try:
                assert ask(process, "a forked child hangs") == "done"
            finally:
                done.set()
        assert count[0]
    process.communicate("\n", TIMEOUT)
    assert process.returncode == 0


# --- garbage ---

COLLECTED = """
import gc, socket, sys, tcpproxy

class Garbage:
    def __init__(self):
        self.me = self

    def __del__(self):
        called.append(proxy.connections())
        called.append(proxy.drain())

called = []
with tcpproxy.Proxy(sys.argv[1], workers=2) as proxy:
    clients = [socket.create_connection(proxy.address) for _ in range(20)]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    gc.set_threshold(5)                 # a collection at every few objects
    for _ in range(200):
        Garbage()
        assert len(proxy.connections()) == 20
    gc.set_threshold(700)
assert called
"""


def test_garbage_collected_amid_a_call(echo: Echo) -> None:
    """Objects whose `__del__` calls the proxy are collected while another of its calls makes objects."""
    argv = [sys.executable, "-c", COLLECTED, echo.name]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=2 * TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
