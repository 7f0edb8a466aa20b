"""The command: makes a Proxy from the options, runs it, and exits with a code. It has no sockets and no threads."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from .. import __version__
from .._core.rulebook import DICE
from .._core.worker import FEATURES, POLLER
from ..config.config import Config
from ..config.groups import every_row
from ..errors import TcpProxyError
from ..network.limits import raise_descriptor_limit
from ..network.listening import strangers
from ..proxy import Proxy
from ..report.color import wants_color
from ..report.printer import Printer, final_line, final_words
from ..tap.capture import check_place
from ..tap.dump import Dump
from ..text import count
from . import sandbox
from .connections import Display
from .signals import serve
from .systemd import Service
from .usage import Command, option, showing


def run(remote: str | None, **given: str | bool | tuple[str, ...] | None) -> None:
    """Relays until a signal or a failure; ends the process with the exit code."""
    raise_descriptor_limit()
    json = given.get("log_format") == "json"
    stdout = 2 if given.get("capture") == "-" else 1  # for text; stdout gets the capture then
    service = Service(os.environ)
    try:
        config = Config.for_command(remote, given)
        live = _live(config)
        about: dict[str, object] = {"pid": os.getpid(), "version": __version__}
        printer = _printer(config, live.KeptLines if live else Printer, about, stdout)
        serve_metrics = _metrics(config)
        faults = (*config.bending.preset, *config.bending.fault)
        options = {"on_event": printer, "faults": faults, "seed": config.bending.seed}
        proxy = Proxy(config, sockets=service.sockets(config, given), **options)  # type: ignore[arg-type]  # Config.make
        proxy._on_open = service.keep
        for text in service.warnings:
            proxy._note("warning", text)
        if faults:
            about |= _say_faults(proxy, json)
        if proxy.capture:
            if not config.seeing.capture_rotate:
                check_place(proxy.capture.path)
            proxy.capture.open(lambda text: final_words("warning", text, json, stdout))
        proxy._bind_paths()
        # Before any thread starts, because threads inherit the sandbox.
        printer.suspicion = sandbox.enter(config, config.operating.sandbox)
        if serve_metrics:
            serve_metrics(proxy)
        display = Display(proxy, json=json, stdout=stdout)
        view = live.show(proxy, printer) if live else None
        serve(proxy, display, greets=not json and not config.output.quiet, service=service, view=view)
    except TcpProxyError as error:
        service.failed(error)
        _final_error(error, json, stdout)
        sys.exit(error.exit_code)
    service.close()
    if json or config.output.debug or (os.isatty(2) and not config.output.quiet):
        display.sum_up()
        _sum_up_faults(proxy, json, stdout)
    _last_words(proxy, printer, json, stdout)
    if proxy.failure:
        _final_error(proxy.failure, json, stdout)
        sys.exit(proxy.failure.exit_code)
    if proxy.capture and proxy.capture.failure and proxy.capture.failure.errno != errno.EPIPE:
        sys.exit(1)


def _printer(config: Config, kind: type[Printer], about: dict[str, object], stdout: int) -> Printer:
    """Returns the Printer of the events. `about`: further fields of the first JSON record."""
    seeing, output = config.seeing, config.output
    return kind(
        debug=output.debug,
        quiet=output.quiet,
        json=output.log_format == "json",
        several=len(config.forwards) > 1,
        about=about,
        stdout=stdout,
        dump=Dump(text=seeing.text, color=wants_color(seeing.color, stdout)) if seeing.shown else None,
    )


def _sum_up_faults(proxy: Proxy, json: bool, stdout: int) -> None:
    """Prints the number of connections on which each fault has acted."""
    if not proxy.faults:
        return
    from ..rules import NO_RULES  # its imports take milliseconds

    for each in proxy.faults:
        if each.fault.kind in NO_RULES:  # the kernel does not report clients that it refuses
            continue
        text = f"fault {each.name} has acted on {count(each.fired, 'connection')}"
        final_words("faults", text, json, stdout, fault=each.name, connections=each.fired)


def _last_words(proxy: Proxy, printer: Printer, json: bool, stdout: int) -> None:
    """Prints which files could not be removed, how many lines and bytes were not printed, and what was captured."""
    for text in proxy._left if proxy.config.output.debug else ():
        final_words("warning", text if json else f"warning: {text}", json, stdout)
    if lost := printer.unwritten:
        final_words("lost", f"{count(lost, 'log line')} could not be written", json, stdout, lost=lost)
    if unshown := proxy._dumpable - printer.shown if proxy.config.seeing.shown else 0:
        why = printer.failure.strerror if printer.failure else "output is too slow"
        text = f"{unshown:,} bytes that passed are not shown: {why}"
        final_words("lost", text, json, stdout, lost=unshown)
    if proxy.capture:
        final_words("capture", str(proxy.capture), json, stdout)


def _say_faults(proxy: Proxy, json: bool) -> dict[str, object]:
    """Prints the faults and their seed; with JSON, returns them as fields of the first record."""
    faults = [str(each.fault) for each in proxy.faults]
    if json:
        return {"faults": faults, "seed": proxy.seed, "dice": DICE}
    proxy._print([f"Faults: {', '.join(faults)}; seed {proxy._seed_text}"])
    return {}


def _help() -> str:
    from . import manual  # only these two options need it

    return manual.help_text(manual.columns())


def _help_faults() -> str:
    from . import manual

    return manual.faults_text(manual.columns())


def _version() -> str:
    return f"tcpproxy {__version__} ({', '.join([POLLER, *FEATURES])})"


def _live(config: Config) -> Any:
    """Imports and returns the module of the live view, if a view is wanted: its imports take time."""
    if not config.seeing.top:
        return None
    from . import view

    view.check(config)
    return view


def _metrics(config: Config) -> Callable[[Proxy], object] | None:
    """Listens for scrapes, if metrics are to be served; returns the function that starts the answering thread."""
    place = config.operating.metrics
    if not place:
        return None
    from . import monitor, webserver  # their imports take time

    listener, answers = monitor.open_monitor(config, place)

    def begin(proxy: Proxy) -> None:
        if who := strangers(listener):
            proxy._note("warning", f"serving metrics at {place}, which {who} may reach")
        webserver.WebServer(listener, answers(proxy)).start()

    return begin


def _final_error(error: TcpProxyError, json: bool, stdout: int) -> None:
    """Writes the error that ends the command, in the format of its log."""
    final_words("fatal", str(error) if json else f"tcpproxy: {error}", json, stdout, exit_code=error.exit_code)


command = Command(
    "tcpproxy",
    params=[
        click.Argument(["remote"], metavar="REMOTE", required=False),
        *map(option, every_row()),
        showing(["-V", "--version"], _version),
        showing(["-h", "--help"], _help),
        showing(["--help-faults"], _help_faults),
    ],
    callback=run,
    add_help_option=False,
)


def main() -> None:
    """Entry point of the `tcpproxy` command."""
    _occupy_standard_descriptors()
    try:
        command(prog_name="tcpproxy")
    except OSError as error:  # from --help or --version; other output does not raise
        final_line(f"tcpproxy: cannot write to stdout: {error.strerror}")
        sys.exit(1)


def _occupy_standard_descriptors() -> None:
    """Opens closed standard descriptors: otherwise a socket would get the number, and its peer would get log lines."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            except OSError:  # a chroot or container without devices
                os.pipe()
