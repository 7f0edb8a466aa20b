"""The program around the library: what it replaces, freezes, cancels, forks, limits or fills up."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.peers import Echo, connect
from support.streams import read_exactly
from support.waiting import TIMEOUT, eventually, in_background

import tcpproxy
from tcpproxy import Event, Proxy, awaiting, native

PROGRAM = """
import contextlib, io, logging, os, socket, sys, threading, time
def relays(proxy, text=b"hello"):
    with socket.create_connection(proxy.address, 10) as client:
        client.sendall(text)
        client.settimeout(10)
        return client.recv(100) == text
"""


def run(text: str, *args: str, options: tuple[str, ...] = (), words: bool = False) -> str:
    """Runs a program to its end; without `words` it may print none to stderr. Returns what it printed."""
    argv = [sys.executable, "-X", "faulthandler", *options, "-c", PROGRAM + text, *args]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    assert words or not done.stderr, done.stderr
    return done.stdout


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed")


# --- what a program sets for all of its sockets and threads ---


def test_default_timeout_of_sockets(echo: Echo) -> None:
    """It does not end threads that wait for longer: afterwards a name is looked up, and an event delivered."""
    text = """
socket.setdefaulttimeout(0.1)
import tcpproxy
events = []
with tcpproxy.Proxy(f"localhost:{sys.argv[1]}", on_event=events.append) as proxy:
    before = set(threading.enumerate())
    time.sleep(0.5)                     # the fact under test is what happens in this time
    assert set(threading.enumerate()) == before, before
    assert relays(proxy)
    time.sleep(5.1)                     # the answer is too old now
    assert relays(proxy)
print([event.kind for event in events])
"""
    assert run(text, str(echo.port)) == f"{['listening', *['new', 'connected', 'end'] * 2]}\n"


SETTINGS = {
    "small-stacks": "threading.stack_size(64 << 10)",
    "trace": "threading.settrace(lambda *args: None); sys.settrace(lambda *args: None)",
    "profile": "threading.setprofile(lambda *args: None); sys.setprofile(lambda *args: None)",
    "failing-trace": "def fail(*args): raise ValueError\nsys.unraisablehook = threading.excepthook = fail",
    "no-logging": "logging.disable(logging.CRITICAL)",
    "closed-stderr": "sys.stderr.close(); sys.stderr = None",
    "own-logger-class": "logging.setLoggerClass(type('L', (logging.Logger,), {}))",
    "switch-interval": "sys.setswitchinterval(10)",
    "dump-later": "import faulthandler; faulthandler.dump_traceback_later(30, exit=True)",
    "recursion": "sys.setrecursionlimit(150)",
    "no-collection": "import gc; gc.disable(); gc.set_debug(0)",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_a_process(echo: Echo, setting: str) -> None:
    text = f"""
{SETTINGS[setting]}
import tcpproxy
logging.basicConfig(level=logging.DEBUG, stream=io.StringIO())
for _ in range(3):
    with tcpproxy.Proxy(sys.argv[1], workers=2) as proxy:
        assert relays(proxy)
print("done")
"""
    assert run(text, f"localhost:{echo.port}", options=("-W", "error")) == "done\n"


def test_handler_of_the_log_that_raises(echo: Echo) -> None:
    """Neither a callback nor the handler that is told of its exception ends the thread that delivers events."""
    text = """
import tcpproxy
class Failing(logging.Handler):
    def emit(self, record): raise SystemExit
logging.getLogger("tcpproxy").addHandler(Failing())
seen = []
def fail(event): seen.append(event.kind); raise KeyboardInterrupt
with tcpproxy.Proxy(sys.argv[1], on_event=fail) as proxy:
    assert relays(proxy)
