"""The command: options to a Proxy to an exit code. No sockets and no threads here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from .. import __version__
from .._core.worker import FEATURES, POLLER
from ..errors import TcpProxyError
from ..network.limits import raise_descriptor_limit
from ..proxy import Proxy
from ..report.printer import Printer, final_line
from . import sandbox
from .signals import serve


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _option(
    *names: str, default: str | None = None, shown: str | bool = True, metavar: str, text: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(*names, default=default, show_default=shown, metavar=metavar, help=text)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("remote", metavar="REMOTE")
@_option("-b", "--bind", default="127.0.0.1", metavar="ADDR", text="Listen here; localhost: both families, one port.")
@_option("-l", "--local-port", shown="random", metavar="PORT", text="Listen on this port.")
@click.option("-d", "--debug", is_flag=True, help="Say how each connection ended, and the bytes both ways.")
@_option("--connect-timeout", default="10s", metavar="TIME", text="For reaching REMOTE, name look-up included.")
@_option(
    "--half-close-timeout",
    default="60s",
    metavar="TIME",
    text="Inactivity after one direction has ended. 0: the first end closes both.",
)
@_option("--idle-timeout", default="off", metavar="TIME", text="Inactivity that ends a connection.")
@_option("--keepalive", default="60s", metavar="TIME", text="Idle time until TCP asks for a sign of life, or off.")
@_option("--grace", default="10s", metavar="TIME", text="For connections to end by themselves after SIGTERM or SIGINT.")
@_option("--workers", shown="usable CPUs", metavar="N", text="Threads that relay.")
@_option("--max-connections", shown="from the open files limit", metavar="N", text="At one time; more wait.")
@_option(
    "--max-connections-per-source", shown="any number", metavar="N", text="Of an IPv4 address or IPv6 /64; more: reset."
)
@_option("--buffer-size", default="64KiB", metavar="SIZE", text="Read at once, and kept for a slow receiver.")
@_option("--socket-buffer", default="off", metavar="SIZE", text="Bound the kernel's buffers, of each socket and way.")
@_option("--zero-copy", default="auto", metavar="auto|off", text="Move bulk bytes inside the kernel (Linux).")
@_option("--busy-poll", default="auto", metavar="auto|off|USEC", text="Poll before sleeping: lower latency.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of all lines."
)
@click.option(
    "--sandbox",
    "confine",
    type=click.Choice(["auto", "off", "require"]),
    default="auto",
    show_default=True,
    help="Give up rights that relaying does not need (Linux).",
)
@click.option("-q", "--quiet", is_flag=True, help="No line for a new connection.")
@click.version_option(
    __version__, "-V", "--version", message=f"tcpproxy {__version__} ({', '.join([POLLER, *FEATURES])})"
)
def command(
    remote: str,
    local_port: str | None,
    debug: bool,
    log_format: str,
    confine: str,
    quiet: bool,
    **options: str | None,
) -> None:
    """Forward TCP connections to REMOTE, which is HOST:PORT or [IPv6]:PORT.

    Times are seconds or carry a unit (250ms, 10s, 5m), sizes too (64KiB).
    """
    raise_descriptor_limit()
    printer = Printer(debug=debug, quiet=quiet, json=log_format == "json")
    if options["workers"] is None:
        options["workers"] = str(min(_usable_cpus(), 64))
    try:
        proxy = Proxy(remote, port=0 if local_port is None else local_port, on_event=printer, **options)  # type: ignore[arg-type]
        sandbox.enter(proxy.config, confine)  # before there are threads, which inherit it
        serve(proxy)
    except TcpProxyError as error:
        final_line(f"tcpproxy: {error}")
        sys.exit(error.exit_code)
    if printer.unwritten:
        final_line(f"{printer.unwritten} log lines could not be written")
    if proxy.failure:
        final_line(f"tcpproxy: {proxy.failure}")
        sys.exit(proxy.failure.exit_code)


def main() -> None:
    """Entry point of the `tcpproxy` command."""
    # Started with a standard descriptor closed, the next socket would get its number, and log lines would go to a peer.
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(lowest)
    command(prog_name="tcpproxy")
