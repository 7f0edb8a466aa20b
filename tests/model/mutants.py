"""Broken relays: the project's own sources with one mistake each, built into a folder of the test's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tcpproxy._core.worker import POLLER

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A mistake: in which file (of the core) what text, found exactly once, is replaced by what."""

    patches: tuple[tuple[str, str, str], ...]
    known: str
    """The schedule, among those that have failed, that it fails."""
    rare: bool = False
    """It takes thousands of made-up schedules to find it."""
    only: str = ""
    """The poller with which it is a mistake; empty: all."""
    mode: str = "always"
    """Of zero-copy."""


MUTANTS = {
    # A short read is taken for "drained" although an urgent mark was seen. Poll(2) reports again what is left.
    "short-read-at-urgent-mark": Mutant(
        (
            ("relay.pyx", "    if bits & (READY_EOF | READY_URGENT):\n", "    if bits & READY_EOF:\n"),
            ("opening.pyx", "bits & (READY_EOF | READY_URGENT) != 0\n", "bits & READY_EOF != 0\n"),
        ),
        "urgent",
        only="epoll",
        mode="auto",
    ),
    # "Would block" of a splice into a pipe that holds bytes is taken for "drained"; the pipe was full.
    "full-pipe-for-drained": Mutant(
        (
            ("splice_linux.pyx", "    pipe.held = <uint32_t> n\n", "    pipe.held += <uint32_t> n\n"),
            (
                "half.pyx",
                "        half.ask_recv = got < LIKELY_EMPTIED_BYTES\n",
                "        while got > 0:\n"
                "            got = pipe_fill(pipe, source.watch.fd, pump.splice_size)\n"
                "        if net_would_block(got):\n"
                "            half_not_ready(source, READY_IN, pump)\n"
                "        return pipe.held\n",
            ),
        ),
        "slots",
        only="epoll",
    ),
    # The end of file is passed on as soon as it is seen, with bytes still in the pipe.
    "end-before-the-pipe-is-empty": Mutant(
        (
            ("half.pyx", " net_out_of_resources, ", " net_out_of_resources, net_peek, "),
            (
                "half.pyx",
                "            used += <uint32_t> _splice(half, source, sink, pump)\n",
                "            used += <uint32_t> _splice(half, source, sink, pump)\n"
                "            if half.pipe != NULL and net_peek(source.watch.fd, pump.scratch, 1) == 0:\n"
                "                net_shut_write(sink.watch.fd)\n"
                "                source.eof_read = sink.fin_sent = True\n"
                "                half.state = HALF_SHUT\n",
            ),
        ),
        "end",
    ),
    # The reset that splice reports at an urgent mark is believed, with bytes unread.
    "reset-at-urgent-mark": Mutant(
        (
            (
                "half.pyx",
                "        source.error = <int> -got       # after a reset",
                "        half.state = HALF_BROKEN\n        source.error = <int> -got       # after a reset",
            ),
        ),
        "urgent-and-reset",
        rare=True,
    ),
}


def build(mutant: Mutant, folder: Path) -> dict[str, str]:
    """Builds it there, the modules that are as they were taken over from the source tree's own build.

    Returns the environment in which a Python process imports it.
    """
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tcpproxy", folder / "tcpproxy", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = Path("build") / f"poller_{POLLER}"
    if (ROOT / built).is_dir():
        shutil.copytree(ROOT / built, folder / built)
    for file, old, new in mutant.patches:
        path = folder / "tcpproxy" / "_core" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has changed: {old!r} is in it {text.count(old)} times"
        path.write_text(text.replace(old, new))
    environment = {**os.environ, "TCPPROXY_POLLER": POLLER, "PYTHONPATH": str(folder)}
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return environment
