"""When a worker that moves bulk lets others go first: b(ulk), s(teady), l(ast to be woken)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

MUCH, LITTLE = 1 << 20, 106
SAMPLE = 128 * MUCH
TURN_NS = 50_000


@pytest.fixture(autouse=True)
def own_policy() -> Iterator[None]:
    """Of this thread, as it was, whatever a test leaves behind."""
    yield
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Worker:
    """Moves bytes in batches, beside others that move `others` times as many."""

    def __init__(self, door: ModuleType) -> None:
        self.bulk: Any = door.BulkDoor()
        self.now_ns = 1_000_000_000
        self.others = self.everybody = 0

    def batch(self, moved: int, turn_ns: int = TURN_NS, *, bulk_only: bool = True) -> str:
        self.now_ns += turn_ns
        self.everybody += moved * (1 + self.others)
        if self.bulk.count(moved, self.now_ns, bulk_only=bulk_only):
            self.bulk.judge(self.everybody)
        return str(self.bulk.state)

    def until(self, state: str, turn_ns: int = TURN_NS) -> int:
        """Bytes of bulk until then."""
        moved = MUCH
        while self.batch(MUCH, turn_ns) != state:
            moved += MUCH
            assert moved < 100 * SAMPLE, f"it stays {self.bulk.state}"
        return moved

    def work(self) -> None:
        """Processor time that a batch takes."""
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass


@pytest.mark.parametrize(("moved", "batches"), [(MUCH, 5), (MUCH // 8, 5), (MUCH // 16, 11)])
def test_steady_bulk(door: ModuleType, moved: int, batches: int) -> None:
    """After some batches with many bytes."""
    worker = Worker(door)
    assert worker.batch(moved, door.OVER) == "b"  # after the start, or a pause
    assert [worker.batch(moved) for _ in range(batches)] == ["b"] * (batches - 1) + ["bs"]


def test_a_batch_without_bytes_says_nothing(door: ModuleType) -> None:
    worker = Worker(door)
    worker.until("bs")
    assert worker.batch(0) == "bs"
    assert worker.batch(0, door.OVER - 2 * TURN_NS) == "bs"


def test_few_bytes_now_and_then(door: ModuleType) -> None:
    """Segments are not as long as what is sent at a time: every second batch of bulk may be small."""
    worker = Worker(door)
    worker.until("bs")
    # Less than a sample: the trial would end it where there is no SCHED_BATCH to try.
    assert all("s" in worker.batch(moved) for moved in [LITTLE, MUCH] * 100)


def test_many_bytes_now_and_then(door: ModuleType) -> None:
    worker = Worker(door)
    worker.until("bs")
    states = [worker.batch(moved) for moved in ([LITTLE] * 7 + [MUCH]) * 10]
    assert not any("s" in state for state in states[-8:])


def test_few_bytes_alone(door: ModuleType) -> None:
    worker = Worker(door)
    assert {worker.batch(LITTLE) for _ in range(100)} == {""}


@pytest.mark.skipif(sys.platform != "linux", reason="another system has no SCHED_BATCH")
class TestLast:
    """The thread's policy, and what decides on it."""

    @pytest.mark.parametrize(
        ("turns", "others", "stays"),
        [(1, 0, True), (2, 0, False), (1, 1, True), (2, 1, False), (2, 3, True)],
    )
    def test_it_is_tried(self, door: ModuleType, turns: int, others: int, stays: bool) -> None:
        """It stays if it saves processor time, and all workers together move as much."""
        worker = Worker(door)
        worker.others = min(others, 1)
        worker.until("bs")
        worker.work()
        assert worker.until("bsl") == SAMPLE
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        worker.others = others
        states = [worker.batch(MUCH, turns * TURN_NS) for _ in range(SAMPLE // MUCH)]
        assert states == ["bsl"] * (len(states) - 1) + ["bsl" if stays else "bs"]
        assert os.sched_getscheduler(0) == (os.SCHED_BATCH if stays else os.SCHED_OTHER)

    def test_it_saves_nothing(self, door: ModuleType) -> None:
        worker = Worker(door)
        worker.until("bsl")
        worker.work()
        assert worker.until("bs") == SAMPLE

    def test_a_conversation_ends_it(self, door: ModuleType) -> None:
        worker = Worker(door)
        worker.until("bsl")
        assert worker.batch(MUCH, bulk_only=False) == "b"
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        assert worker.until("bsl") == 5 * MUCH  # and the sample of the held arm starts again

    def test_a_pause_ends_it(self, door: ModuleType) -> None:
        worker = Worker(door)
        worker.until("bsl")
        assert worker.batch(0, door.OVER) == "b"
        assert os.sched_getscheduler(0) == os.SCHED_OTHER

    def test_a_policy_that_somebody_has_chosen(self, door: ModuleType) -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        worker = Worker(door)
        assert "bsl" not in {worker.batch(MUCH) for _ in range(1000)}
        assert worker.batch(MUCH, bulk_only=False) == "b"
        assert os.sched_getscheduler(0) == os.SCHED_BATCH

    def test_a_policy_that_somebody_chooses_meanwhile(self, door: ModuleType) -> None:
        worker = Worker(door)
        worker.until("bsl")
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        assert worker.batch(MUCH, bulk_only=False) == "b"
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
        assert "bsl" not in {worker.batch(MUCH) for _ in range(1000)}
