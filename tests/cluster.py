"""Relays side by side in network namespaces, behind the kernel's own balancing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from networks import Namespace
from support.command import Command
from support.waiting import TIMEOUT, eventually

RELAYS = 4


class Cluster:
    """Clients, a balancer and relays, in a network namespace each. Servers are on the balancer, at `address`.

    A new connection to the balancer goes to the next relay in turn, by DNAT; those that exist stay where they are.
    """

    address = "10.1.0.1"

    def __init__(self, namespaces: Callable[[], Namespace], command: Callable[..., Command]) -> None:
        self._command = command
        self.clients, self.balancer = namespaces(), namespaces()
        self.relays = [namespaces() for _ in range(RELAYS)]
        self.balancer.sysctl("net.ipv4.ip_forward", "1")
        self._join(self.clients, "10.1.0", "clients")
        for number, relay in enumerate(self.relays):
            self._join(relay, f"10.2.{number}", f"r{number}")
        self.balancer.nft("add table ip lb; add chain ip lb in { type nat hook prerouting priority dstnat; }")
        self._forwards: Mapping[int, str] = {}
        self.processes: list[Command] = []

    def _join(self, namespace: Namespace, net: str, name: str) -> None:
        namespace.join(self.balancer, name)
        namespace.address(name, f"{net}.2/24")
        self.balancer.address(name, f"{net}.1/24")
        namespace.ip("route", "add", "default", "via", f"{net}.1")

    def start(self, forwards: Mapping[int, str]) -> None:
        """Starts the relays, which forward these ports to these targets."""
        self._forwards = forwards
        self.processes = [self._start(number) for number in range(RELAYS)]

    def restart(self, number: int) -> None:
        """Starts a relay again that has ended."""
        self.processes[number] = self._start(number)

    def _start(self, number: int) -> Command:
        options = [f"-L10.2.{number}.2:{port}:{target}" for port, target in self._forwards.items()]
        relay = self._command("-q", "--grace", "30s", *options, wrapper=self.relays[number].wrapper)
        eventually(lambda: relay.process.poll() is not None or len(relay.stdout) == len(self._forwards), TIMEOUT)
        assert relay.process.poll() is None, relay.stderr
        return relay

    def balance(self, *relays: int) -> None:
        """New connections go to these, in turn."""
        places = ", ".join(f"{place} : 10.2.{number}.2" for place, number in enumerate(relays))
        to = f"dnat to numgen inc mod {len(relays)} map {{ {places} }}"
        ports = ", ".join(map(str, self._forwards))
        self.balancer.nft(f"flush chain ip lb in; add rule ip lb in iifname clients tcp dport {{ {ports} }} {to}")
