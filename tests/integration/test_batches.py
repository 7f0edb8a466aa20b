"""The event loop: whatever comes in one batch, in whatever order, nothing is lost, mixed up, or done over and over."""

from __future__ import annotations

import contextlib
import random
import select
import socket
from collections.abc import Callable

import pytest
from support.command import Command, frozen
from support.machine import sockets
from support.peers import Echo, Link, Upstream, connect, reset
from support.streams import MIB, payload, read_all, read_exactly
from support.waiting import eventually, in_background

# --- one batch ---


@pytest.mark.parametrize("seed", range(4))
def test_everything_at_once(command: Callable[..., Command], upstream: Upstream, seed: int) -> None:
    """Rows 65, 66: both sides of many connections end, fail and send, and new clients come, all in one batch.

    The new connections get the descriptors that the old ones leave. Each has its own bytes, which nobody else may see.
    """
    chance = random.Random(seed)
    proxy = command(upstream.name, "--quiet", "--workers", "1")
    live = [(connect(proxy.address), upstream.accept()) for _ in range(20)]
    baseline = sockets(proxy.process.pid) - 40
    for number in range(15):
        with frozen(proxy):
            leaving, live = live[:8], live[8:]
            ends = [end for pair in leaving for end in pair]
            if chance.random() < 0.5:  # else both ends of a connection are next to each other
                chance.shuffle(ends)
            clients = []
            for end in ends:
                if chance.random() < 0.5:
                    with contextlib.suppress(OSError):  # the other end was reset before
                        end.send(b"last words")
                if chance.random() < 0.5:
                    reset(end)
                else:
                    end.close()
                if chance.random() < 0.5:
                    clients.append(connect(proxy.address))
            sent = {}
            for client in clients:
                mark = f"{number} {client.getsockname()[1]}".encode()
                sent[mark] = client
                client.sendall(mark)
        for near, far in live:
            near.sendall(b"still")
            assert read_exactly(far, 5) == b"still"
        while sent:
            far = upstream.accept()
            near = sent.pop(far.recv(100))
            answer = b"to %d" % near.getsockname()[1]
            far.sendall(answer)
            assert near.recv(100) == answer
            live.append((near, far))
    for pair in live:
        for end in pair:
            end.close()
    eventually(lambda: sockets(proxy.process.pid) == baseline, what="sockets are left open")
    assert proxy.process.poll() is None
    assert proxy.complaints == []


def test_descriptors_reused_while_connecting(command: Callable[..., Command], stack: contextlib.ExitStack) -> None:
    """Row 65: clients leave by reset while upstream has not answered, in one batch with clients that come.

    A client that is reset while its upstream is being connected is closed within the batch, and so are its attempts:
    the next client accepted gets their numbers, while events of the old ones are still to come.
    """
    upstream = stack.enter_context(contextlib.closing(Upstream(backlog=2)))
    proxy = command(upstream.name, "--quiet", "--workers", "1", "--connect-timeout", "30s")
    clients = [connect(proxy.address) for _ in range(8)]  # a few get through, the others wait in SYN_SENT
    baseline = len(clients)
    eventually(lambda: sockets(proxy.process.pid) >= 2 * baseline)
    for number in range(5):
        with frozen(proxy):
            for client in clients:
                reset(client)
            while select.select([upstream.socket], [], [], 0)[0]:
                upstream.accept().close()  # makes room: attempts under way succeed by their next SYN
            clients = [connect(proxy.address) for _ in range(8)]
            for client in clients:
                client.sendall(b"%d" % number)
    served = 0
    while served < len(clients):
        with upstream.accept() as far:
            if (word := far.recv(100)) == b"4":
                far.sendall(b"answer")
                served += 1
            else:
                assert word in (b"", b"0", b"1", b"2", b"3")
    for client in clients:
        assert client.recv(100) == b"answer"
        client.close()
    assert proxy.process.poll() is None


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 262143, 262144, 262145, MIB])
@pytest.mark.parametrize("end", ["eof", "reset"])
def test_data_and_end_in_one_batch(
    command: Callable[..., Command], upstream: Upstream, swapped: bool, size: int, end: str
) -> None:
    """Rows 65, 68: a read that comes back short must not hide the end that came with it; nor may a full one."""
    data = payload(size)
    proxy = command(upstream.name, "--quiet", "--workers", "1")
    client, server = connect(proxy.address), upstream.accept()
    near, far = (server, client) if swapped else (client, server)
    with far:
        near.sendall(b"!")
        assert far.recv(1) == b"!"
        with frozen(proxy):
            near.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                near.sendall(data)  # what does not fit into the kernel is sent below
            near.settimeout(20)
            if end == "eof":
                near.shutdown(socket.SHUT_WR)
            else:
                reset(near)
        if end == "eof":
            assert read_all(far) == data
            near.close()
        else:
            with pytest.raises(ConnectionResetError):
                read_all(far)


