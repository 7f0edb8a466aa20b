"""The preloaded library of tests/faults/shim.c, for tests of a command."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from .machine import needs_proc

CALLS = ["accept4", "socket", "connect", "recv", "send", "splice", "pipe2", "fcntl", "read", "epoll_ctl"]
CALLS += ["epoll_wait/poll", "setsockopt", "getsockopt", "shutdown", "close", "ioctl", "memory", "write"]
"""As in shim.c; so are the kinds of fault."""

KINDS = ("short", "interrupted", "refused", "broken")
HEAD = struct.Struct("IIQQQ")
SEED = int(os.environ.get("FAULTS_SEED", "1"))


class Shim:
    """The library, and the page through which it is told what to do and says what it did."""

    def __init__(self, folder: Path) -> None:
        needs_proc()  # it knows the calls of Linux
        compiler = shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            pytest.skip("needs a C compiler")
        self.path, page = folder / "shim.so", folder / "page"
        source = Path(__file__).parents[1] / "faults" / "shim.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self.path, source, "-ldl"], check=True)
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)
        self.environment = {**os.environ, "LD_PRELOAD": str(self.path), "FAULTS": str(page)}

    def set(self, one_in: int, fatal_one_in: int = 0, only: str = "", read_most: int = 0) -> None:
        """Of so many calls one gets a fault that nobody may notice, or one that may end its connection; 0: none.

        Args:
            one_in, fatal_one_in: the numbers of calls.
            only: the call that gets them; empty: all.
            read_most: bytes that a read from a socket brings at most; 0: as many as there are.
        """
        calls = 1 << CALLS.index(only) if only else 0
        HEAD.pack_into(self._page, 0, one_in, fatal_one_in, SEED, calls, read_most)

    def counts(self) -> dict[str, int]:
        values = struct.iter_unpack("Q", self._page[HEAD.size : HEAD.size + 8 * len(CALLS) * len(KINDS)])
        names = (f"{call} {kind}" for call, kind in itertools.product(CALLS, KINDS))
        return {name: value for name, (value,) in zip(names, values, strict=True) if value}