print(seen)
"""
    assert run(text, echo.name) == "['listening', 'new', 'connected', 'end']\n"


# --- threads that are greenlets ---

GREEN = {
    "gevent": "import gevent, gevent.monkey as monkey; monkey.patch_all(); spawn = gevent.spawn",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet as monkey; monkey.monkey_patch(); "
    "spawn = monkey.spawn",
}

SERVE = """
server = socket.create_server(("127.0.0.1", 0))
def echo(peer):
    with peer, contextlib.suppress(ConnectionError):    # a proxy that stops without grace may reset it
        while data := peer.recv(65536):
            peer.sendall(data)
def serve():
    while True:
        spawn(echo, server.accept()[0])
spawn(serve)
events = []
target = f"localhost:{server.getsockname()[1]}"
"""


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("library", [pytest.param(library, marks=needs(library)) for library in GREEN])
def test_greenlets_instead_of_threads(library: str, late: bool) -> None:
    """The proxy has real threads; greenlets of the program, such as its server, run while another waits for it."""
    imports = [GREEN[library], "import tcpproxy; tcpproxy.Proxy"]
    text = """
with tcpproxy.Proxy(target, workers=2, on_event=events.append, grace=5) as proxy:
    assert relays(proxy)
    ends = []
    client = socket.create_connection(proxy.address)
    client.sendall(b"x"); assert client.recv(1) == b"x"
    def wait(): ends.append(proxy.wait(20))
    def close():
        while not proxy.wait(0): time.sleep(0.01)
        client.sendall(b"y"); assert client.recv(1) == b"y"
        client.close(); ends.append("closed")
    waits = spawn(wait)
    spawn(close)
    assert not proxy.wait(0.05)
    start = time.monotonic()
assert time.monotonic() - start < 4
time.sleep(0.05)
print(sorted(ends, key=str), sorted(event.kind for event in events))
with tcpproxy.Proxy(target) as proxy:
    assert relays(proxy)
proxy = tcpproxy.Proxy("127.0.0.1:1").start()         # it runs at the end of the program
"""
    printed = run("\n".join([*(imports[::-1] if late else imports), SERVE, text]))
    assert printed == "[True, 'closed'] ['connected', 'connected', 'end', 'end', 'listening', 'new', 'new']\n"


@pytest.mark.parametrize("library", [pytest.param(library, marks=needs(library)) for library in GREEN])
def test_verbs_among_greenlets(library: str) -> None:
    """Other greenlets run while one waits: the server and the client here are two of them."""
    text = """
import tcpproxy
with tcpproxy.Proxy(target, workers=2, on_event=events.append) as proxy:
    seen = []
    def use():
        client = socket.create_connection(proxy.address)
        client.sendall(b"x"); seen.append(client.recv(1))
        try: seen.append(client.recv(1))
        except ConnectionResetError: seen.append("reset")
    spawn(use)
    proxy.wait_for(to_client=1)
    with proxy.pause():
        assert proxy.kill() == 1
    assert events[-1].reason == "killed", events
    while "reset" not in seen: time.sleep(0.01)
    with proxy.down():
        try: socket.create_connection(proxy.address)
        except ConnectionRefusedError: seen.append("refused")
    spawn(use)
    proxy.upstream = target.replace("localhost", "127.0.0.1")
    proxy.wait_for(accepted=2, to_client=2)
    assert proxy.kill("close") == 1
print(seen[:3])
"""
    assert run("\n".join([GREEN[library], SERVE, text])) == "[b'x', 'reset', 'refused']\n"


@pytest.mark.parametrize("library", [pytest.param(library, marks=needs(library)) for library in GREEN])
def test_greenlets_while_one_waits_for_a_recording(library: str) -> None:
    """The server, which is to send what it waits for, has its turn."""
    text = """
with tcpproxy.Proxy(target, record=True) as proxy, socket.create_connection(proxy.address) as client:
    client.sendall(b"hello"); assert client.recv(5) == b"hello"
    def ask(): time.sleep(0.05); client.sendall(b"question")
    spawn(ask)
    print(proxy.recordings[0].wait_for(b"question", "to_client").start())
