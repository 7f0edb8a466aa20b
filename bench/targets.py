"""What a case measures and what it should reach: metrics, targets as ratios within one run, and the verdict on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, float]
Medians = dict[str, Figures]
NO_RIVALS = ("direct", "click", "ours")
"""What is no other proxy; nor is ours with an option, as in ours-capture."""

BARE = ("bare", "bare-poll")
"""The least that a relay can do, asleep and asking: no proxy either."""

BARE_SPLICE = "bare-splice"
"""The least that a relay can do in bulk."""

SAME_WAY = "that of bare going the same way"


@dataclass(frozen=True)
class Metric:
    """A figure of a case; `digits` are those after the point in the table."""

    key: str
    label: str
    more_is_better: bool = False
    digits: int = 1


@dataclass(frozen=True)
class Target:
    """Ours is at most (if more is better: at least) `limit`; `against` makes that a ratio to a peer or to the best.

    `of` is another one to be judged than ours; against SAME_WAY is against that of BARE which waits as ours does.
    """

    key: str
    limit: float
    against: str | None = None
    of: str = "ours"


@dataclass(frozen=True)
class Verdict:
    """A target, judged. `value` is None when what it needs was not measured."""

    text: str
    value: float | None
    met: bool | None
    of: str = "ours"


@dataclass(frozen=True)
class Case:
    """One comparison. `measure(bench, peer)` makes one round; the first metric is drawn.

    `only` names the peers that take part, `without` those that do not, `also` special ones that do. What its name
    begins with, up to a dash, is that of a group, if it is not that of another case.
    """

    name: str
    title: str
    measure: Callable[[Any, Any], Figures]
    metrics: tuple[Metric, ...]
    targets: tuple[Target, ...] = ()
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Returns its own name and those of its groups."""
        words = self.name.split("-")
        return ["-".join(words[: number + 1]) for number in range(len(words))]

    def called(self, name: str, single: bool) -> bool:
        """Whether it goes by a name: that of a single case, or of a group."""
        return name == self.name if single else name in self.names()

    def takes(self, name: str, special: bool) -> bool:
        """Whether a peer takes part; special ones do where they are named."""
        usual = name in self.only if self.only else not special
        return (usual or name in self.also) and name not in self.without

    def metric(self, key: str) -> Metric:
        """Returns the metric of that key."""
        return next(metric for metric in self.metrics if metric.key == key)


def medians(rounds: list[dict[str, Any]]) -> Medians:
    """Returns for each peer the median of each figure over its rounds."""
    peers: dict[str, list[Figures]] = {}
    for one in rounds:
        peers.setdefault(one["peer"], []).append(one["figures"])
    return {
        peer: {key: statistics.median(figures[key] for figures in many) for key in many[0]}
        for peer, many in peers.items()
    }


def _is_rival(peer: str) -> bool:
    return peer not in (*NO_RIVALS, *BARE, BARE_SPLICE) and not peer.startswith("ours-")


def best_peer(metric: Metric, results: Medians) -> str | None:
    """Returns the name of the peer with the best figure: of all proxies but ours."""
    having = [peer for peer in results if _is_rival(peer) and metric.key in results[peer]]
    choose = max if metric.more_is_better else min
    return choose(having, key=lambda peer: results[peer][metric.key], default=None)


def _same_way(results: Medians, of: str) -> str | None:
    """Returns that of BARE whose CPU time is nearer: to ask all the time and to sleep each time differ in it most."""
    mine = results.get(of, {}).get("cpu")
    having = {name: results[name]["cpu"] for name in BARE if results.get(name, {}).get("cpu")}
    if not mine or len(having) < len(BARE):
        return None
    return min(having, key=lambda name: max(having[name] / mine, mine / having[name]))


def ratio(metric: Metric, results: Medians, peer: str | None, of: str = "ours") -> float | None:
    """Returns the figure of `of` divided by the peer's, or None when one of the two is not there or is zero."""
    if peer is None or not results.get(peer, {}).get(metric.key) or metric.key not in results.get(of, {}):
        return None
    return results[of][metric.key] / results[peer][metric.key]


def judge(case: Case, results: Medians) -> list[Verdict]:
    """Judge the targets of a case."""
    verdicts = []
    for target in case.targets:
        metric = case.metric(target.key)
        sign = ">=" if metric.more_is_better else "<="
        if target.against is None:
            value = results.get(target.of, {}).get(target.key)
            text = f"{metric.label} {sign} {target.limit:g}"
        else:
            peer: str | None = target.against
            if target.against == "best":
                peer = best_peer(metric, results)
            elif target.against == SAME_WAY:
                peer = _same_way(results, target.of)
            value = ratio(metric, results, peer, target.of)
            of = {"best": f"best peer's ({peer})", SAME_WAY: f"{SAME_WAY} ({peer})"}.get(target.against, f"{peer}'s")
            text = f"{metric.label} {sign} {target.limit:g} x {of}"
        if target.of != "ours":
            text = f"{target.of}: {text}"
        met = None if value is None else value >= target.limit if metric.more_is_better else value <= target.limit
        verdicts.append(Verdict(text, value, met, target.of))
    return verdicts
