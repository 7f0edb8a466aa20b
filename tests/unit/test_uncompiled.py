"""A tree that was not compiled, or a platform that is not known, gets one paragraph that says what to type."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tcpproxy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the package, without what was compiled."""
    shutil.copytree(
        Path(tcpproxy.__file__).parent, tmp_path / "tcpproxy", ignore=shutil.ignore_patterns("*.so", "*.pyd")
    )
    return tmp_path


def run(tree: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), **variables}
    return subprocess.run(
        [sys.executable, *args], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def is_the_paragraph(text: str, tree: Path) -> bool:
    return "\n" not in text.strip() and f"pip install {tree}" in text and "No module named" in text


def test_import(tree: Path) -> None:
    """An ImportError, whose text is the paragraph, and no error behind it."""
    lines = run(tree, "-c", "from tcpproxy import Proxy").stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert sum("File " in line for line in lines) == 2, "the import, and the package"
    kind, _, text = lines[-1].partition(": ")
    assert kind == "ImportError"
    assert is_the_paragraph(text, tree)


@pytest.mark.parametrize("how", ["module", "script"])
def test_command(tree: Path, how: str) -> None:
    """A plain sentence and exit code 1, as `python -m tcpproxy` and as the installed script."""
    (tree / "bin").mkdir()
    (tree / "bin" / "tcpproxy").write_text("from tcpproxy.__main__ import main\nmain()\n")
    done = run(tree, *(("-m", "tcpproxy") if how == "module" else ("bin/tcpproxy",)), "localhost:80")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("tcpproxy: ")
    assert is_the_paragraph(done.stderr, tree)


def test_core_for_another_machine(tree: Path) -> None:
    """What the system says about a file that it cannot load is in the paragraph."""
    from tcpproxy._core import worker

    (tree / "tcpproxy" / "_core" / Path(worker.__file__).name).write_bytes(b"\x7fELF of another machine")
    done = run(tree, "-m", "tcpproxy", "localhost:80")
    assert done.returncode == 1
    assert re.fullmatch(r"tcpproxy: [^\n]*worker[^\n]*pip install[^\n]*\n", done.stderr)


@pytest.mark.skipif(os.name == "nt", reason="only POSIX Pythons can be told another platform")
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"_PYTHON_HOST_PLATFORM": "plan9-mips"}, "TCPPROXY_POLLER=poll pip install ."),
        ({"TCPPROXY_POLLER": "select"}, "tcpproxy has no poller 'select'"),
    ],
)
def test_setup_on_an_unknown_platform(variables: dict[str, str], sentence: str) -> None:
    """setup.py ends with what can be done, before it compiles anything."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("no source tree here")
    environment = {name: value for name, value in os.environ.items() if name != "TCPPROXY_POLLER"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
