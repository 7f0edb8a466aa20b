"""Where and with what a run was made, so that its figures can be read later."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.peers import Peer


def _output(*argv: str) -> str:
    """Returns the first line a command prints, or nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).partition("\n")[0].strip() if done.returncode == 0 else ""


def _field(path: str, name: str) -> str:
    """Returns the value of `name: value` in a file of /proc."""
    match = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return match[1] if match else "unknown"


def commit_here() -> str:
    """Returns the commit of the working tree, marked when it has changes."""
    commit = _output("git", "rev-parse", "HEAD") or "unknown"
    return f"{commit} with changes" if _output("git", "status", "--porcelain", "-uno") else commit


def describe(peers: list[Peer], skipped: dict[str, str]) -> dict[str, Any]:
    """Returns the head of the JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit_here(),
        "machine": {
            "cpu": _field("/proc/cpuinfo", "model name"),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
            "load": os.getloadavg()[0],
        },
        "kernel": platform.release(),
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "python": sys.version.split()[0],
        "versions": {peer.name: peer.version for peer in peers if peer.version},
        "tools": {
            "iperf3": _output("iperf3", "--version"),
            "strace": _output("strace", "-V"),
            "cc": _output("cc", "--version"),
        },
        "skipped": skipped,
    }
