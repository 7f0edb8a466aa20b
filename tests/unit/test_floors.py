"""Imports point one way: core and shell stand on floors, and each module imports from lower ones only."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.floors import CircleError, core_graph, faults, floors, own_imports, shell_imports, shell_imports_of_core

import tcpproxy

SHELL = Path(tcpproxy.__file__).parent
CORE = Path(__file__).parents[2] / "tcpproxy" / "_core"
"""The core of the source tree: the installed one is compiled."""

# --- the project ---


@pytest.mark.skipif(not list(CORE.glob("*.pyx")), reason="no source tree here")
def test_core_has_floors() -> None:
    graph = core_graph(CORE)
    assert set().union(*graph.values()) <= graph.keys()
    assert floors(graph)[-3:] == [["worker"], ["recorded"], ["capture"]], "the doors"


@pytest.mark.skipif(not list(CORE.glob("*.pyx")), reason="no source tree here")
def test_core_imports_nothing_of_the_shell() -> None:
    assert shell_imports_of_core(CORE) == []


def test_shell_has_floors() -> None:
    graph = own_imports(shell_imports(SHELL))
    assert len(graph) > 10
    assert floors(graph)[0]


def test_shell_keeps_the_order_of_rooms() -> None:
    assert list(faults(shell_imports(SHELL))) == []


# --- the checks themselves, on trees that are wrong ---


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_floors() -> None:
    assert floors({"c": {"a", "b", "libc"}, "b": {"a", "b"}, "a": set()}) == [["a"], ["b"], ["c"]]


def test_a_circle_is_named() -> None:
    graph = {"top": {"relay"}, "relay": {"table"}, "table": {"loop"}, "loop": {"net", "relay"}, "net": set[str]()}
    with pytest.raises(CircleError, match="loop -> relay -> table -> loop\nfloors below it:\n  0  net"):
        floors(graph)


@pytest.mark.parametrize(
    "text",
    [
        "from tcpproxy._core.table cimport Table, \\\n    table_new",
        "from .table cimport Table",
        "from . cimport net, table",
        "from tcpproxy._core cimport table as t",
        "cimport tcpproxy._core.table",
    ],
)
def test_a_circle_of_cimports_is_found(tmp_path: Path, text: str) -> None:
    """Through a .pxd file and a .pyx file, and through one platform's variant of a module."""
    write(tmp_path, {"net.pxd": "", "poller.pxd": "", "table.pxd": "", "poller_poll.pyx": text})
    assert floors(core_graph(tmp_path)) == [["net", "table"], ["poller"]]
    write(tmp_path, {"table.pyx": "from tcpproxy._core.poller cimport Poller"})
    with pytest.raises(CircleError, match="poller -> table -> poller"):
        floors(core_graph(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import tcpproxy.proxy", True),
        ("import tcpproxy", True),
        ("from tcpproxy import errors", True),
        ("    from tcpproxy.errors import StartError", True),
        ("from .. import errors", True),
        ("from ..errors import StartError", True),
        ("from tcpproxy._core.net cimport net_addr\nimport os\nfrom . import worker", False),
    ],
)
def test_an_import_of_the_shell_is_found_in_the_core(tmp_path: Path, text: str, expected: bool) -> None:
    assert bool(shell_imports_of_core(write(tmp_path, {"worker.pyx": text}))) == expected


GOOD = {
    "__init__.py": "from .proxy import Proxy",
    "__main__.py": "import signal\nfrom .command import cli",
    "_core/__init__.py": "",
    "errors.py": "",
    "values.py": "from . import errors",
    "config/__init__.py": "from .options import Option",
    "config/options.py": "from ..values import parse\nfrom tcpproxy.errors import UsageError",
    "network/__init__.py": "",
    "network/listening.py": "import socket\nfrom ..config import Option\nfrom . import resolver",
    "network/resolver.py": "",
    "report/__init__.py": "",
    "report/printer.py": "def log(): import logging.handlers",
    "crew.py": "from ._core.worker import Worker\nfrom .network.listening import listen\nfrom .report import printer",
    "proxy.py": "import typing\nfrom . import crew\nif typing.TYPE_CHECKING:\n    import logging, tcpproxy.command.cli",
    "metrics.py": "from prometheus_client import REGISTRY",
    "pytest_plugin.py": "import pytest\ndef proxy():\n    from tcpproxy import Proxy",
    "command/__init__.py": "",
    "command/cli.py": "import click, signal\nfrom http.server import HTTPServer\nfrom tcpproxy import __version__",
}
"""A shell as it should be."""


def test_a_good_shell_passes(tmp_path: Path) -> None:
    modules = shell_imports(write(tmp_path / "tcpproxy", GOOD))
    assert list(faults(modules)) == []
    assert len(floors(own_imports(modules))) > 5


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("errors.py", "from .config.options import Option", "errors (ground) imports tcpproxy.config.options (config)"),
        ("network/resolver.py", "def f(): from tcpproxy import proxy", "(network) imports tcpproxy.proxy (proxy)"),
        ("report/printer.py", "import tcpproxy.crew", "printer (report) imports tcpproxy.crew (crew)"),
        ("crew.py", "from tcpproxy import Proxy", "crew (crew) imports tcpproxy.__init__ (package)"),
        ("config/__init__.py", "from .. import command", "imports tcpproxy.command.__init__ (command)"),
        ("proxy.py", "if X: pass\nelse: from .command.cli import main", "imports tcpproxy.command.cli (command)"),
        ("proxy.py", "import signal", "tcpproxy.proxy imports signal, which only command, main may"),
        ("network/listening.py", "def f():\n    import ctypes.util", "listening imports ctypes"),
        ("crew.py", "import logging", "tcpproxy.crew imports logging, which only report may"),
        ("command/cli.py", "from logging import getLogger", "tcpproxy.command.cli imports logging"),
        ("metrics.py", "from http import server", "tcpproxy.metrics imports http.server, which only command may"),
        ("command/cli.py", "import prometheus_client", "only metrics may"),
        ("proxy.py", "import pytest", "only pytest_plugin may"),
        ("cupboard.py", "", "tcpproxy.cupboard has no room"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str, fault: str) -> None:
    found = list(faults(shell_imports(write(tmp_path / "tcpproxy", {**GOOD, file: text}))))
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("file", "text", "circle"),
    [
        ("network/resolver.py", "from .listening import listen", "listening -> tcpproxy.network.resolver -> "),
        ("network/resolver.py", "def f():\n    from . import listening", "listening -> tcpproxy.network.resolver"),
        ("errors.py", "if True:\n    import tcpproxy.values", "tcpproxy.errors -> tcpproxy.values -> tcpproxy.errors"),
    ],
)
def test_a_circle_of_imports_is_found(tmp_path: Path, file: str, text: str, circle: str) -> None:
    with pytest.raises(CircleError, match=circle):
        floors(own_imports(shell_imports(write(tmp_path / "tcpproxy", {**GOOD, file: text}))))
