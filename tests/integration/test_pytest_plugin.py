"""The pytest plugin: its fixtures and the section about a test that failed, in runs of pytest of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest

if "tcpproxy" not in entry_points(group="pytest11").names:
    pytest.skip("the package is not installed, only on the path", allow_module_level=True)

Run = Callable[..., pytest.RunResult]

TALK = """
import socket

def talk(proxy, listener, question=b"ping", answer=b"pong"):
    client = socket.create_connection(proxy.address)
    server, _ = listener.accept()
    client.sendall(question)
    assert server.recv(100) == question
    server.sendall(answer)
    assert client.recv(100) == answer
    return client, server
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs pytest in a process of its own on a test file that has `listener` and `talk`."""
    pytester.makeconftest("import pytest, socket\n@pytest.fixture\ndef listener():\n" + LISTENER)
    pytester.makepyfile(talking=TALK)

    def go(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile("from talking import talk\n" + source)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return go


LISTENER = """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener
"""


def section(result: pytest.RunResult) -> str:
    """The plugin's section about the test that failed; empty: it wrote none."""
    found = re.search(r"-+ Captured tcpproxy (?:call|setup) -+\n(.*?)(?=\n[-=]{10})", result.stdout.str(), re.DOTALL)
    return found[1] if found else ""


def test_a_proxy_for_a_test(run: Run) -> None:
    """It listens when the fixture returns it, and has stopped when the next test begins; peers are reset."""
    result = run(
        """
kept = []

def test_first(tcpproxy, listener):
    proxy = tcpproxy(listener, record=True)
    kept.extend([proxy, *talk(proxy, listener)])
    assert proxy.recordings[0].to_client == b"pong"

def test_second():
    import pytest
    proxy, client, server = kept
    assert "stopped" in repr(proxy)
    for peer in (client, server):
        with pytest.raises(ConnectionResetError):
            peer.recv(100)
"""
    )
    result.assert_outcomes(passed=2)
    assert section(result) == ""


