"""Places that tests go to: network namespaces, and addresses that refuse connections or answer nothing."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import wire
from support.machine import needs
from support.waiting import TIMEOUT


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> list[str]:
    """Makes the name `both.test` have these addresses, in a list that may be changed."""
    answers, real = list(hosts), socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **options: object) -> object:
        if host != "both.test" or options.get("flags"):
            return real(host, port, *args, **options)  # type: ignore[arg-type]
        return [found for each in answers for found in real(each, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


class Closed:
    """An address that refuses connections, until somebody listens there."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.bind((host, port))
        self.host, self.port = self.socket.getsockname()[:2]
        self.name = f"{host}:{self.port}"

    def listen(self) -> None:
        self.socket.listen()
        self.socket.settimeout(TIMEOUT)

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(TIMEOUT)
        return connection

    def close(self) -> None:
        self.socket.close()


class Silent(Closed):
    """An address that answers nothing: its queue of connections is full, so the kernel drops every SYN."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.socket.listen(0)
        self.socket.settimeout(TIMEOUT)
        self._fillers: list[socket.socket] = []
        while True:
            filler = socket.socket(self.socket.family)
            filler.setblocking(False)
            filler.connect_ex((self.host, self.port))
            if not select.select([], [filler], [], 0.2)[1]:
                filler.close()  # its SYN was dropped: full
                break
            self._fillers.append(filler)

    def let_in(self) -> None:
        """Takes connections again. Who waits gets in with his next SYN, within about a second."""
        self.socket.listen(64)
        for filler in self._fillers:
            self.accept().close()
            filler.close()
        self._fillers.clear()

    def close(self) -> None:
        for filler in self._fillers:
            filler.close()
        super().close()


class Namespace:
    """A network namespace of the test's own, with loopback up, in which commands run and sockets are made."""

    def __init__(self) -> None:
        needs("ip")
        self.name = f"tcpproxy-{os.getpid()}-{time.monotonic_ns()}"
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        self.wrapper = ("ip", "netns", "exec", self.name)
        """Makes a Command run in here."""
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)
        self.ip("link", "set", "lo", "up")

    def _enter(self) -> None:
        # Moves only the calling thread; a socket belongs to the namespace of the thread that makes it.
        with open(f"/run/netns/{self.name}") as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")

    def call(self, function: Callable[..., object], *args: object) -> Any:
        """Calls it in a thread that is in here."""
        return self._thread.submit(function, *args).result(TIMEOUT)

    def ip(self, *args: str) -> None:
        subprocess.run(["ip", "-n", self.name, *args], check=True, capture_output=True)

    def sysctl(self, name: str, value: str) -> None:
        self.call(self._write, f"/proc/sys/{name.replace('.', '/')}", value)

    @staticmethod
    def _write(path: str, text: str) -> None:
        with open(path, "w") as file:
            file.write(text)

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def join(self, other: Namespace, name: str = "v") -> None:
        """Lays a cable to another one: an interface of this name in each."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", other.name)

    def address(self, interface: str, address: str, *options: str) -> None:
        """Gives an interface an address, and starts it."""
        self.ip("address", "add", address, "dev", interface, *options)
        self.ip("link", "set", interface, "up")

    def nft(self, rules: str) -> None:
        """Carries out commands of nft; skips the test where packets cannot be filtered."""
        needs("nft")
        argv = [*self.wrapper, "nft", rules]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nft does not work here: {done.stderr.strip()}")


class Wire:
    """A bad cable between two namespaces, 10.0.0.1 and 10.0.0.2; wire.py says what it can do to packets."""

    def __init__(self, one: Namespace, other: Namespace, impairment: wire.Impairment, mtu: int = 1500) -> None:
        argv = [sys.executable, wire.__file__, one.name, other.name, json.dumps(dataclasses.asdict(impairment))]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        if (said := self._process.stdout.readline()) != "ready\n":
            self._process.communicate()
            pytest.skip(f"no TUN devices here: {said.strip()}")
        for number, namespace in enumerate((one, other), 1):
            namespace.ip("link", "set", wire.DEVICE, "mtu", str(mtu))
            namespace.address(wire.DEVICE, f"10.0.0.{number}/24")

    def unplug(self) -> dict[str, int]:
        """Ends it. Returns how many packets there were, and how many of them had which fate."""
        said, _ = self._process.communicate(timeout=TIMEOUT)
        counts: dict[str, int] = json.loads(said)
        return counts

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
