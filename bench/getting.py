"""Getting the peers: `python -m bench --get` puts them into build/peers, beside the system, where programs.py looks.

Each comes by its own tool from where that gets it anyway: Go's, pip, cargo, apt. Nothing is installed in the system.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.base import BenchError

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "peers"
BIN = HOME / "bin"
VENV = HOME / "venv"
TOXIPROXY = "github.com/Shopify/toxiproxy/v2/cmd/server"
GO_TCPPROXY = "github.com/inetaf/tcpproxy"
RUST = "0.4.1"


def _call(*argv: str, folder: Path = ROOT, **variables: str) -> None:
    """Runs a command whose output is of interest only if it fails."""
    if not shutil.which(argv[0]):
        raise BenchError(f"needs {argv[0]}")
    done = subprocess.run(
        argv,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise BenchError(
            f"{' '.join(argv[:3])} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:].strip()}"
        )


def toxiproxy() -> None:
    """toxiproxy's server: go install calls it `server`."""
    with tempfile.TemporaryDirectory(dir=HOME) as place:
        _call("go", "install", f"{TOXIPROXY}@latest", GOBIN=place)
        shutil.move(Path(place, "server"), BIN / "toxiproxy-server")


def go_tcpproxy() -> None:
    """Go's library, with the main function beside this file."""
    with tempfile.TemporaryDirectory(dir=HOME) as place:
        folder = Path(place)
        shutil.copy(Path(__file__).with_name("go_tcpproxy") / "main.go", folder)
        _call("go", "mod", "init", "go-tcpproxy", folder=folder)
        _call("go", "get", f"{GO_TCPPROXY}@latest", folder=folder)
        _call("go", "build", "-o", str(BIN / "go-tcpproxy"), folder=folder)


def _debian(program: str, *packages: str) -> Path:
    """Packages of Debian's newest suite, and a script that starts the program. Returns the folder with them."""
    sys.path.insert(0, str(ROOT / "tools"))
    foreign: Any = importlib.import_module("foreign")
    try:
        root: Path = foreign.unpacked(f"peer-{program}", *packages, architecture="amd64", suite="sid")
    except foreign.MissingError as missing:
        raise BenchError(str(missing)) from missing
    script = BIN / program
    script.write_text(f'#!/bin/sh\nexec {shlex.join(foreign.by_own_loader(root, f"usr/sbin/{program}"))} "$@"\n')
    script.chmod(0o755)
    return root


def haproxy() -> None:
    """HAProxy of Debian's newest suite."""
    _debian("haproxy", "haproxy")


def nginx() -> None:
    """nginx of Debian's newest suite; its modules are where it would not look."""
    modules = BIN / "nginx-modules"
    modules.unlink(missing_ok=True)
    modules.symlink_to(_debian("nginx", "nginx", "libnginx-mod-stream") / "usr" / "lib" / "nginx" / "modules")


def python() -> None:
    """portrelay and uvloop."""
    _call(sys.executable, "-m", "venv", str(VENV))
    _call(str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--upgrade", "portrelay", "uvloop")


def rust() -> None:
    """The original."""
    _call("cargo", "install", "-q", "tcpproxy", "--version", RUST, "--root", str(HOME))


STEPS: dict[str, Callable[[], None]] = {
    "rust": rust,
    "haproxy": haproxy,
    "nginx": nginx,
    "go-tcpproxy": go_tcpproxy,
    "portrelay, uvloop": python,
    "toxiproxy": toxiproxy,
}


def get() -> list[str]:
    """Gets what can be had. Returns a line for each peer."""
    BIN.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, step in STEPS.items():
        try:
            step()
            lines.append(f"{name}: got")
        except (BenchError, OSError) as error:
            lines.append(f"{name}: could not be had: {error}")
    return lines
