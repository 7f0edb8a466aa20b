"""A cable between two network namespaces that treats packets badly, for kernels without netem.

Each end is a TUN device; this program, in a process of its own, carries packets from one to the other, and leaves out,
holds back, doubles and damages some of them, chosen by a seed.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from collections import Counter

DEVICE = "wire"
"""The interface at each end."""

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclasses.dataclass(frozen=True)
class Impairment:
    """What happens to packets, in each direction by itself. Shares are of all packets, 0 to 1."""

    delay: float = 0.0
    """Seconds."""
    jitter: float = 0.0
    """Seconds more or less; packets stay in order all the same."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """These overtake what is on its way: they have no delay."""
    corrupt: float = 0.0
    """These have one bit turned, which a checksum always catches."""
    rate: float = 0.0
    """Bytes a second; 0: no limit."""
    queue: float = 0.1
    """Seconds that a packet waits at most for its turn at that rate; it is dropped instead."""
    seed: int = 1


class Direction:
    """From one end to the other."""

    def __init__(self, sink: int, impairment: Impairment, name: str) -> None:
        self.sink, self.impairment = sink, impairment
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(f"{impairment.seed} {name}")
        self._under_way: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._latest = self._free = 0.0

    def take(self, packet: bytes, now: float) -> None:
        it, hits = self.impairment, self._hits
        self.counts["packets"] += 1
        if hits("loss", it.loss):
            return
        if hits("corrupt", it.corrupt):
            damaged = bytearray(packet)
            bit = self._chance.randrange(8 * len(packet))
            damaged[bit // 8] ^= 1 << bit % 8
            packet = bytes(damaged)
        for _ in range(2 if hits("duplicate", it.duplicate) else 1):
            if it.rate:
                self._free = max(now, self._free)
                if self._free - now > it.queue:
                    self.counts["dropped"] += 1
                    continue
                self._free += len(packet) / it.rate
            leaves = self._free if it.rate else now
            due = leaves + it.delay + self._chance.uniform(-it.jitter, it.jitter)
            if hits("reorder", it.reorder):
                due = leaves
            else:
                self._latest = due = max(due, self._latest)
            self._number += 1
            heapq.heappush(self._under_way, (due, self._number, packet))

    def _hits(self, what: str, share: float) -> bool:
        if share and self._chance.random() < share:
            self.counts[what] += 1
            return True
        return False

    def deliver(self, now: float) -> float:
        """Passes on what is due. Returns the seconds until there is more; a minute at most."""
        while self._under_way and self._under_way[0][0] <= now:
            _, _, packet = heapq.heappop(self._under_way)
            with contextlib.suppress(OSError):  # what is damaged so that it is no IP packet, and an end that is down
                os.write(self.sink, packet)
        return max(0.0, self._under_way[0][0] - now) if self._under_way else 60.0


def plug(namespace: str) -> int:
    """Opens a TUN device in the namespace. It belongs to where the thread is that opens it."""
    import fcntl  # not at the top, which Windows reads too

    with open(f"/run/netns/{namespace}") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    return device


def main(one: str, other: str, impairment: Impairment) -> None:
    """Says "ready" on stdout once both devices are there, carries packets until stdin ends, and says how many."""
    left, right = plug(one), plug(other)
    directions = {left: Direction(right, impairment, "there"), right: Direction(left, impairment, "back")}
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        patience = min(direction.deliver(now) for direction in directions.values())
        ready, _, _ = select.select([sys.stdin, left, right], [], [], patience)
        if sys.stdin in ready:
            break
        for device in ready:
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    directions[device].take(os.read(device, 65536), time.monotonic())
    print(json.dumps(sum((direction.counts for direction in directions.values()), Counter())))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], Impairment(**json.loads(sys.argv[3])))
    except OSError as error:
        print(error)
