"""The output of the command about its proxy: at the start on a terminal, on a signal, and at the end."""

from __future__ import annotations

import os
import threading
import time

from ..native import monotonic, wall
from ..network.forwarding import Forwarding, Target
from ..proxy import Proxy
from ..report.fields import json_line
from ..report.printer import final_words
from ..report.table import measure, record, table
from ..report.totals import summary, summary_fields

APART = 0.5
"""Seconds between the two samples that rates are computed from."""


def _resolved(target: Target) -> str:
    """The target, with the address that its name had at the start."""
    if not target.resolver:
        return target.name
    import ipaddress  # it takes milliseconds

    known = [str(ipaddress.ip_address(raw)) for raw, _, _ in target.addresses]
    more = f" and {len(known) - 1} more" if len(known) > 1 else ""
    return f"{target.name} ({known[0]}{more})" if known else target.name


def _where(forward: Forwarding) -> str:
    return ", else ".join(map(_resolved, forward.targets))


class Display:
    """Prints where a proxy forwards to, its live connections, and a summary.

    Args:
        proxy: its log thread writes the lines, because an output that blocks must not block the caller.
        json: the log is JSON.
        stdout: the descriptor for JSON.
    """

    def __init__(self, proxy: Proxy, *, json: bool, stdout: int = 1) -> None:
        self._proxy, self._json, self._stdout = proxy, json, stdout
        self._started = monotonic()
        self._thread: threading.Thread | None = None

    def greet(self) -> None:
        """Prints where the proxy forwards to and how to stop it, if stderr is a terminal."""
        if not os.isatty(2):
            return
        where = ", ".join(map(_where, self._proxy._forwards))
        self._proxy._note("forwarding", f"{where}; Ctrl-C stops")

    def show(self) -> None:
        """Prints the live connections, after measuring their rates for half a second. Calls in that time do nothing."""
        if self._thread and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._show, name="tcpproxy-show", daemon=True)
        self._thread.start()

    def _show(self) -> None:
        before, start = self._proxy.connections(), monotonic()
        time.sleep(APART)
        connections, apart = self._proxy.connections(), monotonic() - start
        rates = measure(before, connections, apart)
        stats, duration = self._proxy.stats(), monotonic() - self._started
        if self._json:
            lines = [
                json_line("summary", wall(), {**summary_fields(duration, stats), "text": summary(duration, stats)})
            ]
            lines += [json_line("connection", wall(), record(it, *rates[it.id])) for it in connections]
        else:
            width = (os.get_terminal_size(2).columns or None) if os.isatty(2) else None
            lines = [summary(duration, stats), *(table(connections, rates, width) if connections else [])]
        self._proxy._print(lines)

    def sum_up(self) -> None:
        """Prints the totals of the proxy, after it has ended."""
        if self._proxy.addresses:
            stats, duration = self._proxy.stats(), monotonic() - self._started
            fields = summary_fields(duration, stats)
            final_words("summary", summary(duration, stats), self._json, self._stdout, **fields)
