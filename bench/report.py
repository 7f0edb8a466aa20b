"""The outcome of a run as JSON, as a table, and as a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.all_cases import CASES
from bench.svg import picture
from bench.targets import Case, Medians, best_peer, judge, ratio

SHORT = ("bulk1", "rtt", "rtt-slow", "connections", "pingpong-beside-bulk", "start")
"""Cases of the README's picture: in three tcpproxy was ahead when they were chosen, in three it was not."""

MARKS = {True: "met", False: "**MISSED**", None: "not judged"}


def ran(result: dict[str, Any]) -> list[tuple[Case, dict[str, Any]]]:
    """Returns the cases of the run with what they gave, in order."""
    return [(case, result["cases"][case.name]) for case in CASES if case.name in result["cases"]]


def judge_all(result: dict[str, Any]) -> None:
    """Add the verdicts on the targets to the result."""
    result["missed"], result["not_judged"] = [], []
    for case, outcome in ran(result):
        outcome["targets"] = [dataclasses.asdict(verdict) for verdict in judge(case, outcome["medians"])]
        for target in outcome["targets"]:
            if not target["met"]:
                result["not_judged" if target["met"] is None else "missed"].append(f"{case.name}: {target['text']}")


def _row(first: str, cells: list[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _ratio_rows(case: Case, results: Medians) -> list[str]:
    """Returns the rows of ours divided by the best peer's and by Rust's, for each metric."""
    best, rust = [], []
    for metric in case.metrics:
        peer = best_peer(metric, results)
        to_best, to_rust = ratio(metric, results, peer), ratio(metric, results, "rust")
        best.append(f"{to_best:.2f} ({peer})" if to_best is not None else "-")
        rust.append(f"{to_rust:.2f}" if to_rust is not None else "-")
    rows = [
        _row(f"*{case.name}*", [f"*ours / {name}*", *cells]) for name, cells in (("best peer", best), ("rust", rust))
    ]
    return [row for row, cells in zip(rows, (best, rust), strict=True) if set(cells) != {"-"}]


def _table(case: Case, outcome: dict[str, Any]) -> list[str]:
    """Returns the section of one case: a row for each peer, the ratios, the targets."""
    lines = [f"### {case.name}: {case.title}", ""]
    lines += [_row("case", ["peer", *(metric.label for metric in case.metrics)])]
    lines += ["|---|---|" + "--:|" * len(case.metrics)]
    missed = {target["of"] for target in outcome["targets"] if target["met"] is False}
    for peer, figures in outcome["medians"].items():
        cells = [f"{figures[m.key]:,.{m.digits}f}" if m.key in figures else "-" for m in case.metrics]
        name = ("**ours**" if peer == "ours" else peer) + (" (!)" if peer in missed else "")
        lines.append(_row(case.name, [name, *cells]))
    lines += [*_ratio_rows(case, outcome["medians"]), ""]
    for target in outcome["targets"]:
        value = "-" if target["value"] is None else f"{target['value']:.3g}"
        lines.append(f"- {MARKS[target['met']]}: {target['text']}; is {value}")
    lines += [f"- FAILED: {failure}" for failure in outcome["failed"]]
    return [*lines, ""]


def markdown(result: dict[str, Any]) -> str:
    """Returns the whole report; (!) marks a row of ours that missed a target."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "direct")
    kind = "a quick look, not a measurement" if result["quick"] else "medians"
    lines = [
        "# tcpproxy beside its peers",
        "",
        f"{result['date']}, commit {result['commit']}. {machine['cores']} cores of {machine['cpu']},"
        f" {machine['memory_mib']} MiB, Linux {result['kernel']}, TCP by {result['congestion_control']},"
        f" Python {result['python']},"
        f" load {machine['load']:.1f} at the start. {result['rounds']} interleaved rounds, {kind};"
        f" {result['seconds']} s in all. Versions: {versions}.",
        "",
    ]
    for case, outcome in ran(result):
        lines += _table(case, outcome)
    lines += [f"skipped {name}; to get it: {how}" for name, how in result["skipped"].items()]
    if result["not_judged"]:
        lines.append(f"targets not judged: {'; '.join(result['not_judged'])}")
    lines.append(f"targets missed: {'; '.join(result['missed']) or 'none'}")
    return "\n".join(lines)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes everything, every round's raw figures included."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def write_all(result: dict[str, Any], directory: Path, name: str) -> list[Path]:
    """Writes JSON, table, picture and the README's picture under one name; returns their paths."""
    directory.mkdir(exist_ok=True)
    paths = [directory / f"{name}{ending}" for ending in (".json", ".md", ".svg", "-short.svg")]
    write_json(result, paths[0])
    paths[1].write_text(markdown(result) + "\n")
    title = f"tcpproxy beside its peers · {result['machine']['cpu']} · Linux {result['kernel']} · {result['date'][:10]}"
    panels = {}
    for case, outcome in ran(result):
        metric = case.metrics[0]
        bars = {peer: figures[metric.key] for peer, figures in outcome["medians"].items() if metric.key in figures}
        better = "more" if metric.more_is_better else "less"
        panels[case.name] = f"{case.name}: {metric.label}, {better} is better", bars, metric.digits
    paths[2].write_text(picture(title, list(panels.values())))
    paths[3].write_text(picture(title, [panels[name] for name in SHORT if name in panels]))
    return paths