def test_a_failed_test_has_a_section(run: Run) -> None:
    result = run(
        """
def test_it(tcpproxy, listener):
    proxy = tcpproxy(listener, record=True)
    client, server = talk(proxy, listener)
    client.close(), server.close()
    assert proxy.recordings[0].wait_for(b"never", timeout=0.01)

def test_another(tcpproxy, listener):
    tcpproxy(listener)
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    text = section(result)
    assert re.search(r"<Proxy 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+, listening>", text)
    assert "1 connection" in text
    assert re.search(r"T[\d:.]+Z New connection from 127\.0\.0\.1:\d+ #1", text)
    assert "|ping|" in text
    assert "|pong|" in text


def test_faults_are_in_the_section(run: Run) -> None:
    """With what they have done, and the seed, which is the same for the same test."""
    source = """
def test_it(tcpproxy, listener):
    proxy = tcpproxy(listener, faults=["both:latency=1ms", "stall,nth=2"])
    pair = talk(proxy, listener)
    assert not pair
"""
    first, second = (section(run(source)) for _ in range(2))
    assert "latency_both: both:latency=1ms; acted on 1 connection\n" in first
    assert "stall_to_client: stall,nth=2; never acted\n" in first
    assert "Fault latency_both acts on" in first
    assert re.findall(r"seed=\d+", first) == re.findall(r"seed=\d+", second) != []


def test_a_live_connection_is_in_the_section(run: Run) -> None:
    result = run("def test_it(tcpproxy, listener):\n    pair = talk(tcpproxy(listener), listener)\n    assert not pair")
    result.assert_outcomes(failed=1)
    assert re.search(r"#1 +127\.0\.0\.1:\d+ +127\.0\.0\.1:\d+ +relaying", section(result))


def test_long_recordings_are_cut(run: Run) -> None:
    result = run(
        """
def test_it(tcpproxy, listener):
    proxy = tcpproxy(listener, record=True)
    pair = talk(proxy, listener, question=b"first", answer=b"x" * 100)
    for _ in range(100):
        pair[0].sendall(b"y"), pair[1].recv(1)
    pair[0].sendall(b"last"), pair[1].recv(4)
    assert not pair
"""
    )
    text = section(result)
    assert "|first|" in text
    assert "|last|" in text
    assert re.search(r"\.\.\. \d+ lines are not shown \.\.\.", text)
    assert len(text.splitlines()) < 60


def test_a_fixture_of_the_program_may_fail(run: Run) -> None:
    """The section tells of a setup, too."""
    result = run(
        """
import pytest

@pytest.fixture
def database(tcpproxy, listener):
    talk(tcpproxy(listener), listener)
    raise RuntimeError("no database")

def test_it(database): pass
"""
    )
    result.assert_outcomes(errors=1)
    assert "New connection" in section(result)


def test_skips_and_expected_failures_have_none(run: Run) -> None:
    result = run(
        """
import pytest

def test_skip(tcpproxy, listener):
    tcpproxy(listener)
    pytest.skip("not now")

@pytest.mark.xfail
def test_known(tcpproxy, listener):
    tcpproxy(listener)
    assert False
""",
        "-rA",
    )
    result.assert_outcomes(skipped=1, xfailed=1)
    assert "Captured tcpproxy" not in result.stdout.str()


def test_a_proxy_for_the_session(run: Run) -> None:
    """It serves several tests, and is in the section of those that use it."""
    result = run(
        """
import pytest, socket

@pytest.fixture(scope="session")
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

@pytest.fixture(scope="session")
def proxy(tcpproxy_factory, server):
    return tcpproxy_factory(server)

def test_first(proxy, server): talk(proxy, server)

def test_second(proxy, server, tcpproxy_factory):
    talk(proxy, server)
    assert proxy.stats().accepted == 1

def test_third(): assert False
"""
    )
    result.assert_outcomes(passed=1, failed=2)
    assert "2 connections" in section(result)
    assert result.stdout.str().count("Captured tcpproxy") == 1


def test_events_go_where_they_went(run: Run) -> None:
    """To `on_event`, or else to the logger; the section has its own copy."""
    result = run(
        """
import logging, pytest
from tcpproxy import UsageError

def test_logger(tcpproxy, listener, caplog):
    caplog.set_level(logging.DEBUG, "tcpproxy")
    talk(tcpproxy(listener), listener)
    assert any("Listening on" in record.getMessage() for record in caplog.records)

def test_callback(tcpproxy, listener):
    events = []
    proxy = tcpproxy(listener, on_event=events.append)
    talk(proxy, listener)
    proxy.stop(0)
    assert [event.kind for event in events] == ["listening", "new", "connected", "end"]

def test_no_callback(tcpproxy, listener):
    with pytest.raises(UsageError, match="on_event 'log' cannot be called"):
        tcpproxy(listener, on_event="log")
"""
    )
    result.assert_outcomes(passed=3)


def test_a_proxy_that_has_failed_is_an_error(run: Run) -> None:
    """A WorkerError is raised after the test, and the other proxies stop all the same."""
    result = run(
        """
import tcpproxy as library

def test_it(tcpproxy, listener):
    proxies.extend([tcpproxy(listener), tcpproxy(listener), tcpproxy(listener)])
    proxies[1].failure = library.WorkerError(22, "Invalid argument", "poll")

proxies = []

def test_all_have_stopped():
    assert ["stopped" in repr(proxy) or "failed" in repr(proxy) for proxy in proxies] == [True] * 3
    for proxy in proxies:
        assert proxy.wait(0)
"""
    )
    result.assert_outcomes(passed=2, errors=1)
    assert "the relay has stopped: Invalid argument" in result.stdout.str()


@pytest.mark.parametrize("mode", ["asyncio", "anyio", "trio"])
def test_in_coroutines(run: Run, mode: str) -> None:
    """The fixture is no coroutine itself, so it serves the tests of each framework."""
    pytest.importorskip({"asyncio": "pytest_asyncio", "trio": "trio", "anyio": "anyio"}[mode])
    mark = "pytest.mark.asyncio" if mode == "asyncio" else "pytest.mark.anyio"
    backend = "trio" if mode == "trio" else "asyncio"
    result = run(
        f"""
import pytest

@pytest.fixture
def anyio_backend(): return "{backend}"

@{mark}
async def test_it(tcpproxy):
    import asyncio, anyio
    async def answer(stream):
        async with stream:
            await stream.send(await stream.receive())
    if "{mode}" == "asyncio":
        async def echo(reader, writer):
            writer.write(await reader.read(10))
            writer.close()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            proxy = tcpproxy(server)
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"ping")
            assert await reader.read() == b"ping"
            writer.close()
    else:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, answer)
            proxy = tcpproxy(listener)
            async with await anyio.connect_tcp(*proxy.address) as stream:
                await stream.send(b"ping")
                assert await stream.receive() == b"ping"
            group.cancel_scope.cancel()
    assert await proxy.await_end(0) is False
