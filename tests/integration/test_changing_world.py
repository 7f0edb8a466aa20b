"""The system changes while a proxy runs: the next connections use what is true now."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable

import pytest
from networks import Namespace
from support.command import Command
from support.peers import Echo, connect
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

FRESH = 5.0
"""Seconds for which an answer may serve new connections."""


@pytest.fixture
def plug(namespaces: Callable[[], Namespace]) -> tuple[Namespace, Namespace, Callable[[], int]]:
    """Two namespaces, and a function that connects them: fe80::10 here, fe80::11 there. It returns the index here."""
    here, there = namespaces(), namespaces()

    def plug() -> int:
        here.join(there)
        for number, namespace in enumerate((here, there), 10):
            namespace.address("v", f"fe80::{number}/64", "nodad")
        return here.call(socket.if_nametoindex, "v")

    return here, there, plug


def served(here: Namespace, address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), here.call(connect, address) as client:
        return echoes(client)
    return False


@pytest.mark.parametrize(("workers", "mode"), [("1", "off"), ("2", "always")])
@pytest.mark.parametrize("missing", [False, True], ids=["there at the start", "missing at the start"])
def test_the_interface_of_a_target_comes_back(
    plug: tuple[Namespace, Namespace, Callable[[], int]],
    command: Callable[..., Command],
    stack: contextlib.ExitStack,
    missing: bool,
    workers: str,
    mode: str,
) -> None:
    """Row 94: an interface is its name. It comes back with another number, which the next connections use."""
    here, there, lay = plug
    first = lay()
    echo = stack.enter_context(contextlib.closing(there.call(Echo, "::")))
    if missing:
        here.ip("link", "delete", "v")
    options = ("-q", "--workers", workers, "--zero-copy", mode, f"[fe80::11%v]:{echo.port}")
    process = command(*options, wrapper=here.wrapper)
    if not missing:
        assert served(here, process.address)
        here.ip("link", "delete", "v")
    eventually(lambda: not served(here, process.address), TIMEOUT)
    assert lay() != first
    eventually(lambda: served(here, process.address), FRESH + TIMEOUT)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_an_address_to_listen_on_comes_back(
    plug: tuple[Namespace, Namespace, Callable[[], int]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Its interface was gone meanwhile: the listener has been kept, and is reached again."""
    here, there, lay = plug
    echo = stack.enter_context(contextlib.closing(here.call(Echo)))
    lay()
    here.address("v", "192.0.2.10/24")
    there.address("v", "192.0.2.11/24")
    process = command("-q", "-b", "192.0.2.10", echo.name, wrapper=here.wrapper)
    assert served(there, process.address)
    here.ip("link", "delete", "v")
    assert not served(there, process.address)
    lay()
    here.address("v", "192.0.2.10/24")
    there.address("v", "192.0.2.11/24")
    eventually(lambda: served(there, process.address), TIMEOUT)


def test_a_target_whose_interface_is_a_number(
    plug: tuple[Namespace, Namespace, Callable[[], int]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Row 94: a number means the interface that has it, not one that replaces that interface."""
    here, there, lay = plug
    index = lay()
    echo = stack.enter_context(contextlib.closing(there.call(Echo, "::")))
    process = command("-q", f"[fe80::11%{index}]:{echo.port}", wrapper=here.wrapper)
    assert served(here, process.address)
    here.ip("link", "delete", "v")
    assert lay() != index
    assert not served(here, process.address)
