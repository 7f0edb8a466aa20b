"""The end of a stream is passed on, behind every byte, and the other direction lives on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from support import (
    Link,
    descriptors,
    eventually,
    in_background,
    payload,
    read_all,
    read_exactly,
    send_and_shut,
)

MIB = 1 << 20


def test_half_close_then_the_answer(link: Link) -> None:
    """Rows 1, 2: one side ends, the other still answers."""
    near, far = link.pair()
    with near, far:
        send_and_shut(near, b"question")
        assert read_all(far) == b"question"
        send_and_shut(far, b"answer")
        assert read_all(near) == b"answer"


def test_five_mebibytes_after_a_fin(link: Link) -> None:
    """Row 3."""
    near, far = link.pair()
    data = payload(5 * MIB)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        with in_background(send_and_shut, far, data):
            assert read_all(near) == data


def test_send_and_close_with_a_slow_reader(link: Link) -> None:
    """Rows 4, 10: the sender is gone long before its bytes have arrived."""
    near, far = link.pair()
    data = payload(20 * MIB)
    with far:
        with in_background(lambda: (near.sendall(data), near.close())):
            received = bytearray()
            while part := far.recv(100_000):
                received += part
        assert received == data


def test_slow_reader_that_keeps_sending(link: Link) -> None:
    """Row 5: the answer ends while its reader still sends; nothing is destroyed by a reset."""
    near, far = link.pair()
    data = payload(8 * MIB)
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            near.sendall(bytes(1000))

    def listen() -> None:
        while far.recv(65536):
            pass

    with near, far, in_background(send_and_shut, far, data):
        with in_background(listen):
            with in_background(chatter):
                received = bytearray()
                while part := near.recv(50_000):
                    received += part
                stop.set()
            near.shutdown(socket.SHUT_WR)
        assert received == data
