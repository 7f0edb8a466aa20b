"""Relays side by side behind the kernel's own balancing: a relay keeps nothing that another one would need."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest
from networks import Namespace
from support.command import Command
from support.load import Load
from support.peers import Echo, connect
from support.streams import echoes

pytestmark = pytest.mark.timeout(180)

PORT = 5432
RELAYS = 4


class Cluster:
    """Clients, a balancer and relays, in a network namespace each. The server is on the balancer.

    A new connection to the balancer goes to the next relay in turn, by DNAT; those that exist stay where they are.
    """

    address = ("10.1.0.1", PORT)

    def __init__(
        self, namespaces: Callable[[], Namespace], command: Callable[..., Command], stack: contextlib.ExitStack
    ) -> None:
        self._command = command
        self.clients, self.balancer = namespaces(), namespaces()
        self.relays = [namespaces() for _ in range(RELAYS)]
        self.balancer.sysctl("net.ipv4.ip_forward", "1")
        self._join(self.clients, "10.1.0")
        for number, relay in enumerate(self.relays):
            self._join(relay, f"10.2.{number}", f"r{number}")
        self.balancer.nft("add table ip lb; add chain ip lb in { type nat hook prerouting priority dstnat; }")
        self.echo = stack.enter_context(contextlib.closing(self.balancer.call(Echo, "10.1.0.1")))
        self.processes = [self.start(number) for number in range(RELAYS)]

    def _join(self, namespace: Namespace, net: str, name: str = "clients") -> None:
        namespace.join(self.balancer, name)
        namespace.address(name, f"{net}.2/24")
        self.balancer.address(name, f"{net}.1/24")
        namespace.ip("route", "add", "default", "via", f"{net}.1")

    def start(self, number: int) -> Command:
        """Returns a relay, which listens."""
        relay = self._command(
            *("-q", "-b", f"10.2.{number}.2", "-l", str(PORT), "--grace", "30s", self.echo.name),
            wrapper=self.relays[number].wrapper,
        )
        assert relay.address == (f"10.2.{number}.2", PORT)
        return relay

    def balance(self, *relays: int) -> None:
        """New connections go to these, in turn."""
        places = ", ".join(f"{place} : 10.2.{number}.2" for place, number in enumerate(relays))
        to = f"dnat to numgen inc mod {len(relays)} map {{ {places} }}"
        self.balancer.nft(f"flush chain ip lb in; add rule ip lb in ip daddr 10.1.0.1 tcp dport {PORT} {to}")


@pytest.fixture
def cluster(
    namespaces: Callable[[], Namespace], command: Callable[..., Command], stack: contextlib.ExitStack
) -> Iterator[Cluster]:
    return Cluster(namespaces, command, stack)


def test_a_rolling_restart(cluster: Cluster) -> None:
    """Each of four relays is taken out, ends and comes back under load: no client is refused, none is reset.

    A connection that stays goes on until it ends by itself, and the relay with it.
    """
    everybody = range(RELAYS)
    load = Load(cluster.address, lambda address: cluster.clients.call(connect, address))
    cluster.balance(*everybody)
    with load.running():
        for number in everybody:
            load.more()
            cluster.balance(number)
            staying = cluster.clients.call(connect, cluster.address)
            assert echoes(staying)
            cluster.balance(*(other for other in everybody if other != number))
            load.more()  # who was on the way to it has arrived
            relay = cluster.processes[number]
            relay.signal(signal.SIGTERM)
            load.more()
            assert echoes(staying)
            staying.close()
            assert relay.wait() == 0
            assert [line for line in relay.complaints if "other machines may reach" not in line] == []
            cluster.processes[number] = cluster.start(number)
            cluster.balance(*everybody)
        load.more()
