"""`python -m bench --case off [COMMIT]`: what a unit of work takes, beside a commit, and what each feature adds."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import units
from bench.base import Bench, BenchError
from bench.counting import Build, Calls, Feature, Instructions, callgrind, strace
from bench.machine import commit_here

UNITS = {
    "round trip": (units.round_trip, 100),
    "connection": (units.connection, 20),
    "megabyte": (units.megabyte, 6),
    "scrape": (units.scrape, 3),
}
"""Each with how many make a window."""

WINDOWS, QUICK_WINDOWS = 12, 4
MOST = 1.01

OFF = Feature("off")
COPYING = Feature("off, --zero-copy off", ("--zero-copy", "off"), units=("megabyte",))

MANY_NETWORKS = [",".join(f"10.{n >> 8}.{n & 255}.0/25" for n in range(first, 10000, 2)) for first in (0, 1)]
"""10,000 networks that do not touch; an argument may have 128 KiB at most, so there are two."""

FEATURES = (
    Feature("--capture", ("--capture", "{directory}/capture.pcapng")),
    Feature("record=", library=("record=1GiB",)),
    Feature("-x", ("-x",)),
    Feature("--fault latency=1ms", ("--fault", "both:latency=1ms")),
    Feature("--fault bandwidth=1GB/s", ("--fault", "both:bandwidth=1GB/s")),
    Feature("--allow", ("--allow", "127.0.0.0/8")),
    Feature("--deny, 10,000 networks", ("--deny", MANY_NETWORKS[0], "--deny", MANY_NETWORKS[1])),
    Feature("--max-rate 10GB/s", ("--max-rate", "10GB/s")),
    Feature("--send-proxy v2", ("--send-proxy", "v2"), header=28),
    Feature("--metrics", ("--metrics", "127.0.0.1:{port}"), units=(*OFF.units, "scrape")),
)
"""What may be on: a line for each."""


@dataclass(frozen=True)
class Row:
    """What a unit takes: instructions and system calls, of the worker's thread and of all."""

    what: str
    unit: str
    instructions: float
    all_instructions: float
    calls: float
    all_calls: float


def lower_quartile(figures: list[float]) -> float:
    """Returns the figure with a quarter of the others below it.

    Most windows are alike. In a few, events have fallen together and something was done once for two, or callgrind
    woke a thread that slept; neither the least nor the middle one repeats as well.
    """
    return sorted(figures)[len(figures) // 4]


def _counted(counter: Instructions | Calls, unit: str, windows: int) -> tuple[float, float]:
    work, times = UNITS[unit]
    with work(counter.stage) as once:
        for _ in range(3):
            once()
        counts = [counter.count(once, times) for _ in range(windows)]
    return lower_quartile([worker for worker, _ in counts]), lower_quartile([every for _, every in counts])


def count(bench: Bench, build: Build, feature: Feature) -> list[Row]:
    """Returns a row for each of the feature's units."""
    windows = QUICK_WINDOWS if bench.quick else WINDOWS
    what = feature.name if build.commit is None else f"{feature.name}, at {build.commit}"
    with bench.in_memory() as inside:
        with callgrind(inside, build, feature) as counter:
            instructions = [_counted(counter, unit, windows) for unit in feature.units]
        with strace(inside, build, feature) as traced:
            calls = [_counted(traced, unit, windows) for unit in feature.units]
    return [Row(what, unit, *one, *other) for unit, one, other in zip(feature.units, instructions, calls, strict=True)]


@contextlib.contextmanager
def built(commit: str, scratch: Path) -> Iterator[Build]:
    """Yields the commit, installed in an environment of its own from a worktree of its own."""
    root, tree, environment = Path(__file__).resolve().parents[1], scratch / "tree", scratch / "venv"

    def call(*argv: str) -> str:
        done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(argv[:3])}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    short = call("git", "rev-parse", "--short", "--verify", f"{commit}^{{commit}}")
    call("git", "worktree", "add", "--detach", str(tree), short)
    try:
        call(sys.executable, "-m", "venv", str(environment))
        python = str(environment / "bin" / "python")
        call(python, "-m", "pip", "install", "-q", str(tree))
        yield Build(python, short)
    finally:
        call("git", "worktree", "remove", "--force", str(tree))


def _ratio(one: float, other: float | None) -> str:
    return f"{one / other:.3f}" if other else "-"


def markdown(rows: list[Row], before: list[Row]) -> str:
    """Returns the table, and whether the targets are met: `before` are the rows of the commit."""
    then = {(row.what.partition(", at ")[0], row.unit): row for row in before}
    off = {row.unit: row for row in rows if row.what == OFF.name}
    head = ["", "unit", "instructions", "of all threads", "ratio", "system calls", "of all threads", "ratio"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "--:|" * 6]
    verdicts = []
    for row in [*before, *rows]:
        reference = then.get((row.what, row.unit))
        if reference:
            ratios = [_ratio(row.instructions, reference.instructions), _ratio(row.calls, reference.calls)]
            for name, ratio in zip(("instructions", "system calls"), ratios, strict=True):
                met = "met" if float(ratio) <= MOST else "**MISSED**"
                verdicts.append(f"- {met}: {row.what}: {name} a {row.unit} <= {MOST} x the commit's; is {ratio}")
        elif row in before or not (plain := off.get(row.unit)) or row is plain:
            ratios = ["-", "-"]
        else:
            ratios = [_ratio(row.all_instructions, plain.all_instructions), _ratio(row.all_calls, plain.all_calls)]
        cells = [f"{row.instructions:,.0f}", f"{row.all_instructions:,.0f}", ratios[0]]
        cells += [f"{row.calls:.2f}", f"{row.all_calls:.2f}", ratios[1]]
        lines.append(f"| {row.what} | {row.unit} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts])


def run(bench: Bench, commit: str | None, file: Path | None) -> None:
    """Counts, prints the table, and writes the JSON."""
    for tool in ("valgrind", "strace", "git"):
        if not shutil.which(tool):
            raise BenchError(f"needs {tool} (apt-get install {tool})")
    before: list[Row] = []
    rows: list[Row] = []

    def take(into: list[Row], build: Build, feature: Feature) -> None:
        try:
            into += count(bench, build, feature)
            for row in into[-len(feature.units) :]:
                print(f"{row.what}, {row.unit}: {row.instructions:.0f}, {row.calls:.2f}", file=sys.stderr, flush=True)
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            print(f"{feature.name}: FAILED: {error}", file=sys.stderr, flush=True)

    if commit:
        with built(commit, bench.scratch) as build:
            for feature in (OFF, COPYING):
                take(before, build, feature)
    for feature in (OFF, COPYING, *FEATURES):
        take(rows, Build(sys.executable), feature)
    print(f"# What a unit of work takes\n\nCommit {commit_here()}.\n\n{markdown(rows, before)}")
    if file:
        file.write_text(json.dumps({"commit": commit_here(), "rows": [asdict(row) for row in before + rows]}, indent=1))
