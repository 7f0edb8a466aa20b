"""Metrics of proxies for Prometheus. Needs prometheus-client: `pip install 'tcpproxy[metrics]'`.

prometheus_client.REGISTRY.register(tcpproxy.metrics.Collector(proxy))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from . import __version__
from ._core.worker import CONNECT_BOUNDS, DURATION_BOUNDS, REASONS
from .crew import sums

if TYPE_CHECKING:
    from .crew import Crew
    from .proxy import Proxy

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector as _Collector
except ImportError as error:
    if not (error.name or "").startswith("prometheus_client"):
        raise
    raise ImportError(
        "tcpproxy.metrics needs prometheus-client: pip install 'tcpproxy[metrics]'", name=error.name
    ) from None

ENDS = tuple(reason for reason in REASONS if reason)
FAILURES = ("connect-refused", "connect-timeout", "unreachable", "dns", "limit")
"""The reasons why an upstream was not reached."""

REFUSALS = ("denied", "proxy-header", "limit", "shutdown", "killed")
"""The reasons why a client was reset at once."""


class Collector(_Collector):
    """A Prometheus collector for the metrics of one or more proxies. It costs nothing between two scrapes.

    Each sample has the label `listener`, the first address that its forward listens on. Samples of the whole proxy have
    the addresses of all forwards, with commas between them. A proxy that has not been started has no samples.

    Args:
        proxies: all proxies of a registry, because it accepts each name of a metric only once.

    Raises:
        TypeError: there is no proxy.
    """

    def __init__(self, *proxies: Proxy) -> None:
        if not proxies:
            raise TypeError("Collector() needs a proxy")
        self._proxies = [(proxy, [list(map(str, it.targets)) for it in proxy.config.forwards]) for proxy in proxies]

    def describe(self) -> Iterable[Metric]:
        """Returns the metrics without samples, from which a registry takes their names."""
        return _Families().all

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics with their present values."""
        families = _Families()
        families.build.add_metric([__version__], 1)
        for proxy, targets in self._proxies:
            if proxy.addresses and proxy._crew:
                families.add(proxy, proxy._crew, targets)
        return families.all


class _Families:
    """All metrics, to which the numbers of proxies are added."""

    def __init__(self) -> None:
        self.all: list[Metric] = []
        self._counters = {
            "accepted": self._counter("connections_accepted", "Connections accepted."),
            "bytes_to_upstream": self._counter("to_upstream_bytes", "Bytes delivered to upstream."),
            "bytes_to_client": self._counter("to_client_bytes", "Bytes delivered to clients."),
            "bytes_spliced": self._counter("spliced_bytes", "Delivered bytes that were spliced."),
            "accept_errors": self._counter("accept_errors", "Calls of accept that failed, as for lack of descriptors."),
        }
        self._lost = self._counter("events_lost", "Records for the log that were dropped because it is too slow.")
        self._ended = self._counter("connections_ended", "Connections that have ended, by reason.", "reason")
        self._failed = self._counter(
            "connect_failures", "Connections whose upstream was not reached.", "target", "reason"
        )
        self._refused = self._counter("clients_refused", "Clients reset at once, not counted as accepted.", "reason")
        self._throttled = self._counter("throttled_seconds", "Time that directions have waited for a rate, summed.")
        self._active = self._gauge("connections_active", "Connections alive now.")
        self._limit = self._gauge("max_connections", "Connections at a time; further clients wait.")
        self._draining = self._gauge("draining", "1 while the proxy is stopping, else 0.")
        self._up = self._gauge("target_up", "0: the last attempt to reach this target failed.", "target")
        self._connects = self._histogram(
            "connect_duration_seconds", "From accept until upstream is connected.", "target"
        )
        self._durations = self._histogram("connection_duration_seconds", "From accept to the end.")
        self.build = GaugeMetricFamily("tcpproxy_build_info", "The version.", labels=["version"])
        self.all.append(self.build)

    def _counter(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        family = CounterMetricFamily(f"tcpproxy_{name}", text, labels=["listener", *labels])
        self.all.append(family)
        return family

    def _gauge(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"tcpproxy_{name}", text, labels=["listener", *labels])
        self.all.append(family)
        return family

    def _histogram(self, name: str, text: str, *labels: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"tcpproxy_{name}", text, labels=["listener", *labels])
        self.all.append(family)
        return family

    def add(self, proxy: Proxy, crew: Crew, targets: list[list[str]]) -> None:
        """Adds the samples of one proxy.

        Args:
            targets: the targets of each forward, in the order of `config.forwards`.
        """
        listeners = [each.port.names[0] for each in proxy._forwards if each.port]
        rates = proxy.config.rates
        metered = any(rates.max_rate) or any(rates.max_rate_per_connection)
        for number, (listener, names) in enumerate(zip(listeners, targets, strict=True)):
            measures = crew.measures(number)
            self._add_forward(listener, sums(measures), metered)
            self._add_targets(listener, names, measures)
            if len(names) > 1:
                for name, is_down in zip(names, crew.down(number), strict=True):
                    self._up.add_metric([listener, name], not is_down)
        everything = ",".join(listeners)
        self._lost.add_metric([everything], proxy.stats().events_lost)
        self._limit.add_metric([everything], crew.limit)
        self._draining.add_metric([everything], proxy._stopping.is_set())

    def _add_forward(self, listener: str, measures: dict[str, list[float]], metered: bool) -> None:
        """Adds the samples of one forward, from the numbers of all its targets together."""
        for name, family in self._counters.items():
            family.add_metric([listener], measures[name][0])
        self._active.add_metric([listener], max(0, measures["accepted"][0] - measures["over"][0]))
        if metered:
            self._throttled.add_metric([listener], measures["throttled"][0])
        for reason in ENDS:
            self._ended.add_metric([listener, reason], measures["ended"][REASONS.index(reason)])
        for reason in REFUSALS:
            self._refused.add_metric([listener, reason], measures["refused"][REASONS.index(reason)])
        self._durations.add_metric([listener], *_buckets(DURATION_BOUNDS, measures["durations"]))

    def _add_targets(self, listener: str, names: list[str], measures: list[dict[str, list[float]]]) -> None:
        """Adds the samples of each target of a forward."""
        for name, of_it in zip(names, measures, strict=True):
            for reason in FAILURES:
                self._failed.add_metric([listener, name, reason], of_it["failed"][REASONS.index(reason)])
            self._connects.add_metric([listener, name], *_buckets(CONNECT_BOUNDS, of_it["connects"]))


def _buckets(bounds: Sequence[float], times: list[float]) -> tuple[list[tuple[str, float]], float]:
    """Returns the cumulative buckets, and the sum of the times.

    Args:
        bounds: the upper bounds of the buckets in seconds, except the last one.
        times: how many times are in each bucket, and their sum in seconds.
    """
    *counts, total = times
    return [(name, sum(counts[: number + 1])) for number, name in enumerate([*map(str, bounds), "+Inf"])], total


def exposition(proxy: Proxy) -> Callable[[str], tuple[bytes, str]]:
    """Returns a function that writes the metrics of a proxy and of this process.

    It takes the value of the header Accept, and returns the text and its content type.
    """
    registry = CollectorRegistry()
    registry.register(Collector(proxy))
    ProcessCollector(registry=registry)

    def write(accept: str) -> tuple[bytes, str]:
        try:
            encoder, content_type = choose_encoder(accept)
            return encoder(registry), content_type
        except (TypeError, ValueError):  # a version that is no number
            encoder, content_type = choose_encoder("")
            return encoder(registry), content_type

    return write
