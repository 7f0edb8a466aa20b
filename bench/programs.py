"""Which peers there are: how each is found and which command starts it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.base import BenchError
from bench.peers import Command, Peer, Way

RUST = "0.4.1"


def said(argv: list[str]) -> str:
    """Returns what a command prints to either stream, or nothing when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def which(name: str) -> str | None:
    """Find a program also where a plain user's PATH does not look for servers."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def first(pattern: str, text: str) -> str:
    """Returns the first group of the first match."""
    match = re.search(pattern, text)
    return match[1] if match else "unknown"


def ours(*options: str) -> Command:
    """tcpproxy with these options; in them {directory} is a directory to write in."""

    def command(way: Way) -> list[str]:
        argv = [sys.executable, "-m", "tcpproxy", way.upstream, "-b", way.host, "-l", str(way.port)]
        return argv + [option.format(directory=way.directory) for option in options]

    return command


def find_rust() -> str | None:
    """Returns the path of the Rust tcpproxy; the name is ours too, so only a program of machine code counts."""
    names = [os.environ.get("TCPPROXY_RUST"), "tcpproxy-rust", "tcpproxy", "~/.cargo/bin/tcpproxy"]
    directories = os.environ.get("PATH", "").split(os.pathsep)
    for name in filter(None, names):
        for path in [Path(name).expanduser(), *(Path(d) / name for d in directories if d)]:
            with contextlib.suppress(OSError), path.open("rb") as program:
                if program.read(4) == b"\x7fELF" and RUST in said([str(path), "-V"]):
                    return str(path)
    return None


def _rust(program: str) -> Command:
    return lambda way: [program, way.upstream, "-b", way.host, "-l", str(way.port)]


def _haproxy(program: str, splice: bool) -> Command:
    def command(way: Way) -> list[str]:
        options = "option splice-request\n  option splice-response" if splice else ""
        config = way.directory / "haproxy.cfg"
        # maxpipes: its default, a quarter of maxconn, would ask for more descriptors than 9,000 connections leave over.
        config.write_text(
            f"global\n  maxconn {way.connections + 50}\n  maxpipes 50\n"
            f"defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n  {options}\n"
            f"listen relay\n  bind {way.host}:{way.port}\n  server upstream {way.upstream}\n"
        )
        return [program, "-db", "-q", "-f", str(config)]

    return command


def _nginx_module(told: str) -> str | None:
    """Returns the directive that gives nginx its stream module: empty if it is built in, None if there is none."""
    if "--with-stream=dynamic" not in told:
        return "" if "--with-stream" in told else None
    paths = re.findall(r"--modules-path=(\S+)", told)
    for directory in [*paths, "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]:
        module = Path(directory) / "ngx_stream_module.so"
        if module.exists():
            return f"load_module {module};\n"
    return None


def _nginx(program: str, load_module: str) -> Command:
    def command(way: Way) -> list[str]:
        config = way.directory / "nginx.conf"
        server = f"listen {way.host}:{way.port}; proxy_pass {way.upstream}; proxy_timeout 1h;"
        config.write_text(
            f"{load_module}daemon off;\nworker_processes auto;\npid {way.directory}/nginx.pid;\n"
            f"error_log stderr crit;\nevents {{ worker_connections {2 * way.connections + 200}; }}\n"
            f"stream {{ server {{ {server} }} }}\n"
        )
        return [program, "-e", "stderr", "-p", str(way.directory), "-c", str(config)]

    return command


def socat(program: str, *options: str) -> Command:
    """A socat with these options, which forks for each connection."""
    return lambda way: [
        program,
        *options,
        f"TCP-LISTEN:{way.port},bind={way.host},reuseaddr,fork,backlog=1024",
        f"TCP:{way.upstream}",
    ]


def _uvloop(way: Way) -> list[str]:
    script = str(Path(__file__).with_name("asyncio_relay.py"))
    return [sys.executable, script, way.host, str(way.port), way.upstream_host, str(way.upstream_port)]


def find() -> tuple[list[Peer], dict[str, str]]:
    """Returns the peers that are installed, direct and ours first, and for each that is not, how to get it."""
    version = said([sys.executable, "-m", "tcpproxy", "--version"])
    if not version.startswith("tcpproxy "):
        raise BenchError(f"tcpproxy does not run with {sys.executable}: {version.strip()[-300:]}")
    peers = [Peer("direct", "no proxy"), Peer("ours", version.split()[1], ours())]
    missing = {}
    if rust := find_rust():
        peers.append(Peer("rust", RUST, _rust(rust)))
    else:
        missing["rust"] = f"cargo install tcpproxy --version {RUST} --root DIR; TCPPROXY_RUST=DIR/bin/tcpproxy"
    if haproxy := which("haproxy"):
        number = first(r"version (\S+)", said([haproxy, "-v"]))
        peers.append(Peer("haproxy", number, _haproxy(haproxy, splice=False)))
        peers.append(Peer("haproxy-splice", number, _haproxy(haproxy, splice=True)))
    else:
        missing["haproxy"] = "apt-get install haproxy"
    nginx = which("nginx")
    told = said([nginx, "-V"]) if nginx else ""
    module = _nginx_module(told)
    if nginx and module is not None:
        peers.append(Peer("nginx", first(r"nginx/(\S+)", told), _nginx(nginx, module)))
    else:
        missing["nginx"] = "apt-get install nginx-light libnginx-mod-stream"
    if program := which("socat"):
        number = first(r"version (\S+)", said([program, "-V"]))
        peers.append(Peer("socat", number, socat(program), forks=True))
        peers.append(Peer("socat-x", "", socat(program, "-x"), forks=True, special=True))
    else:
        missing["socat"] = "apt-get install socat"
    number = said([sys.executable, "-c", "import uvloop; print(uvloop.__version__)"]).strip()
    if number and "Error" not in number:
        peers.append(Peer("asyncio-uvloop", number, _uvloop))
    else:
        missing["asyncio-uvloop"] = f"{sys.executable} -m pip install uvloop"
    peers.append(Peer("click", "", special=True))
    return peers, missing
