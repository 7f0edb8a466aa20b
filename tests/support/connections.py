"""A connection as a proxy shows it, for tests of what is made of it."""

from __future__ import annotations

from tcpproxy import Connection

ONE = Connection(
    id=17,
    client="127.0.0.1:52714",
    upstream="10.0.0.5:5432",
    state="relaying",
    to_upstream=1382,
    to_client=360_000_000,
    age=7980.0,
    connect_time=0.0021,
    idle=0.25,
    waiting_for_upstream=0,
    waiting_for_client=65536,
    outgoing="10.0.0.9:33412",
)
