"""Metrics of proxies for Prometheus. Needs prometheus-client: `pip install 'tcpproxy[metrics]'`.

prometheus_client.REGISTRY.register(tcpproxy.metrics.Collector(proxy))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from . import __version__
from ._core.worker import CONNECT_BOUNDS, DURATION_BOUNDS, REASONS

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
    """A collector of Prometheus for the metrics of one or more proxies. It costs nothing between two scrapes.

    Each sample has the label `listener`, the address that its proxy listens on; with several forwards the first address
    of each, with commas between them. A proxy that has not been started has no samples.

    Args:
        proxies: all proxies of the registry: it accepts each name of a metric only once, so only one Collector.

    Raises:
        TypeError: there is no proxy.
    """

    def __init__(self, *proxies: Proxy) -> None:
        if not proxies:
            raise TypeError("Collector() needs a proxy")
        self._proxies = [(proxy, ",".join(each.remote for each in proxy.config.forwards)) for proxy in proxies]

    def describe(self) -> Iterable[Metric]:
        """Returns the metrics without samples, from which a registry takes their names."""
        return _Families().all

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics with their present values."""
        families = _Families()
        families.build.add_metric([__version__], 1)
        for proxy, target in self._proxies:
            if proxy.addresses and proxy._crew:
                families.add(proxy, proxy._crew, target)
        return families.all


class _Families:
    """All metrics, to which the numbers of proxies are added."""

    def __init__(self) -> None:
        self.all: list[Metric] = []
        self._counters = {
            "accepted": self._counter("connections_accepted", "Connections accepted."),
            "bytes_to_upstream": self._counter("to_upstream_bytes", "Bytes delivered to upstream."),
            "bytes_to_client": self._counter("to_client_bytes", "Bytes delivered to clients."),
            "bytes_spliced": self._counter("spliced_bytes", "Bytes among these that never left the kernel."),
            "accept_errors": self._counter("accept_errors", "Calls of accept that failed, as for want of descriptors."),
            "events_lost": self._counter("events_lost", "Records for the log that were dropped: it is too slow."),
        }
        self._ended = self._counter("connections_ended", "Connections that are over, by why.", "reason")
        self._failed = self._counter(
            "connect_failures", "Connections whose upstream was not reached.", "target", "reason"
        )
        self._refused = self._counter("clients_refused", "Clients reset at once, not among those accepted.", "reason")
        self._throttled = self._counter("throttled_seconds", "For which directions have waited for a rate, added up.")
        self._active = self._gauge("connections_active", "Connections alive now.")
        self._limit = self._gauge("max_connections", "Connections at a time; further clients wait.")
        self._draining = self._gauge("draining", "1: it accepts no clients any more.")
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

    def _gauge(self, name: str, text: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"tcpproxy_{name}", text, labels=["listener"])
        self.all.append(family)
        return family

    def _histogram(self, name: str, text: str, *labels: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"tcpproxy_{name}", text, labels=["listener", *labels])
        self.all.append(family)
        return family

    def add(self, proxy: Proxy, crew: Crew, target: str) -> None:
        """Adds the samples of one proxy."""
        listener = ",".join(each.port.names[0] for each in proxy._forwards if each.port)
        stats = proxy.stats()
        for name, family in self._counters.items():
            family.add_metric([listener], getattr(stats, name))
        self._active.add_metric([listener], stats.active)
        self._limit.add_metric([listener], crew.limit)
        rates = proxy.config.rates
        self._draining.add_metric([listener], proxy._stopping.is_set())
        measures = crew.measures()
        if any(rates.max_rate) or any(rates.max_rate_per_connection):
            self._throttled.add_metric([listener], measures["throttled"][0])
        for reason in ENDS:
            self._ended.add_metric([listener, reason], measures["ended"][REASONS.index(reason)])
        for reason in FAILURES:
            self._failed.add_metric([listener, target, reason], measures["failed"][REASONS.index(reason)])
        for reason in REFUSALS:
            self._refused.add_metric([listener, reason], measures["refused"][REASONS.index(reason)])
        self._connects.add_metric([listener, target], *_buckets(CONNECT_BOUNDS, measures["connects"]))
        self._durations.add_metric([listener], *_buckets(DURATION_BOUNDS, measures["durations"]))


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
