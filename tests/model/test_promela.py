"""Every interleaving of one half with its peers, and of changes of faults with workers, by the model checker spin."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.machine import needs

RELAY, SWAP = (Path(__file__).with_name(f"{name}.pml") for name in ("relay", "swap"))
pytestmark = pytest.mark.timeout(300)  # some 3 million states: 6 s, and a minute on a busy machine

LOST, HUNG = "assertion violated", "acceptance cycle"


def check(folder: Path, *macros: str, claim: bool = True, model: Path = RELAY) -> str:
    """What the checker says: with the claim about liveness, or without it about safety and states without a way out."""
    needs("spin", "gcc")
    macro = [f"-D{name}" for name in macros if name]
    compiling = [] if claim else ["-DSAFETY", "-DNOCLAIM"]
    checking = ["-a", "-f"] if claim else []
    for argv in (
        ["spin", *macro, "-a", str(model)],
        ["gcc", "-O2", "-w", *compiling, "-o", "pan", "pan.c"],
        ["./pan", *checking, "-m100000"],
    ):
        ran = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout


def errors(report: str) -> int:
    found = re.search(r"errors: (\d+)", report)
    assert found, report
    assert "search depth too small" not in report
    return int(found[1])


@pytest.mark.parametrize("claim", [False, True], ids=["safety", "liveness"])
@pytest.mark.parametrize("tap", ["", "TAP"], ids=["alone", "tap"])
def test_no_interleaving_loses_a_byte_or_hangs(tap: str, claim: bool, tmp_path: Path) -> None:
    """Rows 10, 67, 68, 79, 82, 86, 87; and with a tap, which may have no room for what would be read."""
    report = check(tmp_path, tap, claim=claim)
    assert errors(report) == 0, report
    states = re.search(r"(\d+) states, stored", report)
    assert states
    assert int(states[1]) > 10_000
    assert re.search(r"unreached in proctype Half\n\s+\(0 of", report), report


@pytest.mark.parametrize(
    ("mistake", "symptom"),
    [("URGENT", HUNG), ("FULL", HUNG), ("EARLY", LOST), ("RESET", LOST), ("SIGNAL", HUNG)],
)
def test_mistakes_are_found(mistake: str, symptom: str, tmp_path: Path) -> None:
    """The same mistakes as in mutants.py, and that of a signal at an urgent mark."""
    report = check(tmp_path, mistake)
    assert errors(report) == 1
    assert symptom in report, report


@pytest.mark.parametrize(("mistake", "symptom"), [("ROOM", HUNG), ("BELL", HUNG), ("LATE", LOST)])
def test_mistakes_of_a_tap_are_found(mistake: str, symptom: str, tmp_path: Path) -> None:
    report = check(tmp_path, "TAP", mistake)
    assert errors(report) == 1
    assert symptom in report, report


def test_no_interleaving_of_a_change_leaves_a_connection_out(tmp_path: Path) -> None:
    """All connections have the faults of a change that has returned, and the memory of earlier ones is freed, once."""
    report = check(tmp_path, claim=False, model=SWAP)
    assert errors(report) == 0, report
    states = re.search(r"(\d+) states, stored", report)
    assert states
    assert int(states[1]) > 100_000
    assert report.count("(0 of") == 3, report  # no state of a process is unreached


@pytest.mark.parametrize("mistake", ["RELAYS", "ASK", "ACCEPT", "HOLD", "KEEP"])
def test_mistakes_of_a_change_are_found(mistake: str, tmp_path: Path) -> None:
    report = check(tmp_path, mistake, claim=False, model=SWAP)
    assert errors(report) == 1
    assert LOST in report, report
