"""Event: a fact about a proxy or one of its connections, made from an event record of the core."""

import errno
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import describe

if TYPE_CHECKING:
    from ..inforce import Faults

EventKind = Literal[
    "new",
    "connected",
    "end",
    "failed",
    "accept-error",
    "limit",
    "fault",
    "upstream-down",
    "upstream-up",
    "listening",
    "warning",
    "lost",
    "forwarding",
    "stopping",
]
"""What an Event is about.

new: a client was accepted.
connected: its upstream is connected.
end: a connection that was connected has ended; `reason` says why.
failed: upstream was not reached, or the client was turned away (`reason` is `denied`, `proxy-header`, `limit`,
    `shutdown` or `killed`); the client was reset.
accept-error: accepting pauses, because the system has no descriptor or memory.
limit: accepting pauses, because there are `max_connections` connections.
fault: a fault has acted on a connection for the first time. `text` is its name; `to_upstream` and `to_client` are the
    bytes that were delivered by then.
upstream-down: `target`, one of several of a forward, was reached before, and was not reached now. `upstream` is the
    target that is tried instead. There is one such event until `target` is reached again.
upstream-up: `target` is reached again.
listening: the proxy listens on the address in `text`.
warning: a sentence for the operator, in `text`.
lost: records or lines were left out, and `text` says how many; or a capture has ended, and `text` says why.
forwarding: the command says on a terminal where it forwards to; `text` says where. Not in a program.
stopping: the command waits for connections to end; `text` says how long. Not in a program.
"""

Reason = Literal[
    "",
    "client-eof",
    "upstream-eof",
    "client-reset",
    "upstream-reset",
    "idle",
    "half-close-timeout",
    "connect-refused",
    "connect-timeout",
    "unreachable",
    "dns",
    "limit",
    "shutdown",
    "killed",
    "fault",
    "denied",
    "proxy-header",
]
"""Why a connection ended or failed.

client-eof, upstream-eof: both sides have ended their directions; this one was first.
client-reset, upstream-reset: this side has reset the connection, has failed, or was found dead.
idle: no byte for `idle_timeout`.
half-close-timeout: one direction had ended, and no byte moved in the other one for `half_close_timeout`.
connect-refused: upstream refused the connection.
connect-timeout: upstream was not connected within `connect_timeout`.
unreachable: upstream could not be reached for another reason; `error` has it.
dns: upstream's name did not resolve.
limit: the client's source has `max_connections_per_source` connections, or the system has no descriptor, port or memory
    (`error` says which).
shutdown: the proxy was stopped, or has failed.
killed: the program has ended it (`Proxy.kill`, `Proxy.down`).
fault: a fault has ended it.
denied: `allow` or `deny` does not admit the client's address.
proxy-header: a peer in `accept_proxy` has sent no header of the PROXY protocol, or an invalid one; `text` says what is
    wrong with it.
"""


class Event(NamedTuple):
    """A fact about the proxy or one of its connections.

    Attributes:
        kind: what it is about: an EventKind.
        reason: why the connection ended or failed: a Reason; empty for other kinds.
        error: the errno that is the cause; 0: none.
        client: the client's address, `host:port`; empty where the event is about no connection.
        upstream: the address that was connected, or tried last; empty if there was none. `upstream-down`: the target
            that is tried instead.
        to_upstream: bytes delivered from client to upstream.
        to_client: bytes delivered from upstream to client.
        duration: seconds since the client was accepted.
        connect_time: seconds from accept until upstream was connected; 0: it was not.
        text: `listening`: the address; `warning`: the sentence; `failed`: what the system said; `lost`: how many of
            what; `fault`: its name.
        id: the number of the connection, from 1, in the order of accept; 0: the event is about no connection.
        outgoing: the proxy's own address toward upstream, `host:port`; empty if upstream was not connected.
        time: when it happened, in seconds since 1970.
        lost: of the kind `lost`: how many lines; with a `reason`: how many `failed` with that reason.
        faults: of `end` and `failed`: the names of the faults that have acted on the connection.
        target: the target that the connection goes to, or has tried last, as it was given. `listening` and `new` have
            all targets of the forward. Empty: the event is about no listener, connection or target.
        via: the proxy that has sent the client's address by the PROXY protocol, `host:port`; empty: there is none.
    """

    kind: EventKind
    reason: Reason = ""
    error: int = 0
    client: str = ""
    upstream: str = ""
    to_upstream: int = 0
    to_client: int = 0
    duration: float = 0.0
    connect_time: float = 0.0
    text: str = ""
    id: int = 0
    outgoing: str = ""
    time: float = 0.0
    lost: int = 0
    faults: tuple[str, ...] = ()
    target: str = ""
    via: str = ""


Record = tuple[EventKind, Reason, int, int, str, str, str, int, int, float, float, float, int, str, str, int]
"""What Worker.take_events returns: (kind, reason, errno, id, client, upstream, outgoing, to_upstream, to_client,
duration, connect_time, time, key of a fault or number of another target, via, what is wrong with its PROXY header,
number of the target)."""


OF_TARGETS: tuple[EventKind, ...] = ("upstream-down", "upstream-up")
"""Kinds of events about a target, and not about a connection."""


def is_new(record: Record) -> bool:
    """Is it about a new connection?"""
    return record[0] == "new"


def decode(record: Record, target: str, lookup_error: str, faults: "Faults | None" = None, instead: str = "") -> Event:
    """Makes an Event from a record of the core.

    Args:
        record: what `Worker.take_events` returned.
        target: the target, as it was given.
        lookup_error: why the last lookup of the target's name failed.
        faults: has the names of faults, and counts what they have done; None: there are none.
        instead: `upstream-down`: the target that is tried instead of this one; empty: none is left.
    """
    kind, reason, error, number, client, upstream, outgoing, to_upstream, to_client = record[:9]
    duration, connect_time, time, key, via, text, _ = record[9:]
    acted: tuple[str, ...] = ()
    if kind == "fault":
        text = faults.note(number, key) if faults else ""
    elif faults and kind in ("end", "failed"):
        acted = faults.forget(number)
    if reason == "dns":
        text = f"failed to lookup address information: {lookup_error or 'no answer in time'}"
    elif error:
        text = f"{describe(error)} (os error {error})"
        if error == errno.EADDRNOTAVAIL and reason == "limit":
            text = f"no free local port: {text}"
    return Event(
        kind,
        reason,
        error,
        client,
        instead or upstream,
        to_upstream,
        to_client,
        duration,
        connect_time,
        text,
        number,
        outgoing,
        time,
        faults=acted,
        target=target if number or kind in OF_TARGETS else "",
        via=via,
    )
