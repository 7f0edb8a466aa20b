"""Builds the door through which the unit tests reach the compiled core, and makes connected sockets."""

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
from support.machine import resource
from support.waiting import TIMEOUT

ROOT = pathlib.Path(__file__).parents[2]
"""The source tree: the door needs its .pxd and .h files, the compiled modules are those of the installed package."""

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,
}
"""As in setup.py, where they matter."""

Pair = tuple[socket.socket, socket.socket]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "door" in getattr(item, "fixturenames", ()):  # the first of them compiles it, and others wait for that
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module door.pyx, compiled; a cross build brings one along."""
    if importlib.util.find_spec("door"):
        return importlib.import_module("door")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.name != "nt" and not shutil.which(compiler):  # on Windows it need not be on PATH: setuptools finds it
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    if "PYTEST_XDIST_WORKER" not in os.environ or os.name == "nt":
        return _load(_build(tmp_path_factory.mktemp("door")))
    import fcntl

    folder = tmp_path_factory.getbasetemp().parent  # all processes of this run share it: the first one compiles
    with open(folder / "door.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = list((folder / "door").glob("door*" + sysconfig.get_config_var("EXT_SUFFIX")))
        if not built:
            (folder / "door").mkdir(exist_ok=True)
            built = [_build(folder / "door")]
    return _load(built[0])


def _build(folder: pathlib.Path) -> pathlib.Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    source = folder / "door.pyx"  # a copy, because the C file is written beside it
    shutil.copy(pathlib.Path(__file__).with_name("door.pyx"), source)
    extension = Extension(
        "door",
        [str(source)],
        include_dirs=[str(ROOT / "tcpproxy" / "_core")],
        libraries=["ws2_32"] if os.name == "nt" else [],
    )
    modules = cythonize([extension], include_path=[str(ROOT)], compiler_directives=DIRECTIVES, quiet=True)
    build = build_ext(Distribution({"ext_modules": modules}))
    build.build_lib = build.build_temp = str(folder)
    build.ensure_finalized()
    build.run()
    return pathlib.Path(build.get_ext_fullpath("door"))


def _load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("door", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["door"] = module
    spec.loader.exec_module(module)
    return module


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
