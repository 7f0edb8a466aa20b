"""Fixtures: see support/ for what they hand out. Each closes, stops and ends what it has made."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator

import pytest
from campaigns import totals
from networks import Closed, Namespace, Silent
from support.command import Command
from support.machine import absent
from support.peers import Echo, Link, Named, Upstream

import tcpproxy

pytest_plugins = ["pytester"]

FIXED_SEED = 20240817
"""Of the first half of the schedules in tests/model; the other half differs from run to run."""


# Commands that tests start inherit ignored signals and keep them so: those of nohup, or of a script's `pytest ... &`.
for _number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(_number) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--zero-copy", default="auto", help="run the proxies so: auto, off, or always (from the first byte)"
    )
    parser.addoption("--record", default=None, help="record the bytes of the proxies of the library: a size")
    parser.addoption("--rounds", type=int, default=1, help="how many times as long campaigns are (1: as in CI)")
    parser.addoption("--schedules", type=int, default=1000, help="how many schedules tests/model plays")
    parser.addoption("--schedule-seed", type=int, default=None, help="the seed of the second half of them")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.schedule_seed is None:
        config.option.schedule_seed = int.from_bytes(os.urandom(4), "big")


def pytest_report_header(config: pytest.Config) -> str:
    return f"schedules: {config.option.schedules}, seeds {FIXED_SEED} and {config.option.schedule_seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The sum of the campaigns, where this process has run them itself."""
    if totals:
        terminalreporter.write_line("campaigns: " + ", ".join(f"{count} {what}" for what, count in totals.items()))


@pytest.fixture
def schedule_seeds(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The same one always, and the one of this run."""
    return FIXED_SEED, request.config.option.schedule_seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from skipping())


def skipping() -> Generator[None, object, object]:
    """A test that needs what this platform does not have is skipped, and says what that is."""
    try:
        return (yield)
    except BaseException as error:
        if missing := absent(error):
            pytest.skip(f"this platform has no {missing}")
        raise


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How much of a campaign: CI's share, or so many times as much."""
    return request.config.getoption("--rounds")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Closes what is entered or pushed here when the test is over."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def upstream(stack: contextlib.ExitStack) -> Upstream:
    return stack.enter_context(contextlib.closing(Upstream()))


@pytest.fixture
def echo(stack: contextlib.ExitStack) -> Echo:
    return stack.enter_context(contextlib.closing(Echo()))


@pytest.fixture
def named(stack: contextlib.ExitStack) -> Named:
    return stack.enter_context(contextlib.closing(Named()))


@pytest.fixture
def closed(stack: contextlib.ExitStack) -> Closed:
    return stack.enter_context(contextlib.closing(Closed()))


@pytest.fixture
def silent(stack: contextlib.ExitStack) -> Silent:
    return stack.enter_context(contextlib.closing(Silent()))


@pytest.fixture
def namespaces(stack: contextlib.ExitStack) -> Callable[[], Namespace]:
    """Makes network namespaces."""
    return lambda: stack.enter_context(contextlib.closing(Namespace()))


@pytest.fixture
def events() -> list[tcpproxy.Event]:
    """What the proxies made by `make_proxy` reported."""
    return []


@pytest.fixture
def make_proxy(
    request: pytest.FixtureRequest, stack: contextlib.ExitStack, events: list[tcpproxy.Event]
) -> Callable[..., tcpproxy.Proxy]:
    """Starts a Proxy; its events are gathered in `events`."""

    def make(remote: str, **options: object) -> tcpproxy.Proxy:
        options.setdefault("on_event", events.append)
        options.setdefault("zero_copy", request.config.getoption("--zero-copy"))
        options.setdefault("record", request.config.getoption("--record"))
        return stack.enter_context(tcpproxy.Proxy(remote, **options))  # type: ignore[arg-type]

    return make


@pytest.fixture
def command(request: pytest.FixtureRequest, stack: contextlib.ExitStack) -> Callable[..., Command]:
    """Starts the command."""

    def start(*args: str, **popen: object) -> Command:
        if not any(arg.startswith("--zero-copy") for arg in args):
            args = (f"--zero-copy={request.config.getoption('--zero-copy')}", *args)
        process = Command(*args, **popen)  # type: ignore[arg-type]
        stack.callback(process.end)
        return process

    return start


@pytest.fixture(params=[0, 1, 2], ids=["direct", "1worker", "2workers"])
def workers(request: pytest.FixtureRequest) -> int:
    """How a link is made: 0 is a direct connection, the control that every relay test must pass too."""
    return request.param


@pytest.fixture(params=[False, True], ids=["client-to-upstream", "upstream-to-client"])
def swapped(request: pytest.FixtureRequest) -> bool:
    """Which way round."""
    return request.param


@pytest.fixture
def make_link(
    upstream: Upstream, workers: int, swapped: bool, make_proxy: Callable[..., tcpproxy.Proxy]
) -> Callable[..., Link]:
    """A link with options for its proxy; a direct one ignores them."""

    def make(**options: object) -> Link:
        proxy = make_proxy(upstream.name, workers=workers, **options) if workers else None
        return Link(upstream, proxy, swapped)

    return make


@pytest.fixture
def link(make_link: Callable[..., Link]) -> Link:
    """Pairs of sockets, direct and through a proxy with one and two workers, both ways round."""
    return make_link()
