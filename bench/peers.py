"""The peers: how each is found, started in front of an upstream port, and ended."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure import cpu_seconds, settle
from bench.process import BenchError, free_port, spawn, wait_listening

RUST = "0.4.1"
STARTS = 3


@dataclass(frozen=True)
class Running:
    """A started peer: where to connect, and whose account to read; no process at all for the direct connection."""

    port: int
    pid: int | None = None

    def cpu(self) -> float:
        """Returns the CPU seconds used so far."""
        return cpu_seconds(self.pid) if self.pid else 0.0


@dataclass(frozen=True)
class Peer:
    """A way from client to upstream. `command` gives the argv for (port, upstream port, connections, directory)."""

    name: str
    version: str
    command: Callable[[int, int, int, Path], list[str]] | None = None
    forks: bool = False

    @contextlib.contextmanager
    def run(self, upstream: int, connections: int, scratch: Path) -> Iterator[Running]:
        """Runs the peer in front of `upstream`, ready for `connections` at one time, for the length of the block."""
        if self.command is None:
            yield Running(upstream)
            return
        with contextlib.ExitStack() as stack:
            yield self._start(stack, upstream, connections, scratch)

    def _start(self, stack: contextlib.ExitStack, upstream: int, connections: int, scratch: Path) -> Running:
        """Starts it on a free port; again if somebody else took the port in between."""
        assert self.command
        errors = scratch / "peer.err"
        for attempt in range(STARTS):
            port = free_port()
            argv = self.command(port, upstream, connections, scratch)
            process = stack.enter_context(spawn(argv, errors, stdout=subprocess.DEVNULL))
            try:
                wait_listening(process, port, errors)
            except BenchError:
                if attempt == STARTS - 1:
                    raise
                stack.close()
                continue
            settle(process.pid)
            return Running(port, process.pid)
        raise BenchError("not reached")


def _said(argv: list[str]) -> str:
    """Returns what a command prints to either stream, or nothing when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _which(name: str) -> str | None:
    """Find a program also where a plain user's PATH does not look for servers."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def ours(port: int, upstream: int, connections: int, scratch: Path) -> list[str]:
    """tcpproxy as it is, without any option but where to listen."""
    return [sys.executable, "-m", "tcpproxy", f"127.0.0.1:{upstream}", "-l", str(port)]


def find_rust() -> str | None:
    """Returns the path of the Rust tcpproxy; the name is ours too, so only a program of machine code counts."""
    names = [os.environ.get("TCPPROXY_RUST"), "tcpproxy-rust", "tcpproxy", "~/.cargo/bin/tcpproxy"]
    directories = os.environ.get("PATH", "").split(os.pathsep)
    for name in filter(None, names):
        for path in [Path(name).expanduser(), *(Path(d) / name for d in directories if d)]:
            with contextlib.suppress(OSError), path.open("rb") as program:
                if program.read(4) == b"\x7fELF" and RUST in _said([str(path), "-V"]):
                    return str(path)
    return None


def _haproxy(program: str, splice: bool) -> Callable[[int, int, int, Path], list[str]]:
    def command(port: int, upstream: int, connections: int, scratch: Path) -> list[str]:
        options = "option splice-request\n  option splice-response" if splice else ""
        config = scratch / "haproxy.cfg"
        # maxpipes: its default, a quarter of maxconn, would ask for more descriptors than 9,000 connections leave over.
        config.write_text(
            f"global\n  maxconn {connections + 50}\n  maxpipes 50\n"
            f"defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n  {options}\n"
            f"listen relay\n  bind 127.0.0.1:{port}\n  server upstream 127.0.0.1:{upstream}\n"
        )
        return [program, "-db", "-q", "-f", str(config)]

    return command


def _nginx_module(said: str) -> str | None:
    """Returns the directive that gives nginx its stream module: empty if it is built in, None if there is none."""
    if "--with-stream=dynamic" not in said:
        return "" if "--with-stream" in said else None
    told = re.findall(r"--modules-path=(\S+)", said)
    for directory in [*told, "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]:
        module = Path(directory) / "ngx_stream_module.so"
        if module.exists():
            return f"load_module {module};\n"
    return None


def _nginx(program: str, load_module: str) -> Callable[[int, int, int, Path], list[str]]:
    def command(port: int, upstream: int, connections: int, scratch: Path) -> list[str]:
        config = scratch / "nginx.conf"
        config.write_text(
            f"{load_module}daemon off;\nworker_processes auto;\npid {scratch}/nginx.pid;\nerror_log stderr crit;\n"
            f"events {{ worker_connections {2 * connections + 200}; }}\n"
            f"stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{upstream}; proxy_timeout 1h; }} }}\n"
        )
        return [program, "-e", "stderr", "-p", str(scratch), "-c", str(config)]

    return command


def _socat(program: str) -> Callable[[int, int, int, Path], list[str]]:
    return lambda port, upstream, connections, scratch: [
        program,
        f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024",
        f"TCP:127.0.0.1:{upstream}",
    ]


def _uvloop(port: int, upstream: int, connections: int, scratch: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("asyncio_relay.py")), str(port), str(upstream)]


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "unknown"


def find() -> tuple[list[Peer], dict[str, str]]:
    """Returns the peers that are installed, direct and ours first, and for each that is not, how to get it."""
    version = _said([sys.executable, "-m", "tcpproxy", "--version"])
    if not version.startswith("tcpproxy"):
        raise BenchError(f"tcpproxy does not run with {sys.executable}: {version.strip()[-300:]}")
    peers = [Peer("direct", "no proxy"), Peer("ours", version.split()[1], ours)]
    missing = {}
    if rust := find_rust():
        peers.append(
            Peer("rust", RUST, lambda port, up, _n, _d: [rust, f"127.0.0.1:{up}", "-b", "127.0.0.1", "-l", str(port)])
        )
    else:
        missing["rust"] = f"cargo install tcpproxy --version {RUST} --root DIR; TCPPROXY_RUST=DIR/bin/tcpproxy"
    if haproxy := _which("haproxy"):
        number = _first(r"version (\S+)", _said([haproxy, "-v"]))
        peers.append(Peer("haproxy", number, _haproxy(haproxy, splice=False)))
        peers.append(Peer("haproxy-splice", number, _haproxy(haproxy, splice=True)))
    else:
        missing["haproxy"] = "apt-get install haproxy"
    nginx = _which("nginx")
    said = _said([nginx, "-V"]) if nginx else ""
    module = _nginx_module(said)
    if nginx and module is not None:
        peers.append(Peer("nginx", _first(r"nginx/(\S+)", said), _nginx(nginx, module)))
    else:
        missing["nginx"] = "apt-get install nginx-light libnginx-mod-stream"
    if socat := _which("socat"):
        peers.append(Peer("socat", _first(r"version (\S+)", _said([socat, "-V"])), _socat(socat), forks=True))
    else:
        missing["socat"] = "apt-get install socat"
    if (
        number := _said([sys.executable, "-c", "import uvloop; print(uvloop.__version__)"]).strip()
    ) and "Error" not in number:
        peers.append(Peer("asyncio-uvloop", number, _uvloop))
    else:
        missing["asyncio-uvloop"] = f"{sys.executable} -m pip install uvloop"
    return peers, missing