def test_reset_before_upstream_is_connected(command: Callable[..., Command], upstream: Upstream) -> None:
    """Rows 20, 65: a client is gone when its upstream answers, in one batch: upstream gets no clean end of file."""
    proxy = command(upstream.name, "--quiet", "--workers", "1")
    address = proxy.address
    with frozen(proxy):
        for _ in range(10):
            client = connect(address)
            client.sendall(b"not all of it")
            reset(client)
    with connect(address):  # accepted behind the others, so that all of them have been dealt with
        while select.select([upstream.socket], [], [], 1)[0]:
            with upstream.accept() as far:
                if not select.select([far], [], [], 0.5)[0]:
                    continue  # the last client's
                with pytest.raises(ConnectionResetError):
                    read_all(far)


def test_data_that_waited_longer_than_the_idle_limit(command: Callable[..., Command], echo: Echo) -> None:
    """Rows 65, 74: a proxy that was stopped (Ctrl-Z) finds bytes and a limit that is over: bytes are no idleness."""
    proxy = command(echo.name, "--quiet", "--idle-timeout", "3s")
    with connect(proxy.address) as near:
        near.sendall(b"one")
        assert read_exactly(near, 3) == b"one"
        with frozen(proxy):
            near.sendall(b"two")
            assert not select.select([near], [], [], 3.5)[0]
        assert read_exactly(near, 3) == b"two"


def test_events_of_a_client_that_is_not_relayed_yet(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 71: a client that has sent, and ended, before its upstream is connected loses nothing of it."""
    proxy = command(upstream.name, "--quiet", "--workers", "1")
    address = proxy.address
    with frozen(proxy):
        clients = [connect(address) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
            if number % 2:
                client.shutdown(socket.SHUT_WR)
    words = set()
    for _ in clients:
        with upstream.accept() as far:
            words.add(far.recv(100))
            far.sendall(b"answer")
    assert words == {b"%d" % number for number in range(20)}
    for client in clients:
        assert read_all(client) == b"answer"
        client.close()


# --- edges ---


def test_no_edge_is_lost(link: Link) -> None:
    """Row 68: ping-pong of messages just around the sizes that matter; an edge that is lost stops it for ever."""
    sizes = [1, 2, 1000, 65535, 65536, 65537, 131072, 262144, 262145]
    chance = random.Random(7)
    rounds = [chance.choice(sizes) for _ in range(600)]
    near, far = link.pair()

    def answer() -> None:
        for size in rounds:
            far.sendall(read_exactly(far, size))

    with near, far, in_background(answer):
        for size in rounds:
            data = payload(size, size)
            near.sendall(data)
            assert read_exactly(near, size) == data


def test_end_right_behind_the_last_byte(link: Link) -> None:
    """Row 68: the end races with the read of the last bytes, a few hundred times."""
    for number in range(300):
        near, far = link.pair()
        with near, far:
            near.sendall(b"x" * (number + 1))
            near.shutdown(socket.SHUT_WR)
            assert read_all(far) == b"x" * (number + 1)
            far.close()
            assert read_all(near) == b""