"""
    )
    result.assert_outcomes(passed=1)


def test_in_parallel(run: Run) -> None:
    """With xdist the section comes through, too."""
    pytest.importorskip("xdist")
    tests = "".join(f"def test_{n}(tcpproxy, listener): talk(tcpproxy(listener), listener)\n" for n in range(4))
    result = run(tests + "def test_bad(tcpproxy, listener):\n    assert not talk(tcpproxy(listener), listener)", "-n2")
    result.assert_outcomes(passed=4, failed=1)
    assert "New connection" in section(result)


CHANCE = """
def test_it(tcpproxy, listener):
    verdicts = []
    for _ in range(2):
        proxy = tcpproxy(listener, faults=["latency=1ms,toxicity=50%"])
        verdicts.append(proxy.seed)
    assert not verdicts, verdicts
"""


def test_seeds(run: Run) -> None:
    """The same in each run and process; others with another seed, and for the next proxy of a test."""

    def seeds(*options: str) -> list[str]:
        return re.findall(r"seed=(\d+) \(dice 1\); again", section(run(CHANCE, *options)))

    first = seeds()
    assert len(set(first)) == 2
    assert seeds() == first
    assert seeds("-n1") == first
    other = seeds("--tcpproxy-seed=7")
    assert len(set(first + other)) == 4
    assert seeds("-o", "tcpproxy_seed=7") == other


def test_a_drawn_seed_can_be_repeated(run: Run) -> None:
    """Each process of xdist has it, too."""
    result = run(CHANCE, "--tcpproxy-seed=random", "-n2")
    told = re.search(r"tcpproxy: seed (\d+), as with (--tcpproxy-seed=\1)\n", result.stdout.str())
    assert told
    assert f"again: pytest {told[2]} test_a_drawn" in section(result)
    again = run(CHANCE, told[2])
    assert section(again).split("again")[0].split("seed=")[1] == section(result).split("again")[0].split("seed=")[1]


@pytest.mark.parametrize("seed", ["", "-1", "x", "1.5", "18446744073709551616", "9" * 5000])
def test_what_is_no_seed(run: Run, seed: str) -> None:
    result = run("def test_it(): pass", f"--tcpproxy-seed={seed}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--tcpproxy-seed {seed!r} is no seed, expected a whole number" in result.stderr.str()


def test_strict(run: Run) -> None:
    """A fault that acted on no connection is an error after the test, also one that was removed."""
    result = run(
        """
def test_met(tcpproxy, listener):
    talk(tcpproxy(listener, strict=True, faults=["latency=1ms"]), listener)

def test_not_met(tcpproxy, listener):
    proxy = tcpproxy(listener, strict=True)
    with proxy.fault("reset_peer,first=2"):
        pass

