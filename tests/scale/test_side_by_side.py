"""What 1, 2 and 4 relays carry behind the kernel's own balancing: prints the figures.

pytest tests/scale/test_side_by_side.py -s -m timed
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import RELAYS, Cluster
from networks import Namespace
from support.command import Command
from support.machine import needs

LOAD = Path(__file__).parents[2] / "bench" / "load.c"
SECONDS, CONNECTIONS, ROUNDS = 2, 1500, 3  # fewer connections than ports: each keeps its port for a minute


@contextlib.contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program that ends when its standard input does, or is ended."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timed
@pytest.mark.timeout(300)
def test_what_they_carry(namespaces: Callable[[], Namespace], command: Callable[..., Command], tmp_path: Path) -> None:
    """Bulk of eight streams, and short connections, eight at a time; medians, the numbers of relays in turn."""
    needs("iperf3")
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    load = str(tmp_path / "load")
    subprocess.run([compiler, "-O2", "-pthread", "-o", load, str(LOAD), "-lm"], check=True)
    cluster = Cluster(namespaces, command)
    here, there = cluster.balancer.wrapper, cluster.clients.wrapper
    bulk: dict[int, list[float]] = {count: [] for count in (1, 2, RELAYS)}
    rates: dict[int, list[float]] = {count: [] for count in bulk}
    with (
        running(*here, load, "serve", cluster.address) as echo,
        running(*here, "iperf3", "-s", "-B", cluster.address, "-p", "5201", "--forceflush") as sink,
    ):
        assert echo.stdout
        assert sink.stdout
        while "listening" not in sink.stdout.readline():
            pass
        port = json.loads(echo.stdout.readline())["port"]
        cluster.start({5432: f"{cluster.address}:{port}", 5202: f"{cluster.address}:5201"})
        for _ in range(ROUNDS):
            for count in bulk:
                cluster.balance(*range(count))
                argv = [*there, "iperf3", "-c", cluster.address, "-p", "5202", "-P", "8", "-t", str(SECONDS), "-J"]
                said = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
                bulk[count].append(said["end"]["sum_received"]["bits_per_second"] / 1e9)
                argv = [*there, load, "conn", cluster.address, "5432", str(CONNECTIONS), "8"]
                said = json.loads(
                    subprocess.run(argv, check=True, capture_output=True, text=True, input="go\n").stdout.split("\n")[1]
                )
                rates[count].append(said["rate"])
    for count in bulk:
        figures = f"{statistics.median(bulk[count]):.1f} Gbit/s, {statistics.median(rates[count]):,.0f} connections/s"
        print(f"\n{count} relays: {figures}", end="")
