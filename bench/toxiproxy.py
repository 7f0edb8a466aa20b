"""toxiproxy as a peer: its server, which learns from its HTTP API what to do to connections."""

from __future__ import annotations

import dataclasses
import http.client
import json
from pathlib import Path
from typing import Any

from bench.peers import Peer, Way
from bench.process import free_port
from bench.programs import GET, go_module, said, which

NAME = "relay"


def find(skipped: dict[str, str]) -> list[Peer]:
    """Returns the peer, or adds to `skipped` how to get it."""
    program = which("toxiproxy-server")
    if not program:
        skipped["toxiproxy"] = f"{GET} (needs Go)"
        return []

    def command(way: Way) -> list[str]:
        config = [{"name": NAME, "listen": f"{way.host}:{way.port}", "upstream": way.upstream, "enabled": True}]
        Path(way.directory, "toxiproxy.json").write_text(json.dumps(config))
        api = free_port()
        _api_file(way.directory).write_text(str(api))
        file = str(way.directory / "toxiproxy.json")
        return [program, "-host", "127.0.0.1", "-port", str(api), "-config", file]

    # Installed as a Go module, it does not know its own version.
    version = go_module(program, "toxiproxy") or said([program, "-version"]).split()[-1]
    return [Peer("toxiproxy", version, command, special=True)]


def _api_file(directory: Path) -> Path:
    return directory / "toxiproxy.api"


def with_toxic(peer: Peer, kind: str, **attributes: int) -> Peer:
    """Returns the peer with a toxic on what clients get."""

    def add(way: Way) -> None:
        toxic = {"type": kind, "stream": "downstream", "toxicity": 1.0, "attributes": attributes}
        Api(way.directory).call("POST", f"/proxies/{NAME}/toxics", toxic)

    return dataclasses.replace(peer, prepare=add)


class Api:
    """The API of the server that was started with this directory, over one connection."""

    def __init__(self, directory: Path) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", int(_api_file(directory).read_text()), timeout=10)

    def call(self, method: str, path: str, body: Any = None) -> None:
        """Calls it.

        Raises:
            ValueError: it says no.
        """
        self._connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise ValueError(f"toxiproxy: {method} {path}: {text[-200:].decode(errors='replace')}")