def test_not_strict(tcpproxy, listener):
    tcpproxy(listener, faults=["reset_peer,first=2"])

def test_what_cannot_be_counted(tcpproxy, listener):
    tcpproxy(listener, strict=True, faults="refuse")

def test_skipped_inside(tcpproxy, listener):
    import pytest
    tcpproxy(listener, strict=True, faults="stall")
    pytest.skip("no server")

def test_failed(tcpproxy, listener):
    tcpproxy(listener, strict=True, faults="stall")
    assert False
"""
    )
    result.assert_outcomes(passed=4, errors=1, skipped=1, failed=1)
    expected = "tcpproxy(..., strict=True): no connection met reset_peer,first=2; the proxy has accepted 0 connections"
    assert expected in result.stdout.lines  # and no traceback
    assert "fixtures.py" not in result.stdout.str()


@pytest.mark.parametrize(
    "call",
    [
        "tcpproxy(9, idle_timeout='soon')",
        "tcpproxy(9, nothing=1)",
        "tcpproxy(object())",
        "tcpproxy(9, faults='stall=1')",
        "tcpproxy(9, bind='192.0.2.1')",
    ],
)
def test_an_error_of_the_fixture_ends_at_the_line_of_the_test(run: Run, call: str) -> None:
    """Neither the fixture's source nor that of the proxy is shown."""
    result = run(f"def test_it(tcpproxy):\n    {call}\n")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert f">       {call}" in text or f">   {call}" in text
    assert [name for name in ("fixtures", "proxy", "config", "faults", "inforce") if f"{name}.py:" in text] == []


def test_a_wait_in_vain_ends_at_the_line_of_the_test(run: Run) -> None:
    """Not in the source of tcpproxy, unless all of the traceback is asked for."""
    source = """
import asyncio
import pytest

@pytest.fixture
def proxy(tcpproxy, listener):
    proxy = tcpproxy(listener, record=True)
    talk(proxy, listener)
    return proxy

def test_numbers(proxy):
    proxy.wait_for(accepted=3, timeout=0)

def test_recording(proxy):
    proxy.recordings[0].wait_for(b"never", timeout=0)

def test_fired(proxy):
    proxy.fault("stall").wait_fired(timeout=0)

async def main(wait, *args, **named):
    await wait(*args, timeout=0, **named)

def test_coroutines(proxy):
    asyncio.run(main(proxy.wait_for_async, accepted=3))
"""
    text = (result := run(source)).stdout.str()
    result.assert_outcomes(failed=4)
    assert ">       proxy.wait_for(accepted=3, timeout=0)" in text
    assert text.count("Captured tcpproxy call") == 4
    assert [name for name in ("awaiting", "waits", "handles", "recording") if f"{name}.py" in text] == []
    assert "waits.py" in run(source, "--full-trace").stdout.str()


def test_the_module_is_meant(run: Run) -> None:
    """In a test the name is that of the fixture."""
    result = run(
        r"""
import pytest

def test_the_module(tcpproxy):
    with pytest.raises(AttributeError, match="here `tcpproxy` is the fixture, expected `from tcpproxy import WaitTi"):
        tcpproxy.WaitTimeout
    with pytest.raises(AttributeError, match="expected `from tcpproxy import faults`"):
        tcpproxy.faults.latency("1ms")

def test_a_proxy(tcpproxy):
    with pytest.raises(AttributeError, match=r"but the proxies that it makes have one: `proxy = tcpproxy\(target\)`"):
        tcpproxy.address

def test_neither(tcpproxy):
    with pytest.raises(AttributeError, match="the fixture has no 'nonsense'$"):
        tcpproxy.nonsense
    assert not hasattr(tcpproxy, "__wrapped__")
"""
    )
    result.assert_outcomes(passed=3)


