"""The pytest plugin: the fixtures `tcpproxy` and `tcpproxy_factory`, and a section about their proxies for a test that
failed.

Every pytest run of an environment with tcpproxy loads it. So it imports pytest and nothing else; what the fixtures do
is in tcpproxy/fixtures.py, which the first of them imports. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .fixtures import ProxyFactory

_FACTORIES = pytest.StashKey["list[ProxyFactory]"]()
"""Of a test, or of the session: the factories that it has asked for."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("tcpproxy", "TCP proxies in tests (fixtures tcpproxy and tcpproxy_factory)")
    group.addoption(
        "--tcpproxy-capture",
        metavar="DIR",
        default=None,
        help="capture what passes each proxy of a fixture into DIR, as pcapng files named after the tests",
    )


@pytest.fixture
def tcpproxy(request: pytest.FixtureRequest) -> Iterator[ProxyFactory]:
    """Makes TCP proxies for this test: tcpproxy(target, **options of Proxy) is a started tcpproxy.Proxy.

    The target is HOST:PORT, a URL, (host, port), a port, a socket or a server. All proxies stop after the test.
    """
    yield from _factory(request.node, request.config)


@pytest.fixture(scope="session")
def tcpproxy_factory(request: pytest.FixtureRequest) -> Iterator[ProxyFactory]:
    """Makes TCP proxies that stop at the end of the session. It is called as the fixture tcpproxy is."""
    yield from _factory(request.session, request.config)


def _factory(owner: pytest.Item | pytest.Session, config: pytest.Config) -> Iterator[ProxyFactory]:
    from .fixtures import ProxyFactory

    with ProxyFactory(owner.nodeid, captures=config.getoption("--tcpproxy-capture")) as factory:
        owner.stash.setdefault(_FACTORIES, []).append(factory)
        yield factory


def _made_by(owner: pytest.Item | pytest.Session) -> list[ProxyFactory]:
    found: list[ProxyFactory] | None = owner.stash.get(_FACTORIES, None)
    return found or []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the section to the report of a test that failed: before the teardown, while the proxies live."""
    report = yield
    if report.failed and call.when != "teardown":
        shared = "tcpproxy_factory" in getattr(item, "fixturenames", ())
        factories = _made_by(item) + (_made_by(item.session) if shared else [])
        if text := "\n\n".join(filter(None, (factory.describe() for factory in factories))):
            report.sections.append((f"Captured tcpproxy {call.when}", text))
    return report