"""
    assert run("\n".join([GREEN[library], "import tcpproxy", SERVE, text])) == "5\n"


@pytest.mark.parametrize("library", [pytest.param(library, marks=needs(library)) for library in GREEN])
def test_greenlets_after_the_start(library: str, echo: Echo) -> None:
    """CPython then prints a KeyError for each thread that was alive when gevent patched it, of any program."""
    text = f"""
import tcpproxy
proxy = tcpproxy.Proxy(sys.argv[1], on_event=lambda event: None).start()
{GREEN[library]}
assert relays(proxy)
assert not proxy.wait(0.05)
proxy.stop(1)
print("done")
"""
    assert run(text, f"localhost:{echo.port}", words=True) == "done\n"


# --- clocks ---


@pytest.mark.parametrize("clock", [lambda: 5.0, lambda: -1e9, iter(range(0, 10**12, 10**6)).__next__])
def test_clocks_that_are_not_the_systems(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]
) -> None:
    """A frozen clock makes no wait endless, and one that jumps makes none short."""
    events: list[Event] = []
    real = time.perf_counter
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        patch.setattr(time, "time", clock)
        with Proxy(f"localhost:{echo.port}", on_event=events.append) as proxy, connect(proxy.address) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            start = real()
            assert not proxy.wait(0.2)
            assert 0.15 < real() - start < 10
            start = real()
            proxy.stop(0.2)
            assert 0.15 < real() - start < 10
    assert [event.kind for event in events] == ["listening", "new", "connected", "end"]


@pytest.mark.parametrize("freeze", ["freezegun.freeze_time", "time_machine.travel"])
def test_frozen_time(echo: Echo, freeze: str) -> None:
    module = freeze.partition(".")[0]
    if not importlib.util.find_spec(module):
        pytest.skip(f"{module} is not installed")
    text = f"""
import tcpproxy, {module}
options = dict(tick=False) if {module!r} == "time_machine" else dict()
with {freeze}("2020-01-01", **options):
    with tcpproxy.Proxy(sys.argv[1]) as proxy, socket.create_connection(proxy.address) as client:
        client.sendall(b"x"); client.recv(1)
        before = time.perf_counter_ns()
        assert not proxy.wait(0.2)
        proxy.stop(0.2)
print("done")
"""
    assert run(text, f"localhost:{echo.port}") == "done\n"


# --- coroutines ---


@contextlib.contextmanager
def no_trace() -> Iterator[None]:
    """After the block the process has the same threads and descriptors as before, except for a pending look-up."""

    def have() -> tuple[set[str], int]:
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("tcpproxy")}
        held = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        return names - {"tcpproxy-lookup"}, held

    before = have()
    yield
    assert have()[0] == before[0]
    eventually(lambda: have() == before, what="descriptors are left")  # the peers have some, for a moment


@pytest.fixture
def dead_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A name server that does not answer: a look-up returns when the test is over."""
    over = threading.Event()
    real = socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> list[object]:
        if host != "dead.test":
            return real(host, *args, **options)  # type: ignore[arg-type,call-overload,no-any-return]
        if not options.get("flags"):
            over.wait(TIMEOUT)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    over.set()


