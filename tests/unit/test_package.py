"""What is installed: hardened modules, typed, nothing stray, and one version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from inspect_wheel import EXPECTED, MODULES, NEEDED, binary_faults

import tcpproxy
from tcpproxy import _core

CORE = Path(_core.__file__).parent
ROOT = Path(__file__).parents[2]
COMPILED = [path for path in CORE.iterdir() if path.suffix in (".so", ".pyd")]


def test_modules() -> None:
    """One file a module: with a stable ABI where there is one, for this Python alone where there is not."""
    assert sorted(path.name.split(".")[0] for path in COMPILED) == MODULES
    if not sysconfig.get_config_var("Py_GIL_DISABLED") and sys.platform != "win32":
        assert {path.name.partition(".")[2] for path in COMPILED} == {"abi3.so"}


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="reads ELF files and DLLs")
def test_hardening() -> None:
    """Full RELRO, a stack that is not executable, stack protector, checked calls; what a DLL has in their place."""
    assert list(binary_faults({path.name: path.read_bytes() for path in COMPILED})) == []


@pytest.mark.skipif(sys.platform != "linux", reason="compiles ELF files")
def test_hardening_would_be_missed(tmp_path: Path) -> None:
    """The control: a library that was compiled without any of it."""
    source, library = tmp_path / "weak.c", tmp_path / "weak.so"
    source.write_text("int weak(int x) { return x; }\n")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    flags = ["-fno-stack-protector", "-U_FORTIFY_SOURCE", "-Wl,-z,norelro,-z,lazy,-z,execstack", "-Wl,--no-as-needed"]
    try:
        subprocess.run([compiler, "-shared", "-fPIC", *flags, source, "-o", library], check=True, capture_output=True)
    except OSError:
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    faults = " ".join(binary_faults({"weak.so": library.read_bytes()}))
    for sentence in "no RELRO", "executable stack", "bound late", "no stack protector", "no checked calls":
        assert sentence in faults


def test_free_threading() -> None:
    """Importing the core does not bring the lock back, and leaves it as it was."""
    code = "import sys, tcpproxy; print(getattr(sys, '_is_gil_enabled', lambda: True)())"
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=True)  # not the source tree's package
    assert done.stdout.strip() == str(not sysconfig.get_config_var("Py_GIL_DISABLED"))


def test_files() -> None:
    """What the installer noted down: all that is needed, and nothing else."""
    distribution = metadata.distribution("tcpproxy")
    if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("an editable install")
    names = {path.as_posix() for path in distribution.files or ()}
    assert set(NEEDED) <= names
    installer = r".+\.dist-info/(INSTALLER|REQUESTED|direct_url\.json)|.+\.pyc|(\.\./)+(bin|Scripts)/tcpproxy(\.exe)?"
    assert [name for name in names if not re.fullmatch("|".join((*EXPECTED, installer)), name)] == []


def test_version() -> None:
    """It stands in one place; what was installed and the change log agree with it."""
    assert metadata.version("tcpproxy") == tcpproxy.__version__
    changes = ROOT / "CHANGELOG.md"
    if not changes.exists():
        pytest.skip("no source tree here")
    newest = next(line for line in changes.read_text().splitlines() if line.startswith("## "))
    assert newest.split()[1] == tcpproxy.__version__
