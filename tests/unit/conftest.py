"""The door of each unit test into the compiled core, and connected sockets."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pathlib
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from support import doors
from support.machine import resource
from support.waiting import TIMEOUT

Pair = tuple[socket.socket, socket.socket]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "door" in getattr(item, "fixturenames", ()):  # the first one compiles the door, the others wait for that
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="module")
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The door of this test module: doors/NAME.pyx of test_NAME.py or of its DOOR, compiled. A cross build has them."""
    name = getattr(request.module, "DOOR", request.path.stem.removeprefix("test_"))
    module = doors.module_name(name)
    if module in sys.modules or importlib.util.find_spec(module):
        return importlib.import_module(module)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.name != "nt" and not shutil.which(compiler):  # on Windows it need not be on PATH: setuptools finds it
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    return _load(module, _built(name, tmp_path_factory))


def _built(name: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The file of a door, compiled by the first process of this run that needs it."""
    module = doors.module_name(name)
    if "PYTEST_XDIST_WORKER" not in os.environ or os.name == "nt":
        return doors.build(name, tmp_path_factory.mktemp(module))
    import fcntl

    folder = tmp_path_factory.getbasetemp().parent / module  # all processes of this run share the parent
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = list(folder.glob(f"{module}*{sysconfig.get_config_var('EXT_SUFFIX')}"))
        return built[0] if built else doors.build(name, folder)


def _load(module: str, path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def make_pair(stack: contextlib.ExitStack) -> Callable[[], Pair]:
    """Makes two ends of a TCP connection: (ours, the peer's); ours does not block, as the core wants it."""

    def make() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # Inherited: room for what a test sends before anything is read; the default window may be below 64 KiB.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            peer = stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
            ours = stack.enter_context(listener.accept()[0])
        for end in (ours, peer):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours.setblocking(False)
        return ours, peer

    return make


@pytest.fixture
def short_of_memory() -> Iterator[None]:
    """This process gets no more than 64 MiB of address space on top: the door's `without_memory` takes those."""
    if sys.platform != "linux":
        pytest.skip("needs a system that obeys RLIMIT_AS")
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