def asyncio_run(main: Callable[[], object]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def trio_run(main: Callable[[], object]) -> None:
    pytest.importorskip("trio").run(main)


def anyio_on_asyncio(main: Callable[[], object]) -> None:
    pytest.importorskip("anyio").run(main, backend="asyncio")


def anyio_on_trio(main: Callable[[], object]) -> None:
    pytest.importorskip("trio")
    pytest.importorskip("anyio").run(main, backend="trio")


LOOPS = [asyncio_run, trio_run, anyio_on_asyncio, anyio_on_trio]
loops = pytest.mark.parametrize("loop", LOOPS)


@contextlib.asynccontextmanager
async def given(seconds: float):  # type: ignore[no-untyped-def]
    """Cancels its block after that time, with the means of asyncio or trio."""
    if trio := awaiting._in_trio():
        with trio.move_on_after(seconds):
            yield
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                yield


def relays(proxy: Proxy) -> bool:
    with connect(proxy.address) as client:
        client.sendall(b"hello")
        return read_exactly(client, 5) == b"hello"


@loops
def test_async_block(loop: Callable[[Callable[[], object]], None], echo: Echo) -> None:
    async def main() -> None:
        async with Proxy(echo.name) as proxy:
            assert relays(proxy)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy.address)
        proxy = Proxy(echo.name)
        assert await proxy.astart() is proxy
        assert not await proxy.await_end(0.05)
        with in_background(proxy.drain):
            assert await proxy.await_end()
        await proxy.astop()
        await proxy.astop(1)
        with pytest.raises(RuntimeError, match="starts once"):
            await proxy.astart()
        with pytest.raises(tcpproxy.StartError):
            await Proxy(echo.name, bind="192.0.2.1").astart()

    with no_trace():
        loop(main)


@loops
@pytest.mark.parametrize(("remote", "bind"), [("dead.test:80", "127.0.0.1"), ("127.0.0.1:80", "dead.test")])
@pytest.mark.usefixtures("dead_names")
def test_cancelled_start(
    loop: Callable[[Callable[[], object]], None], remote: str, bind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns at once, nothing listens, and no thread is left but the one that asks the system."""
    monkeypatch.setattr("tcpproxy.proxy.START_LOOKUP", TIMEOUT)
    events: list[Event] = []

    async def main() -> None:
        begun = time.monotonic()
        proxy = Proxy(remote, bind=bind, on_event=events.append)
        async with given(0.1), proxy:
            raise AssertionError("it has started")
        assert time.monotonic() - begun < TIMEOUT / 2
        for _, port in proxy.addresses:
            with pytest.raises(ConnectionRefusedError):
                connect(("127.0.0.1", port))

    loop(main)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("tcpproxy")]
    assert set(names) <= {"tcpproxy-lookup"}


@pytest.mark.parametrize("turns", range(6))
@loops
def test_cancelled_start_at_any_turn(loop: Callable[[Callable[[], object]], None], echo: Echo, turns: int) -> None:
    """Also before its thread has begun, or after it has ended."""

    async def main() -> None:
        proxy = Proxy(echo.name)
        started = False
        async with given(turns * 0.0005):
            await proxy.astart()
            started = True
        if started:
            await proxy.astop()

    with no_trace():
        loop(main)


@loops
def test_cancelled_stop(loop: Callable[[Callable[[], object]], None], echo: Echo) -> None:
    """The grace ends; when the task goes on, so have all connections."""

    async def main() -> None:
        proxy = await Proxy(echo.name, grace=3600).astart()
        with connect(proxy.address) as client:
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            async with given(0.1):
                await proxy.astop()
                raise AssertionError("it has not waited")
            assert proxy.stats().active == 0
            assert "stopped" in repr(proxy)

    with no_trace():
        loop(main)


@loops
def test_cancelled_wait(loop: Callable[[Callable[[], object]], None], echo: Echo) -> None:
    async def main() -> None:
        async with Proxy(echo.name) as proxy:
            async with given(0.05):
                await proxy.await_end()
                raise AssertionError("nobody has stopped it")
            assert relays(proxy)

    with no_trace():
        loop(main)


def test_full_pool_of_threads(echo: Echo) -> None:
    """Starting and stopping wait for no thread of the loop's pool."""

    async def main() -> None:
        free = threading.Event()
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, free.wait, TIMEOUT) for _ in range(64)]
        async with asyncio.timeout(TIMEOUT / 2):
            async with Proxy(echo.name) as proxy:
                assert relays(proxy)
        free.set()
        await asyncio.gather(*busy)

    asyncio.run(main())


