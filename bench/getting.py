"""Getting the peers: `python -m bench --get` puts them into build/peers, beside the system, where programs.py looks.

Each comes by its own tool from where that gets it anyway: Go's, pip, cargo, apt. Nothing is installed in the system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.base import BenchError

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "peers"
BIN = HOME / "bin"
TOXIPROXY = "github.com/Shopify/toxiproxy/v2/cmd/server"


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


STEPS: dict[str, Callable[[], None]] = {"toxiproxy": toxiproxy}


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
