"""The results of `Proxy.stats`, `Proxy.connections` and `Proxy.forwards`."""

from dataclasses import dataclass
from typing import Literal

State = Literal["resolving", "connecting", "relaying", "closing", "ended"]
"""The state of a connection.

resolving: it waits for the addresses of upstream's name.
connecting: it connects to upstream.
relaying: bytes pass.
closing: it passes on a reset, or discards what a peer sends after both ends.
ended: it has ended.
"""

Direction = Literal["to_upstream", "to_client"]
"""The direction of bytes: those to_upstream were sent by the client, those to_client by upstream."""

Alias = Literal["up", "upstream", "down", "downstream"]
"""Other words that are accepted for a direction: short ones, and those of toxiproxy."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers since the start, over all workers.

    Attributes:
        accepted: connections accepted.
        active: connections alive now: `accepted` less `ended`.
        ended: connections that have ended, for whatever reason.
        failed: connections among `ended` whose upstream was not reached.
        refused: clients that were reset at once, not among `accepted`: not admitted by `allow` or `deny`, too many of
            one source, an invalid PROXY header, no memory, or their worker has failed.
        bytes_to_upstream: bytes delivered to upstream.
        bytes_to_client: bytes delivered to clients.
        bytes_spliced: delivered bytes that never left the kernel.
        accept_errors: calls of accept that failed.
        events_lost: event records that were dropped because the log thread was too slow.
        wakeups: returns of workers from waiting for events. Constant while nothing happens.
        polls_hit: busy polls that brought an event.
        polls_missed: busy polls that brought none.
        accepted_by_worker: connections that each worker has served.
    """

    accepted: int
    active: int
    ended: int
    failed: int
    refused: int
    bytes_to_upstream: int
    bytes_to_client: int
    bytes_spliced: int
    accept_errors: int
    events_lost: int
    wakeups: int
    polls_hit: int
    polls_missed: int
    accepted_by_worker: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection, at the time of the call.

    Attributes:
        id: its number, from 1, in the order of accept.
        client: the client's address, `host:port`.
        upstream: upstream's address, `host:port`; empty until it is connected.
        state: what it is doing: a State.
        to_upstream: bytes delivered to upstream.
        to_client: bytes delivered to the client.
        age: seconds since the client was accepted; of an ended connection, its duration.
        connect_time: seconds from accept until upstream was connected; 0: it is not.
        idle: seconds since bytes last passed, or else since upstream was connected, or since accept.
        waiting_for_upstream: bytes that the proxy has read from the client, and upstream has not taken yet.
        waiting_for_client: the same in the other direction.
        outgoing: the proxy's own address toward upstream, `host:port`; empty until it is connected.
        reason: why it ended: a Reason; empty while it lives.
        target: the target that it is connected to, or tries, as it was given.
        faults: the names of the faults that have acted on it: held, cut or discarded something.
        held: bytes that faults hold now, to upstream and to the client. `waiting_for_upstream` and `waiting_for_client`
            include them.
        via: the proxy that has sent the client's address by the PROXY protocol, `host:port`; empty: there is none.
    """

    id: int
    client: str
    upstream: str
    state: State
    to_upstream: int
    to_client: int
    age: float
    connect_time: float
    idle: float
    waiting_for_upstream: int
    waiting_for_client: int
    outgoing: str
    reason: str = ""
    target: str = ""
    faults: tuple[str, ...] = ()
    held: tuple[int, int] = (0, 0)
    via: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward of a proxy: a place to listen, and where its connections go.

    Attributes:
        spec: as it was given: an item of `forwards`, or the remote.
        address: the first (host, port) that it listens on, or the path of a UNIX socket.
        port: its port; 0: a UNIX socket.
        target: where it forwards to, as it was given; several targets have commas between them.
    """

    spec: str
    address: tuple[str, int] | str
    port: int
    target: str