def test_without_a_loop(echo: Echo) -> None:
    """A coroutine that neither asyncio nor trio runs raises a RuntimeError that says so."""
    coroutine = Proxy(echo.name).astart()
    with pytest.raises(RuntimeError, match="expected a coroutine that asyncio, trio or anyio runs"):
        coroutine.send(None)


# --- other processes and interpreters ---

FORKS = """
import signal, tcpproxy, warnings
warnings.simplefilter("ignore")
stop = threading.Event()
bad = []
def fork():
    while not stop.is_set():
        with calm:
            child = os.fork()
        if not child:
            signal.alarm(10)            # ends a child that hangs
            try:
                held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                        and os.path.exists(f"/proc/self/fd/{fd}")]
                proxies = list(made)
                for proxy in proxies: proxy.stop()
                os._exit(sum(link.startswith(("socket:", "anon_inode:[eventpoll")) for link in held))
            except BaseException:
                os._exit(99)
        bad.append(os.waitpid(child, 0)[1])
made = []
calm = threading.Lock()
thread = threading.Thread(target=fork)
thread.start()
for _ in range(int(sys.argv[2])):
    made[:] = [tcpproxy.Proxy(sys.argv[1], workers=2)]
    made[0].start()
    with calm:                          # a worker that closes a socket just then is another matter
        made[0].stop()
stop.set()
thread.join()
print(len(bad) > 5, set(bad))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fork_while_another_thread_starts_a_proxy(echo: Echo) -> None:
    """No child keeps a socket of a proxy, and none hangs when it stops the proxy."""
    assert run(FORKS, echo.name, "150") == "True {0}\n"


MULTIPROCESSING = """
import multiprocessing, tcpproxy, warnings
def child(target, results):
    with tcpproxy.Proxy(target) as proxy:
        results.put(relays(proxy))
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context(sys.argv[2])
    with tcpproxy.Proxy(sys.argv[1]) as proxy:
        results = context.Queue()
        process = context.Process(target=child, args=(sys.argv[1], results))
        process.start()
        print(results.get(timeout=20))
        process.join(20)
        assert relays(proxy)
    print(process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_child_of_multiprocessing(echo: Echo, tmp_path: object, method: str) -> None:
    """Each process has a proxy of its own, and the parent's goes on."""
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    script = os.path.join(str(tmp_path), "program.py")
    with open(script, "w", encoding="utf-8") as file:
        file.write(PROGRAM + MULTIPROCESSING)
    argv = [sys.executable, script, echo.name, method]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=40, check=False)
    assert (done.stdout, done.stderr) == ("True\n0\n", "")


def test_second_interpreter(echo: Echo) -> None:
    """The core is loaded once a process: another interpreter gets a sentence that says so, and no advice to compile."""
    text = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import tcpproxy
with tcpproxy.Proxy(sys.argv[1]) as proxy:
    other = interpreters.create()
    code = "import tcpproxy\\ntry: tcpproxy.Proxy\\nexcept ImportError as error: print(error, flush=True)"
    interpreters.run_string(other, code)
    interpreters.destroy(other)
    assert relays(proxy)
"""
    printed = run(text, echo.name)
    assert "one interpreter of a process" in printed
    assert "compile" not in printed


def test_stop_by_a_signal_handler(echo: Echo) -> None:
    """Also while the thread that it interrupts waits for the same proxy."""
    if not hasattr(os, "fork"):
        pytest.skip("os.kill ends a process here, whatever the signal is")
    text = """
