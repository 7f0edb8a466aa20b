"""How many descriptors the process may have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tcpproxy._core.worker import LIMITS
from tcpproxy.config.config import Config
from tcpproxy.network.limits import connection_limit

SCRIPT = """
import resource
from tcpproxy.network.limits import raise_descriptor_limit

most, soft = {most}, {soft}
real, kept = resource.setrlimit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def setrlimit(which, limits):
    if limits[0] > most or limits[0] == kept:
        raise ValueError("current limit exceeds maximum limit")
    real(which, limits)

resource.setrlimit(resource.RLIMIT_NOFILE, (soft, kept))
resource.setrlimit = setrlimit
raise_descriptor_limit()
now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert hard == kept
print(now)
"""


@pytest.mark.parametrize(
    ("most", "soft", "expected"),
    [(10240, 256, 10240), (20000, 256, 16384), (9000, 256, 256), (16384, 12000, 16384), (11000, 10240, 10240)],
)
def test_a_system_that_refuses_its_own_hard_limit(most: int, soft: int, expected: int) -> None:
    """Row 57: as macOS does, with the number that this machine's kernel allows; nothing is ever lowered."""
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard <= 16384:
        pytest.skip(f"only {hard} open files are allowed")
    script = SCRIPT.format(most=most, soft=soft)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert int(done.stdout) == expected


@pytest.mark.parametrize("soft", [1_073_741_816, 1 << 20, 2_000_200, (1 << 63) - 2])
def test_more_descriptors_than_anybody_needs(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    """Row 64: as in a Docker container. No table is made for half a billion connections."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    limit, warning = connection_limit(Config.make("127.0.0.1:80", max_connections_per_source=4))
    assert soft // 2 - 200 <= limit <= soft // 2 or limit == LIMITS["connections"]
    assert limit <= LIMITS["connections"]
    assert warning == ""
