"""What all measurements share: where client, proxy and upstream run, the load generator, and how much time there is."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMORY = Path("/dev/shm")


class BenchError(Exception):
    """A measurement that could not be made; the run goes on without it."""


@dataclass(frozen=True)
class Place:
    """Where client, proxy and upstream run: what their commands begin with, and the addresses of the latter two."""

    client: tuple[str, ...] = ()
    proxy: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()
    proxy_address: str = "127.0.0.1"
    upstream_address: str = "127.0.0.1"


@dataclass(frozen=True)
class Bench:
    """What all cases need: the compiled programs, a directory to write in, how much time there is, and the place."""

    programs: Path
    scratch: Path
    quick: bool
    connections: int
    place: Place = Place()

    @property
    def load(self) -> Path:
        """The load generator."""
        return self.programs / "load"

    def seconds(self, full: float, quick: float) -> float:
        """Returns how long a measurement takes."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def in_memory(self) -> Iterator[Bench]:
        """Yields this bench with a directory whose files are in memory, so that no disk has a part in the figures."""
        if not MEMORY.is_dir():
            raise BenchError(f"needs a tmpfs at {MEMORY}")
        with tempfile.TemporaryDirectory(prefix="tcpproxy-bench-", dir=MEMORY) as directory:
            yield dataclasses.replace(self, scratch=Path(directory))