import signal, tcpproxy
signal.signal(signal.SIGINT, lambda *_: proxy.stop())
proxy = tcpproxy.Proxy(sys.argv[1]).start()
for _ in range(3):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
assert proxy.wait(20)
print("done")
"""
    assert run(text, echo.name) == "done\n"


def test_events_reach_a_waiting_thread() -> None:
    """native.Event wakes each thread that waits, even if it begins to wait at the same moment."""
    for _ in range(200):
        event = native.Event()
        seen: list[bool] = []
        threads = [threading.Thread(target=lambda e=event, s=seen: s.append(e.wait(TIMEOUT))) for _ in range(4)]
        for thread in threads[:2]:
            thread.start()
        setter = threading.Thread(target=event.set)
        setter.start()
        for thread in threads[2:]:
            thread.start()
        for thread in [*threads, setter]:
            thread.join(TIMEOUT)
        assert seen == [True] * 4
        event.set()
    assert not native.Event().wait(0)


# --- signal handlers ---


INTERRUPTED = """
import signal, tcpproxy.lifetime
from tcpproxy.network.resolver import Resolver
signal.alarm(20)                            # a deadlock ends the program
target, where, call = sys.argv[1:]
other = tcpproxy.Proxy(target).start()
where_to = ("localhost:" if where == "lookup" else "127.0.0.1:") + target.rpartition(":")[2]
proxy = tcpproxy.Proxy(where_to, record=True)
calls = {"other": other.stop, "own": proxy.stop, "abort": proxy.abort, "drain": proxy.drain, "views": proxy.connections}
calls |= {"kill": proxy.kill, "other down": other.down, "waits": lambda: proxy.wait_for(accepted=0)}
calls["recordings"] = lambda: proxy.recordings
handled, took = [], []
def handle(*_):
    began = time.monotonic()
    try:
        handled.append(calls[call]() if call != "start" else proxy.start())
    except RuntimeError as error:
        handled.append(error)
    took.append(time.monotonic() - began)
signal.signal(signal.SIGUSR1, handle)
def interrupting(function):
    def wrapped(*args):
        if not handled:
            signal.raise_signal(signal.SIGUSR1)
        return function(*args)
    return wrapped
import tcpproxy.proxy
if where == "listen":
    tcpproxy.proxy.Port.listen = interrupting(tcpproxy.proxy.Port.listen)    # while no process may be forked
if where == "lookup":
    Resolver._begin = interrupting(Resolver._begin)                  # while the resolver is locked
if where == "threads":
    tcpproxy.crew.Crew.start = interrupting(tcpproxy.crew.Crew.start)    # before the log thread runs
proxy.start()
assert handled
assert max(took) < 2, took                 # it waited for what it interrupted
if call == "kill":
    assert str(handled[0]).startswith("called in the middle of a start"), handled
if call == "start":
    assert str(handled[0]).startswith("a Proxy starts once"), handled
print(repr(proxy).rpartition(" ")[2])
proxy.stop()
other.stop()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("where", ["listen", "lookup", "threads"])
@pytest.mark.parametrize(
    "call", ["other", "own", "abort", "drain", "views", "start", "kill", "other down", "waits", "recordings"]
)
def test_a_handler_amid_a_start(echo: Echo, where: str, call: str) -> None:
    """It may call this proxy or another one, whatever the interrupted thread holds."""
    state = run(INTERRUPTED, echo.name, where, call)
    assert state in (("stopped>\n", "draining>\n") if call in ("own", "abort", "drain") else ("listening>\n",))


