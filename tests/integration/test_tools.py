"""Well-known programs work through the command as they do without it, and it has nothing to complain about."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from support.command import Command
from support.machine import needs
from support.peers import Upstream
from support.servers import postgres_environment, postgres_program, postgres_server, redis_server, run, serve
from support.streams import MIB, payload, read_all
from support.waiting import TIMEOUT, in_background

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs of POSIX systems")


Through = Callable[[int], str]


@pytest.fixture(params=["direct", "command"])
def through(request: pytest.FixtureRequest, command: Callable[..., Command]) -> Iterator[Through]:
    """A way to the port of a server: the port itself, as control, or that of a command in front of it.

    Afterwards the command must end by itself, within its grace, and have written nothing to stderr.
    """
    commands: list[Command] = []

    def way(port: int) -> str:
        if request.param == "direct":
            return str(port)
        commands.append(command(f"127.0.0.1:{port}", "--workers", "2", "--quiet"))
        return str(commands[-1].address[1])

    yield way
    for it in commands:
        it.signal(signal.SIGTERM)
        assert it.wait() == 0
        assert it.complaints == []


# --- HTTP ---

NGINX = """
daemon off;
master_process off;
error_log stderr notice;
pid {folder}/pid;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/www;
        keepalive_requests 1000000;
    }}
}}
"""

PAGES = {"small": payload(200), "large": payload(48 * MIB), **{f"page{i}": payload(300_000, i) for i in range(10)}}


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web server with PAGES."""
    needs("nginx")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "www").mkdir()
    for name, content in PAGES.items():
        (folder / "www" / name).write_bytes(content)

    def argv(port: str) -> list[str]:
        (folder / "conf").write_text(NGINX.format(folder=folder, port=port))
        return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "conf")]

    with contextlib.ExitStack() as stack:
        yield serve(stack, argv, "event method")


def test_curl_one_large_file(nginx: int, through: Through, tmp_path: pathlib.Path) -> None:
    """Row 4: 48 MiB, exact, then an end of file."""
    needs("curl")
    url = f"http://127.0.0.1:{through(nginx)}/large"
    run("curl", "-sS", "--fail", "-H", "Connection: close", "-o", str(tmp_path / "got"), url)
    got = (tmp_path / "got").read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(PAGES["large"]).digest()


@pytest.mark.parametrize("options", [(), ("--parallel",)], ids=["one connection", "parallel"])
def test_curl_many_files(nginx: int, through: Through, tmp_path: pathlib.Path, options: tuple[str, ...]) -> None:
    """Several answers on one connection, or on several at once."""
    needs("curl")
    url = f"http://127.0.0.1:{through(nginx)}/page[0-9]"
    run("curl", "-sS", "--fail", *options, "-o", str(tmp_path / "got#1"), url)
    for i in range(10):
        assert (tmp_path / f"got{i}").read_bytes() == PAGES[f"page{i}"]


@pytest.mark.parametrize("header", ["Connection: keep-alive", "Connection: close"])
def test_wrk(nginx: int, through: Through, header: str) -> None:
    """Rows 9, 106: as fast as it goes for a second, over few connections and with one for each request."""
    needs("wrk")
    options = ("-t1", "-c20", "-d1s", "--timeout", "20s")  # a machine that stands still for two seconds is no error
    said = run("wrk", *options, "-H", header, f"http://127.0.0.1:{through(nginx)}/small")
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    requests = re.search(r"(\d+) requests in", said)
    assert requests, said
    assert int(requests[1]) > 20  # the connections: they go on, however slow the machine is


# --- Redis ---


@pytest.fixture(scope="module")
def redis() -> Iterator[int]:
    """The port of a Redis."""
    with contextlib.ExitStack() as stack:
        yield redis_server(stack)


@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_redis_benchmark(redis: int, through: Through, pipeline: str) -> None:
    """Row 33: questions and answers, one by one and many under way."""
    needs("redis-benchmark")
    tests = ["-t", "ping,set,get,lrange_100", "-n", "5000", "-d", "100", "-c", "20"]
    said = run("redis-benchmark", "-p", through(redis), *tests, "-P", pipeline, "--csv")
    assert not re.search("error|warn|refused|reset", said, re.IGNORECASE), said
    for name in ("PING_INLINE", "SET", "GET", "LRANGE_100"):
        assert f'"{name}' in said, said


# --- iperf3 ---


@pytest.mark.parametrize("way", ["", "-R", "--bidir"], ids=["up", "down", "both ways"])
def test_iperf3(stack: contextlib.ExitStack, through: Through, way: str) -> None:
    """Row 15: four streams for a second, each way alone and both at once."""
    needs("iperf3")
    port = serve(stack, lambda port: ["iperf3", "-s", "-1", "--forceflush", "-p", port], "Server listening")
    argv = ["iperf3", "-c", "127.0.0.1", "-p", through(port), "-P", "4", "-t", "1", "-J"]
    report = json.loads(run(*argv, *([way] if way else [])))
    assert "error" not in report
    sums = ["sum_received", "sum_received_bidir_reverse"] if way == "--bidir" else ["sum_received"]
    for name in sums:
        assert report["end"][name]["bytes"] > MIB


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """The port of a PostgreSQL with the tables of pgbench."""
    pgbench = postgres_program("pgbench")
    with contextlib.ExitStack() as stack:
        port = postgres_server(stack)
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        run(pgbench, *address, "-i", "-q", "postgres", env=postgres_environment())
        yield port


@pytest.mark.parametrize("options", [(), ("-C", "-S")], ids=["few connections", "one a transaction"])
def test_pgbench(postgres: int, through: Through, options: tuple[str, ...]) -> None:
    """Row 33: a hundred transactions, over four connections or with one for each."""
    address = ["-h", "127.0.0.1", "-p", through(postgres), "-U", "postgres"]
    clients = ["-n", "-c", "4", "-j", "2", "-t", "25", *options]
    said = run(postgres_program("pgbench"), *address, *clients, "postgres", env=postgres_environment())
    done = re.search(r"number of transactions actually processed: (\d+)", said)
    assert done, said
    assert int(done[1]) == 100
    assert not re.search(r"failed transactions: [1-9]|aborted|error", said), said


# --- netcat ---


def test_nc_ends_its_side_and_hears_the_answer(upstream: Upstream, through: Through) -> None:
    """Rows 1, 3: `nc -N` shuts its writing side behind its input; the answer of 5 MiB comes after that."""
    nc = shutil.which("nc.openbsd") or shutil.which("nc")
    if not nc or "-N" not in subprocess.run([nc, "-h"], capture_output=True, text=True, check=False).stderr:
        pytest.skip("needs OpenBSD's nc")
    question, answer = payload(3 * MIB, 1), payload(5 * MIB, 2)

    def serve_one() -> bytes:
        with upstream.accept() as connection:
            asked = read_all(connection)
            connection.sendall(answer)
            return asked

    with in_background(serve_one) as asked:
        argv = [nc, "-N", "127.0.0.1", through(upstream.port)]
        done = subprocess.run(argv, input=question, capture_output=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert asked == [question]
    assert done.stdout == answer
