"""Races of a few nanoseconds, in a relay whose source is changed only so that each takes long."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .mutants import Mutant, build

QUESTION_AT_THE_END = Mutant(
    (
        (
            "engine.pyx",
            "    if sync_check(&loop.counters.active) == 0 and",
            "    thread_nap_us(300)\n    if sync_check(&loop.counters.active) == 0 and",
        ),
        (
            "engine.pyx",
            "    if sync_check(&loop.finished):\n        sync_sub(&loop.asking, 1)\n",
            "    if sync_check(&loop.finished):\n        thread_nap_us(300)\n        sync_sub(&loop.asking, 1)\n",
        ),
    ),
    known="",
)
"""A thread sends a question to a worker that is about to end: the worker puts its end off, and the thread gives up."""

SCRIPT = """if True:
    import sys, threading, tcpproxy
    for turn in range(20):
        proxy = tcpproxy.Proxy("127.0.0.1:9", workers=2, on_event=lambda event: None).start()
        assert sys.argv[1] in sys.modules["tcpproxy._core.worker"].__file__
        proxy.drain()
        proxy._crew.join(5)
        assert not proxy._crew.running, f"a worker sleeps after drain(), turn {turn}"
        proxy.stop(0)
"""


@pytest.mark.timeout(600)  # a build
def test_a_question_to_a_worker_that_ends(tmp_path: Path) -> None:
    """The worker ends all the same: whoever gives up wakes it."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    environment = build(QUESTION_AT_THE_END, tmp_path)
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd="/", timeout=200, check=False)
    assert done.returncode == 0, done.stderr
