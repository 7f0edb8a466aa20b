"""Which peers there are: how each is found and which command starts it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.base import BenchError
from bench.getting import BIN, RUST, VENV
from bench.peers import Command, Peer, Way
from bench.targets import BARE_SPLICE

GET = "python -m bench --get"


def said(argv: list[str]) -> str:
    """Returns what a command prints to either stream, or nothing when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def which(name: str) -> str | None:
    """Find a program: what --get has got comes first; also where a plain user's PATH does not look for servers."""
    places = (str(BIN), None, "/usr/local/sbin:/usr/sbin:/sbin")
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)


def go_module(program: str, name: str) -> str | None:
    """Returns the version of a module in a program of Go's."""
    match = re.search(rf"\s(?:mod|dep)\s+\S*{name}\S*\s+v?(\d\S*)", said(["go", "version", "-m", program]))
    return match[1] if match else None


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
    names = [
        os.environ.get("TCPPROXY_RUST"),
        str(BIN / "tcpproxy"),
        "tcpproxy-rust",
        "tcpproxy",
        "~/.cargo/bin/tcpproxy",
    ]
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


def _nginx_module(program: str, told: str) -> str | None:
    """Returns the directive that gives nginx its stream module: empty if it is built in, None if there is none."""
    if "--with-stream=dynamic" not in told:
        return "" if "--with-stream" in told else None
    paths = re.findall(r"--modules-path=(\S+)", told)
    for directory in [
        *([BIN / "nginx-modules"] if Path(program).parent == BIN else []),
        *paths,
        "/usr/lib/nginx/modules",
        "/usr/lib64/nginx/modules",
    ]:
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


def _bare(*options: str) -> Command:
    """The relay of bare.c."""

    def command(way: Way) -> list[str]:
        words = [way.host, str(way.port), way.upstream_host, str(way.upstream_port)]
        return [str(way.programs / "bare"), *words, *options]

    return command


def socat(program: str, *options: str) -> Command:
    """A socat with these options, which forks for each connection."""
    return lambda way: [
        program,
        *options,
        f"TCP-LISTEN:{way.port},bind={way.host},reuseaddr,fork,backlog=1024",
        f"TCP:{way.upstream}",
    ]


def _portrelay(program: str, *options: str) -> Command:
    def command(way: Way) -> list[str]:
        most = str(way.connections + 50)
        limits = ["--max-connections", most, "--max-connecting", most]
        return [program, "serve", "--listen", f"{way.host}:{way.port}", "--target", way.upstream, *limits, *options]

    return command


def _uvloop(python: str) -> Command:
    script = str(Path(__file__).with_name("asyncio_relay.py"))
    return lambda way: [python, script, way.host, str(way.port), way.upstream_host, str(way.upstream_port)]


def _find_rust() -> list[Peer]:
    program = find_rust()
    return [Peer("rust", RUST, _rust(program))] if program else []


def _find_haproxy() -> list[Peer]:
    if not (program := which("haproxy")):
        return []
    version = first(r"version (\S+)", said([program, "-v"]))
    ways = {"haproxy": False, "haproxy-splice": True}
    return [Peer(name, version, _haproxy(program, splice)) for name, splice in ways.items()]


def _find_nginx() -> list[Peer]:
    program = which("nginx")
    told = said([program, "-V"]) if program else ""
    module = _nginx_module(program, told) if program else None
    if not program or module is None:
        return []
    return [Peer("nginx", first(r"nginx/(\S+)", told), _nginx(program, module))]


def _find_go_tcpproxy() -> list[Peer]:
    if not (program := which("go-tcpproxy")):
        return []
    command: Command = lambda way: [program, f"{way.host}:{way.port}", way.upstream]  # noqa: E731
    return [Peer("go-tcpproxy", go_module(program, "tcpproxy") or "unknown", command)]


def _find_portrelay() -> list[Peer]:
    if not (program := which("portrelay") or shutil.which("portrelay", path=VENV / "bin")):
        return []
    version = first(r"portrelay (\S+)", said([program, "--version"]))
    ways: dict[str, list[str]] = {"portrelay": [], "portrelay-splice": ["--forward-mode", "splice"]}
    return [Peer(name, version, _portrelay(program, *options)) for name, options in ways.items()]


def _find_socat() -> list[Peer]:
    if not (program := which("socat")):
        return []
    version = first(r"version (\S+)", said([program, "-V"]))
    return [
        Peer("socat", version, socat(program), forks=True),
        Peer("socat-x", "", socat(program, "-x"), forks=True, special=True),
    ]


def _find_uvloop() -> list[Peer]:
    for python in (sys.executable, str(VENV / "bin" / "python")):
        version = said([python, "-c", "import uvloop; print(uvloop.__version__)"]).strip()
        if version and "Error" not in version:
            return [Peer("asyncio-uvloop", version, _uvloop(python))]
    return []


FINDERS: dict[str, tuple[Callable[[], list[Peer]], str]] = {
    "rust": (_find_rust, f"{GET} (needs cargo)"),
    "haproxy": (_find_haproxy, f"{GET}, or apt-get install haproxy"),
    "nginx": (_find_nginx, f"{GET}, or apt-get install nginx-light libnginx-mod-stream"),
    "go-tcpproxy": (_find_go_tcpproxy, f"{GET} (needs Go)"),
    "portrelay": (_find_portrelay, GET),
    "socat": (_find_socat, "apt-get install socat"),
    "asyncio-uvloop": (_find_uvloop, f"{GET}, or {sys.executable} -m pip install uvloop"),
}
"""How each peer is found, and what gets it."""


SPECIAL = (
    Peer("bare", "", _bare(), special=True),
    Peer("bare-poll", "", _bare("asking"), special=True, asking=True),
    Peer(BARE_SPLICE, "", _bare("splicing"), special=True),
    Peer("ours-1-worker", "", ours("--workers", "1"), special=True),
    Peer("ours-quiet", "", ours("--quiet"), special=True),
    Peer("click", "", special=True),
)
"""What there always is, for the cases that name it."""


def find() -> tuple[list[Peer], dict[str, str]]:
    """Returns the peers that are installed, direct and ours first, and for each that is not, how to get it."""
    version = said([sys.executable, "-m", "tcpproxy", "--version"])
    if not version.startswith("tcpproxy "):
        raise BenchError(f"tcpproxy does not run with {sys.executable}: {version.strip()[-300:]}")
    peers, missing = [Peer("direct", "no proxy"), Peer("ours", version.split()[1], ours())], {}
    for name, (finder, how) in FINDERS.items():
        if not (found := finder()):
            missing[name] = how
        peers += found
    return [*peers, *SPECIAL], missing
