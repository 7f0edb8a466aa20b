"""Steady bulk: whoever sends or receives goes first (SCHED_BATCH), as long as nobody has a conversation."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable

import pytest
from support.command import Command
from support.peers import Upstream, connect
from support.streams import bulk, talk
from support.waiting import TIMEOUT, eventually

if sys.platform != "linux":
    pytest.skip("another system has no SCHED_BATCH", allow_module_level=True)

OTHER, BATCH = {os.SCHED_OTHER}, {os.SCHED_BATCH}
ENOUGH = 1 << 30
"""Bytes, within which it is tried: see LOOK in bulk.pyx."""

SET_SCHEDULER = {"x86_64": 144, "aarch64": 119}
"""The number of this system call."""


def policies(proxy: Command) -> set[int]:
    """Of its threads."""
    return {os.sched_getscheduler(int(task)) for task in os.listdir(f"/proc/{proxy.process.pid}/task")}


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("zero_copy", ["auto", "off"])
def test_bulk_goes_last(
    command: Callable[..., Command], upstream: Upstream, zero_copy: str, workers: str, down: bool
) -> None:
    """Whether that pays depends on the machine, but it is tried; and given up for a conversation, of any worker."""
    proxy = command(upstream.name, "--quiet", "--zero-copy", zero_copy, "--workers", workers)
    with connect(proxy.address) as client, upstream.accept() as server:
        assert policies(proxy) == OTHER
        with bulk([(server, client) if down else (client, server)]):
            eventually(lambda: policies(proxy) >= BATCH, TIMEOUT, "it was never tried")
            with connect(proxy.address) as near, upstream.accept() as far:
                until = time.monotonic() + TIMEOUT
                calm, last = 0, 0.0
                while calm < 20:
                    talk(near, far)
                    found = policies(proxy)
                    # Without a turn for a tenth of a second, and this machine may be busy, nobody talks.
                    in_time, last = time.monotonic() - last < 0.05, time.monotonic()
                    calm = calm + 1 if in_time and found == OTHER else 0
                    assert calm or time.monotonic() < until, "it stays so beside a conversation"
            eventually(lambda: policies(proxy) >= BATCH, TIMEOUT, "it was not tried again")
    with connect(proxy.address) as client, upstream.accept() as server:
        talk(client, server)
        eventually(lambda: policies(proxy) == OTHER, TIMEOUT, "it stays so after bulk")


def test_a_policy_that_somebody_has_chosen_stays(command: Callable[..., Command], upstream: Upstream) -> None:
    proxy = command(
        upstream.name,
        "--quiet",
        preexec_fn=lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    )
    assert_policy_stays(proxy, upstream, BATCH)


def test_a_filter_that_ends_the_process(command: Callable[..., Command], upstream: Upstream) -> None:
    """As of a service that is allowed no "@resources"."""
    number = SET_SCHEDULER.get(os.uname().machine)
    if number is None:
        pytest.skip(f"the number of a system call is not known for {os.uname().machine}")
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number of the call
            (0x15, 0, 1, number),  # if it is this one,
            (0x06, 0, 0, 0x80000000),  # end the process
            (0x06, 0, 0, 0x7FFF0000),  # else allow it
        )
    )
    code = ctypes.create_string_buffer(program)
    filter_ = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None)

    def install() -> None:
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, filter_) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    assert_policy_stays(command(upstream.name, "--quiet", preexec_fn=install), upstream, OTHER)


def assert_policy_stays(proxy: Command, upstream: Upstream, policy: set[int]) -> None:
    with connect(proxy.address) as client, upstream.accept() as server, bulk([(client, server)]) as moved:
        eventually(lambda: policies(proxy) != policy or moved() > ENOUGH, TIMEOUT)
        assert policies(proxy) == policy
    over = time.monotonic() + 0.5  # bulk is after a tenth of a second without bytes
    with connect(proxy.address) as client, upstream.accept() as server:
        while time.monotonic() < over:
            talk(client, server)
            assert policies(proxy) == policy