def test_without_the_plugin(run: Run) -> None:
    result = run("def test_it(request):\n    assert 'tcpproxy' not in request.fixturenames", "-p", "no:tcpproxy")
    result.assert_outcomes(passed=1)
    result = run("def test_it(tcpproxy): pass", "-p", "no:tcpproxy")
    result.assert_outcomes(errors=1)
    assert "fixture 'tcpproxy' not found" in result.stdout.str()


def test_captures(run: Run, pytester: pytest.Pytester) -> None:
    """A file for each proxy, named after its test; an option of the test wins."""
    result = run(
        """
import pytest

@pytest.mark.parametrize("case", ["a-b"])
def test_it(tcpproxy, listener, case):
    talk(tcpproxy(listener), listener)
    talk(tcpproxy(listener), listener)
    tcpproxy(listener, capture="own.pcapng")
""",
        "--tcpproxy-capture=seen/now",
    )
    result.assert_outcomes(passed=1)
    names = sorted(path.name for path in (pytester.path / "seen/now").iterdir())
    assert names == ["test_captures.py-test_it[a-b]-1.pcapng", "test_captures.py-test_it[a-b]-2.pcapng"]
    assert all(b"ping" in (pytester.path / "seen/now" / name).read_bytes() for name in names)
    assert (pytester.path / "own.pcapng").exists()


def test_captures_of_their_own(run: Run, pytester: pytest.Pytester) -> None:
    """No capture overwrites another one: with names that differ in characters that files cannot have; in threads."""
    source = """
import pytest, threading

@pytest.mark.parametrize("case", ["a/b", "a-b", "a b", "x" * 300 + "1", "x" * 300 + "2"])
def test_it(tcpproxy, listener, case): talk(tcpproxy(listener), listener)

def test_threads(tcpproxy, listener):
    threads = [threading.Thread(target=tcpproxy, args=(listener,)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
    run(source, "--tcpproxy-capture=captures").assert_outcomes(passed=6)
    names = [path.name for path in (pytester.path / "captures").iterdir()]
    assert len(names) == 5 + 8
    assert max(map(len, names)) <= 255


def test_captures_of_the_session_in_parallel(run: Run, pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    source = """
import pytest

@pytest.mark.parametrize("case", range(4))
def test_it(tcpproxy_factory, listener, case): talk(tcpproxy_factory(listener), listener)
"""
    run(source, "--tcpproxy-capture=captures", "-n2", "--dist=each").assert_outcomes(passed=8)
    assert sum(path.stat().st_size > 0 for path in (pytester.path / "captures").iterdir()) == 8


def test_a_test_that_runs_again(run: Run, pytester: pytest.Pytester) -> None:
    """As pytest-rerunfailures does it: the section has only the proxies of the last run, with the same seeds."""
    pytester.makepyfile(
        again="""
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, nextitem=nextitem, log=False)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""
    )
    result = run("def test_it(tcpproxy, listener): assert not talk(tcpproxy(listener), listener)", "-p", "again")
    result.assert_outcomes(failed=1)
    assert section(result).count("<Proxy ") == 1


def test_the_plugin_is_light(run: Run) -> None:
    """What every run of pytest loads: neither the core nor click."""
    result = run(
        """
import sys
LOADED = [name for name in sys.modules if name.split(".")[0] in ("click", "tcpproxy")]

def test_it():
    assert sorted(LOADED) == ["tcpproxy", "tcpproxy.pytest_plugin"]
"""
    )
    result.assert_outcomes(passed=1)
    code = (
        "import sys, pytest; before = set(sys.modules); import tcpproxy.pytest_plugin; print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert eval(done.stdout) == {"tcpproxy", "tcpproxy.pytest_plugin"}


def test_the_fixtures_are_explained(run: Run) -> None:
    result = run("def test_it(): pass", "--fixtures")
    result.stdout.fnmatch_lines(["tcpproxy -- *", "*Makes TCP proxies for this test*"])
    result.stdout.fnmatch_lines(["tcpproxy_factory*scope*", "*Makes TCP proxies that stop at the end of the session*"])
