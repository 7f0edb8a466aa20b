"""A worker that stands still."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import needs_proc


@contextlib.contextmanager
def stuck(pid: int) -> Iterator[None]:
    """One worker of this process stands still, as the others go on. By ptrace, which stops a single thread."""
    needs_proc()
    tasks = Path(f"/proc/{pid}/task")
    workers = [
        int(task.name) for task in tasks.iterdir() if (task / "wchan").read_text() in ("do_epoll_wait", "ep_poll")
    ]
    if not workers:
        pytest.skip("the kernel does not tell which threads are workers")
    libc = ctypes.CDLL(None, use_errno=True)
    attach, detach, wall = 16, 17, 0x40000000
    if libc.ptrace(attach, workers[-1], None, None) < 0:
        pytest.skip(f"needs the right to trace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(workers[-1], wall)
    try:
        yield
    finally:
        libc.ptrace(detach, workers[-1], None, None)
