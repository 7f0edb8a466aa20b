"""The pytest plugin: the fixtures `tcpproxy` and `tcpproxy_factory`, and a section in the reports of failed tests.

Every run of pytest in an environment with tcpproxy loads it. So it imports only pytest. The fixtures are implemented in
tcpproxy/fixtures.py, which is imported when a test first uses one. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .fixtures import ProxyFactory

_FACTORIES = pytest.StashKey["list[ProxyFactory]"]()
"""The key of a test's or a session's factories, in its stash."""

_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("tcpproxy", "TCP proxies in tests (fixtures tcpproxy and tcpproxy_factory)")
    group.addoption(
        "--tcpproxy-seed",
        metavar="N|random",
        default=None,
        help="seed of the random numbers of faults; random: draw one and print it (default: tcpproxy_seed, or 0)",
    )
    parser.addini("tcpproxy_seed", "the default of --tcpproxy-seed", default="0")
    group.addoption(
        "--tcpproxy-capture",
        metavar="DIR",
        default=None,
        help="capture the bytes that pass each proxy of a fixture, to pcapng files in DIR named after the tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Reads or draws the seed of the run, once for all processes of xdist."""
    told = config.getoption("--tcpproxy-seed")
    text = config.getini("tcpproxy_seed") if told is None else told
    drawn = getattr(config, "workerinput", {}).get("tcpproxy_seed")
    if drawn is not None:
        config.stash[_SEED] = drawn
    elif text == "random":
        config.stash[_SEED] = int.from_bytes(os.urandom(4), "big")
    elif text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < 2**64:
        config.stash[_SEED] = int(text)
    else:
        what = "tcpproxy_seed" if told is None else "--tcpproxy-seed"
        raise pytest.UsageError(f"{what} {text!r} is no seed, expected a whole number from 0 to {2**64 - 1}, or random")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Gives the seed to a process of xdist."""
    node.workerinput["tcpproxy_seed"] = node.config.stash[_SEED]


def pytest_report_header(config: pytest.Config) -> str | None:
    """Returns a line with the seed, unless it is the default."""
    seed = config.stash[_SEED]
    return f"tcpproxy: seed {seed}, as with --tcpproxy-seed={seed}" if seed else None


@pytest.fixture
def tcpproxy(request: pytest.FixtureRequest) -> Iterator[ProxyFactory]:
    """Makes TCP proxies for this test: tcpproxy(target, **options of Proxy) is a started tcpproxy.Proxy.

    The target is HOST:PORT, a URL, (host, port), a port, a socket or a server. All proxies stop after the test.
    """
    yield from _factory(request.node, request.config)


@pytest.fixture(scope="session")
def tcpproxy_factory(request: pytest.FixtureRequest) -> Iterator[ProxyFactory]:
    """Makes TCP proxies that stop at the end of the session; otherwise like the fixture tcpproxy."""
    yield from _factory(request.session, request.config)


def _factory(owner: pytest.Item | pytest.Session, config: pytest.Config) -> Iterator[ProxyFactory]:
    from .fixtures import ProxyFactory, UnmetError

    factory = ProxyFactory(owner.nodeid, seed=config.stash[_SEED], captures=config.getoption("--tcpproxy-capture"))
    try:
        with factory:
            factories = owner.stash.setdefault(_FACTORIES, [])
            factories.append(factory)
            yield factory
            factories.remove(factory)  # the same test may run again
    except UnmetError as error:  # without traceback, because no line of the test has failed
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _made_by(owner: pytest.Item | pytest.Session) -> list[ProxyFactory]:
    found: list[ProxyFactory] | None = owner.stash.get(_FACTORIES, None)
    return found or []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the section to the report of a test that failed: before the teardown, while the proxies live."""
    report = yield
    if not report.passed:
        for factory in _made_by(item):
            factory.is_over = True
    if report.failed and call.when != "teardown":
        shared = "tcpproxy_factory" in getattr(item, "fixturenames", ())
        factories = _made_by(item) + (_made_by(item.session) if shared else [])
        if text := "\n\n".join(filter(None, (factory.describe() for factory in factories))):
            report.sections.append((f"Captured tcpproxy {call.when}", text))
    return report
