"""How many processors a process may use: by its affinity and by the quotas of its control groups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpproxy.processors import cpu_quota, usable_cpus

V1 = "sys/fs/cgroup/cpu"
V2 = "sys/fs/cgroup"
BOTH = "sys/fs/cgroup/cpu,cpuacct"
HYBRID = "sys/fs/cgroup/unified"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        pytest.param("0::/a/b", {f"{V2}/a/b/cpu.max": "50000 100000"}, 0.5, id="v2"),
        pytest.param("0::/a/b", {f"{V2}/a/b/cpu.max": "max 100000"}, None, id="v2, none"),
        pytest.param("0::/a/b", {f"{V2}/a/cpu.max": "150 100", f"{V2}/a/b/cpu.max": "max 100"}, 1.5, id="parent"),
        pytest.param("0::/a/b", {f"{V2}/a/cpu.max": "10 100", f"{V2}/a/b/cpu.max": "400 100"}, 0.1, id="least"),
        pytest.param("0::/", {f"{V2}/cpu.max": "200000 100000"}, 2.0, id="v2, container"),
        pytest.param("0::/a", {f"{HYBRID}/a/cpu.max": "300000 100000"}, 3.0, id="v2, hybrid"),
        pytest.param(
            "4:cpu,cpuacct:/x\n0::/",
            {f"{V1}/x/cpu.cfs_quota_us": "25000", f"{V1}/x/cpu.cfs_period_us": "50000"},
            0.5,
            id="v1",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/0123",
            {
                f"{BOTH}/cpu.cfs_quota_us": "70000",
                f"{BOTH}/cpu.cfs_period_us": "100000",
            },
            0.7,
            id="v1, container",
        ),
        pytest.param(
            "4:cpu:/x", {f"{V1}/x/cpu.cfs_quota_us": "-1", f"{V1}/x/cpu.cfs_period_us": "100000"}, None, id="v1, none"
        ),
        pytest.param("3:cpuset:/x", {"sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us": "1"}, None, id="another controller"),
        pytest.param("4:cpu:/x", {f"{V1}/x/cpu.cfs_quota_us": "50000"}, None, id="no period"),
        pytest.param("4:cpu:/x", {f"{V1}/x/cpu.cfs_quota_us": "5", f"{V1}/x/cpu.cfs_period_us": "0"}, None, id="zero"),
        pytest.param("0::/a", {f"{V2}/a/cpu.max": ""}, None, id="empty"),
        pytest.param("0::/a", {f"{V2}/a/cpu.max": "many few"}, None, id="no numbers"),
        pytest.param("rubbish\n0::/a", {f"{V2}/a/cpu.max": "100000 100000"}, 1.0, id="rubbish beside"),
        pytest.param("", {}, None, id="no group"),
        pytest.param(None, {}, None, id="no proc"),
    ],
)
def test_quota(tmp_path: Path, groups: str | None, files: dict[str, str], quota: float | None) -> None:
    if groups is not None:
        files = {**files, "proc/self/cgroup": f"{groups}\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(str(tmp_path)) == quota


@pytest.mark.parametrize(
    ("quota", "cpus"), [(None, 8), (0.01, 1), (0.5, 1), (1.0, 1), (1.5, 2), (7.9, 8), (64.0, 8)], ids=str
)
def test_cpus(monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int) -> None:
    monkeypatch.setattr("tcpproxy.processors.cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert usable_cpus() == cpus


@pytest.fixture
def half_a_processor() -> Iterator[Path]:
    """A control group of the test's own, with a quota of half a processor."""
    if sys.platform != "linux":  # under wine there is the folder, but a process has another number
        pytest.skip("no control groups")
    for folder, files in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": "50000 100000"}),
    ):
        group = folder / f"tcpproxy-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                for name, text in files.items():
                    (group / name).write_text(text)
            except OSError:
                group.rmdir()
                continue
            yield group
            group.rmdir()
            return
    pytest.skip("needs the right to make a control group with a quota")


def test_a_real_quota(half_a_processor: Path) -> None:
    """A process in such a group has one worker, and does not poll."""
    code = f"""if True:
        import os
        open({str(half_a_processor / "cgroup.procs")!r}, "w").write(str(os.getpid()))
        from tcpproxy.processors import cpu_quota, usable_cpus
        print(cpu_quota(), usable_cpus())
        from tcpproxy.config.config import Config
        print(Config.for_command("localhost:1", {{}}).operating.workers)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.split() == ["0.5", "1", "1"]
