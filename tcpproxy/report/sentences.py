"""Events as sentences, in the words of the Rust tcpproxy for those that it has. Pure functions."""

from __future__ import annotations

from .event import Event


def sentences(event: Event, *, numbered: bool, several: bool) -> list[str]:
    """The lines of an event: one, but three for the end of a connection.

    Args:
        event: the event.
        numbered: a line about a connection ends with its number, as `#17`.
        several: there are several forwards: lines about listeners and connections name the target.
    """
    number = f" #{event.id}" if numbered and event.id else ""
    route = f" -> {event.target}" if several and event.target else ""
    who = origin(event.client, event.via) + route
    match event.kind:
        case "listening":
            return [f"Listening on {event.text}{route}"]
        case "new":
            return [f"New connection from {who}{number}"]
        case "connected":
            source = f" from {event.outgoing}" if event.outgoing else ""
            took = f"in {event.connect_time * 1000:.1f} ms"
            return [f"Connected {event.client}{route} to {event.upstream}{source} {took}{number}"]
        case "failed" if event.reason == "limit" and not event.error:
            return [f"Refused {who}: its source has as many connections as it may{number}"]
        case "failed" if event.reason == "denied":
            return [f"Refused {who}: its address is not allowed{number}"]
        case "failed" if event.reason == "proxy-header":
            return [f"Refused {event.client}{route}: no valid PROXY header: {event.text}{number}"]
        case "failed":
            where = f" ({event.upstream or event.target or 'upstream'} for client {event.client}{route})"
            return [f"Error establishing upstream connection: {event.text or event.reason}{where}{number}"]
        case "accept-error":
            return [f"Error accepting a connection: {event.text}; trying again every 100 ms"]
        case "limit":
            return ["The limit of connections is reached; new ones wait"]
        case "end":
            return [
                f"Transferred {event.to_upstream} bytes from proxy client {event.client} to upstream server{number}",
                f"Transferred {event.to_client} bytes from upstream server to proxy client {event.client}{number}",
                f"{_closed(event, route)}: {event.reason}{number}",
            ]
        case "fault":
            moved = f"{event.to_upstream} bytes to upstream, {event.to_client} to the client"
            return [f"Fault {event.text} acts on {event.client}{route}, after {moved}{number}"]
        case "upstream-down":
            instead = f", using {event.upstream}" if event.upstream else ""
            return [f"Upstream {event.target} does not answer ({event.text or event.reason}){instead}"]
        case "upstream-up":
            return [f"Upstream {event.target} answers again"]
        case "forwarding":
            return [f"Forwarding to {event.text}"]
        case "stopping":
            return [f"Stopping: {event.text}"]
        case "lost":
            return [event.text]
    return [f"{event.kind}: {event.text}"]


def origin(client: str, via: str) -> str:
    """Where a connection comes from.

    Args:
        client: the address of the client.
        via: the proxy that has sent this address by the PROXY protocol; empty: there is none.
    """
    return f"{client} via {via}" if via else client


def sentence(event: Event, *, several: bool = False) -> str:
    """An event in one sentence, with the number of its connection."""
    if event.kind != "end":
        return sentences(event, numbered=True, several=several)[0]
    moved = f"{event.to_upstream} bytes to upstream, {event.to_client} to the client"
    route = f" -> {event.target}" if several else ""
    return f"{_closed(event, route)}, {moved}: {event.reason} #{event.id}"


def _closed(event: Event, route: str) -> str:
    source = f" from {event.outgoing}" if event.outgoing else ""
    there = f"{source} to {event.upstream}"
    connect = f", connected in {event.connect_time * 1000:.1f} ms{there}" if event.connect_time else ""
    return f"Closed {event.client}{route} after {event.duration:.3f} s{connect}"