INTERRUPTED_VERB = """
import signal, tcpproxy
signal.alarm(20)                            # a deadlock ends the program
proxy, other = [tcpproxy.Proxy(sys.argv[1]).start() for _ in range(2)]
calls = {"stop": proxy.stop, "abort": proxy.abort, "verb": proxy.resume, "other": other.kill}
calls["waits"] = lambda: proxy.wait_for(accepted=0) and proxy.connections(ended=True)
handled = []
def handle(*_):
    try:
        handled.append(calls[sys.argv[3]]())
    except RuntimeError as error:
        handled.append(str(error).partition(" a ")[0])
signal.signal(signal.SIGUSR1, handle)
crew = type(proxy._crew)
def interrupt(name):
    function = getattr(crew, name)
    def wrapped(*args):
        if not handled:
            signal.raise_signal(signal.SIGUSR1)
        return function(*args)
    setattr(crew, name, wrapped)
for name in ("pause", "replace_listeners", "set_upstream"):
    interrupt(name)
if sys.argv[2] == "upstream":
    proxy.upstream = 1
else:
    getattr(proxy, sys.argv[2])()
assert handled and (sys.argv[3] != "verb" or handled == ["called in the middle of"]), handled
proxy.restore()                             # nothing is locked
print(repr(proxy).rpartition(" ")[2])
proxy.stop()
other.stop()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("verb", ["pause", "down", "upstream"])
@pytest.mark.parametrize("call", ["stop", "abort", "verb", "other", "waits"])
def test_a_handler_amid_a_verb(echo: Echo, verb: str, call: str) -> None:
    """It may call all but the verbs of the same proxy, and gets an error for these, not a deadlock."""
    state = run(INTERRUPTED_VERB, echo.name, verb, call)
    assert state in (("stopped>\n", "draining>\n") if call in ("stop", "abort") else ("listening>\n",))


JOINED_TWICE = """
import signal, threading
signal.alarm(20)                            # a deadlock ends the program
import tcpproxy
proxy = tcpproxy.Proxy(sys.argv[1]).start()
signal.signal(signal.SIGUSR1, lambda *_: proxy.stop())
lines = []
def trace(frame, event, arg):
    if frame.f_code.co_name == "_wait_for_tstate_lock" and event == "line":
        lines.append(frame.f_lineno)
        if len(lines) == int(sys.argv[3]):
            sys.settrace(None)
            signal.raise_signal(signal.SIGUSR1)
    return trace
sys.settrace(trace)
getattr(proxy, sys.argv[2])()
sys.settrace(None)
proxy.stop()
print(repr(proxy).rpartition(" ")[2])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
@pytest.mark.parametrize("verb", ["abort", "stop"])
@pytest.mark.parametrize("line", range(1, 7))
def test_a_handler_amid_a_join(echo: Echo, verb: str, line: int) -> None:
    """At a line of where Thread.join has a lock, a handler stops the proxy whose thread is joined."""
    assert run(JOINED_TWICE, echo.name, verb, str(line)) == "stopped>\n"


FORKED_WHILE_LOCKED = """
import signal, threading, tcpproxy, warnings
warnings.simplefilter("ignore")             # fork with threads: that is the point here
proxy = tcpproxy.Proxy(sys.argv[1]).start()
proxy.stop()
locked, over = threading.Event(), threading.Event()
def hold():
    with proxy._lock:                       # as `stop` does for a moment
        locked.set()
        over.wait()
threading.Thread(target=hold, daemon=True).start()
locked.wait()
child = os.fork()
if not child:
    signal.alarm(10)
    proxy.stop()
    os._exit(7 if proxy.stats().accepted == 0 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_a_stopped_proxy_is_locked(echo: Echo) -> None:
    """By a thread that calls `stop` once more, and is not in the child."""
    assert run(FORKED_WHILE_LOCKED, echo.name) == "7\n"


CALLED_BY_A_WORKER = """
import signal, threading, tcpproxy
from tcpproxy import native
signal.alarm(20)                            # a deadlock ends the program
proxy = tcpproxy.Proxy(sys.argv[1], record=True)
proxy.look = lambda: proxy.recordings
real, called = native._NamedThread.run, []
def run(thread):
    if thread.name == "tcpproxy-worker-0":
        try:
            called.append(getattr(proxy, sys.argv[2])())    # as a __del__ does that is called here
        except RuntimeError as error:
            assert str(error).startswith("called in a thread of the proxy")
            called.append(error)
    real(thread)
native._NamedThread.run = run
proxy.start()
proxy.stop()
assert called
print(repr(proxy).rpartition(" ")[2])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signal here")
@pytest.mark.parametrize("verb", ["stop", "kill", "pause", "look"])
def test_called_by_a_worker_that_begins(echo: Echo, verb: str) -> None:
    """It cannot wait for itself."""
    assert run(CALLED_BY_A_WORKER, echo.name, verb) == "stopped>\n"
