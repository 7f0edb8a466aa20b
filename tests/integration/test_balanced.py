"""Several relays behind a balancer in the kernel: relays share no state."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

import pytest
from cluster import RELAYS, Cluster
from networks import Namespace
from support.command import Command
from support.load import Load
from support.peers import Echo, connect
from support.streams import echoes

pytestmark = pytest.mark.timeout(180)

PORT = 5432


def test_a_rolling_restart(
    namespaces: Callable[[], Namespace], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Each of four relays is taken out, ends and comes back under load: no client is refused, none is reset.

    A connection that stays goes on until it ends by itself, and the relay with it.
    """
    cluster = Cluster(namespaces, command)
    echo = stack.enter_context(contextlib.closing(cluster.balancer.call(Echo, cluster.address)))
    cluster.start({PORT: echo.name})
    everybody = range(RELAYS)
    cluster.balance(*everybody)
    load = Load((cluster.address, PORT), lambda address: cluster.clients.call(connect, address))
    with load.running():
        for number in everybody:
            load.more()
            cluster.balance(number)
            staying = cluster.clients.call(connect, load.address)
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
            cluster.restart(number)
            cluster.balance(*everybody)
        load.more()
