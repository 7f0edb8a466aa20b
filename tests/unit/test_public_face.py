"""What help(), dir() and repr() show of the package, without loading what they do not need."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import socket
import subprocess
import sys
import typing

import pytest
from support.waiting import eventually

import tcpproxy
from tcpproxy.network.resolver import Resolver


def quoted(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True).stdout


@pytest.mark.parametrize("show", ["dir(tcpproxy)", "help(tcpproxy)"])
def test_the_names_are_shown_without_the_core(show: str) -> None:
    loaded = "print([name for name in sys.modules if name.startswith(('tcpproxy.', 'click'))], file=sys.stderr)"
    code = f"import sys, tcpproxy; print({show}); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert [name for name in tcpproxy.__all__ if name not in done.stdout] == []
    if show.startswith("dir"):
        assert done.stderr.strip() == "[]"


def test_the_docstring_has_every_name() -> None:
    assert [name for name in tcpproxy.__all__ if name not in (tcpproxy.__doc__ or "")] == []


def test_the_faults_are_there() -> None:
    """Without an import of their own."""
    assert quoted("import tcpproxy; print(tcpproxy.faults.latency('1s'))").strip() == "latency=1s"


def test_signatures_are_readable() -> None:
    for kind in (tcpproxy.Event, tcpproxy.Stats, tcpproxy.Connection):
        signature = str(inspect.signature(kind))
        assert "ForwardRef" not in signature
        assert ": '" not in signature


@pytest.mark.parametrize("name", ["Event", "Stats", "Connection", "Proxy"])
def test_help_has_a_line_for_each_field(name: str) -> None:
    kind = getattr(tcpproxy, name)
    fields = inspect.signature(kind).parameters if name != "Proxy" else ("config", "addresses", "failure", "capture")
    attributes = (kind.__doc__ or "").split("Attributes:")[1]
    assert re.findall(r"^        (\w+): \S", attributes, re.MULTILINE) == list(fields)


@pytest.mark.parametrize("name", ["EventKind", "Reason", "State"])
def test_each_word_is_explained(name: str) -> None:
    """The text below a Literal type has a line, or a part of one, for each of its words."""
    literal = getattr(tcpproxy, name)
    module = inspect.getsource(sys.modules["tcpproxy.views" if name == "State" else "tcpproxy.report.event"])
    text = module.split(f"{name} = Literal", 1)[1].split('"""')[1]
    assert [word for word in typing.get_args(literal) if word and f"{word}" not in text] == []


def test_repr() -> None:
    proxy = tcpproxy.Proxy("127.0.0.1:9")
    assert repr(proxy) == "<Proxy 127.0.0.1 -> 127.0.0.1:9, not started>"
    with proxy:
        host, port = proxy.address
        assert repr(proxy) == f"<Proxy {host}:{port} -> 127.0.0.1:9, listening>"
        proxy.abort()
        assert repr(proxy) == f"<Proxy {host}:{port} -> 127.0.0.1:9, stopped>"
    assert repr(proxy) == f"<Proxy {host}:{port} -> 127.0.0.1:9, stopped>"
    proxy.failure = tcpproxy.WorkerError(9, "Bad file descriptor", "epoll")
    assert repr(proxy) == f"<Proxy {host}:{port} -> 127.0.0.1:9, failed>"


def test_repr_while_connections_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        tcpproxy.Proxy(f"127.0.0.1:{server.getsockname()[1]}") as proxy,
    ):
        with socket.create_connection(proxy.address), server.accept()[0]:
            proxy.drain()
            assert repr(proxy).endswith(", draining>")
        eventually(lambda: repr(proxy).endswith(", stopped>"))


def test_repr_after_a_start_that_failed() -> None:
    with tcpproxy.Proxy("127.0.0.1:9") as other:
        proxy = tcpproxy.Proxy("127.0.0.1:9", port=other.address[1])
        with pytest.raises(tcpproxy.StartError):
            proxy.start()
    assert repr(proxy) == "<Proxy 127.0.0.1 -> 127.0.0.1:9, start failed>"
    assert proxy.wait(0)
    proxy.stop()
    assert repr(proxy) == "<Proxy 127.0.0.1 -> 127.0.0.1:9, start failed>"


def test_repr_amid_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And after one that was interrupted while it looked a name up."""
    proxy = tcpproxy.Proxy("localhost:9")

    def interrupted(*_: object) -> None:
        assert repr(proxy) == "<Proxy 127.0.0.1 -> localhost:9, starting>"
        raise KeyboardInterrupt

    monkeypatch.setattr(Resolver, "lookup", interrupted)
    with pytest.raises(KeyboardInterrupt):
        proxy.start()
    assert repr(proxy) == "<Proxy 127.0.0.1 -> localhost:9, start failed>"
    assert proxy.wait(0)


def test_help_of_the_package_begins_with_its_use() -> None:
    assert "with tcpproxy.Proxy(" in quoted("import tcpproxy; help(tcpproxy)").split("NAME")[1][:400]


# --- copies ---

VALUES = [
    tcpproxy.TcpProxyError("a sentence"),
    tcpproxy.UsageError("a sentence"),
    tcpproxy.StartError.because("cannot listen on a.b:1", OSError(98, "Address already in use")),
    tcpproxy.StartError.because("cannot start a proxy for a.b:1", RuntimeError("can't start new thread")),
    tcpproxy.StartError.because("cannot start a proxy for a.b:1", MemoryError()),
    tcpproxy.WaitTimeout("a sentence"),
    tcpproxy.WorkerError(9, "Bad file descriptor", "epoll"),
    tcpproxy.Event("end", "client-eof", client="127.0.0.1:9", id=7),
    tcpproxy.Chunk("to_client", b"bytes", 0.5),
    tcpproxy.Stats(*range(13), (5, 6)),
    tcpproxy.Connection(1, "127.0.0.1:9", "", "connecting", 0, 0, 0.5, 0.0, 0.5, 0, 0, ""),
    tcpproxy.Forward("0:db:1", ("127.0.0.1", 9), 9, "db:1"),
    tcpproxy.Proxy("127.0.0.1:9", idle_timeout="5m").config,
]

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{n}": lambda it, n=n: pickle.loads(pickle.dumps(it, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_copies_are_equal(value: object, how: str) -> None:
    """Of every exception and value: a test runner, or a pool of processes, pickles them."""
    same = COPIES[how](value)
    assert type(same) is type(value)
    assert (repr(same), str(same)) == (repr(value), str(value))
    if isinstance(value, Exception):
        names = ("args", "errno", "strerror", "filename", "exit_code", "__notes__")
        assert [getattr(same, name, None) for name in names] == [getattr(value, name, None) for name in names]
    else:
        assert same == value


def test_every_public_value_is_copied_here() -> None:
    """Words for annotations aside, and what shows something that is alive: it cannot be copied."""
    kinds = {type(value).__name__ for value in VALUES}
    assert kinds >= {name for name in tcpproxy.__all__ if inspect.isclass(getattr(tcpproxy, name))} - {
        "Proxy",
        "Recording",
    }


@pytest.mark.parametrize("how", COPIES)
def test_a_proxy_cannot_be_copied(how: str) -> None:
    with pytest.raises(TypeError, match=r"^a Proxy cannot be copied or pickled: it has threads and sockets$"):
        COPIES[how](tcpproxy.Proxy("127.0.0.1:9"))
