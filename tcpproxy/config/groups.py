"""The options: a group is a frozen dataclass, and each of its fields the row of one option."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from .._core.worker import LIMITS
from .endpoints import Endpoint
from .forwards import ForwardSpec
from .options import (
    Option,
    address,
    busy_poll,
    choice,
    duration,
    faults,
    file_mode,
    flag,
    forwards,
    local_port,
    networks,
    number,
    path,
    place,
    preset,
    proxies,
    rates,
    rows,
    size,
    sources,
    version,
    workers,
)

UNIX_MODE = "0600"
"""The counterpart of the loopback address."""

_WHOLE = 1024**2
"""Bytes: more than a read takes of a proxy whose bytes are looked at."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the proxy listens."""

    bind: str = address(
        "127.0.0.1",
        "Address or name to listen on.",
        "A name, an IPv4 address, an IPv6 address with or without brackets, or the path of a UNIX socket "
        "(`/run/db.sock`). `localhost` is both families on one port, `*` or `::` is all addresses of both families, "
        "`0.0.0.0` is all IPv4 addresses.",
        short="-b",
        first=True,
    )
    port: int = local_port(
        "Port to listen on.",
        "`0` picks a free port.",
        flag="local-port",
        short="-l",
        first=True,
    )
    forwards: tuple[ForwardSpec, ...] = forwards(
        "A forward, instead of REMOTE; may be repeated.",
        "`-L 8080:db:5432` listens on port 8080 of this machine alone, as `-l 8080 db:5432` does; "
        "`-L '*:8080:db:5432'` lets others connect. Each has its own target, all have the same options, and if one "
        "cannot listen, none does. docs/forwards.md has all forms.",
        flag="forward",
        short="-L",
        first=True,
    )
    unix_mode: int = file_mode(
        UNIX_MODE,
        "Rights of the file of a listening UNIX socket.",
        "In octal: who may write to the file may connect. The file never has more rights than these. With `0666` every "
        "user of the machine may connect, and a warning says so.",
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Connecting:
    """How upstream is connected to."""

    source: tuple[str, ...] = sources(
        "Address of this machine to connect from.",
        "An IP address; it may be given twice, once for IPv4 and once for IPv6. Addresses of a target whose family has "
        "no source are passed over; UNIX sockets have none. The system chooses the port. It is an error if the address "
        "is not this machine's.",
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Clients:
    """How many clients are served."""

    max_connections: int | None = number(
        None,
        "Connections at a time; further clients wait.",
        "They are accepted when other connections end.",
        least=1,
        most=LIMITS["connections"],
        shown="from the open files limit",
    )
    max_connections_per_source: int = number(
        None,
        "Connections of one source; further ones are reset.",
        "Each of those is logged with the reason `limit`. A source is an IPv4 address or the /64 of an IPv6 address: "
        "one host usually has a whole /64, and hosts that share one share the number.",
        least=1,
        most=LIMITS["connections"],
        unset=0,
        shown="any number",
        minor=True,
    )
    allow: tuple[Any, ...] | None = networks(
        "Networks that clients may come from; others are reset.",
        "Addresses, and networks like `10.0.0.0/8` or `2001:db8::/32`; may be repeated. With any of them everybody "
        "else is reset, of both families: `10.0.0.0/8` shuts all IPv6 out, and `::/0` lets in no IPv4. An IPv4 client "
        "of a listener for both families counts as IPv4. Clients of UNIX sockets always may. There are no names: "
        "nothing is looked up.",
    )
    deny: tuple[Any, ...] | None = networks(
        "Networks whose clients are reset, whatever --allow says.",
        "As `--allow`; the order of the two does not matter. Such a client is logged with the reason `denied`, before "
        "anything is done for it. A firewall would spare the handshake, which the kernel has made by then.",
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class ProxyProtocol:
    """Who the client is, told from proxy to proxy."""

    send_proxy: str | None = version(
        "Send clients' addresses to upstream, by the PROXY protocol.",
        "The first bytes that upstream gets are a header, `v1` (a line of text) or `v2` (binary), with the client's "
        "address and the one that it has connected to. Upstream must be told to expect it. It is sent at once, also if "
        "the client sends nothing. A client of a UNIX socket has no address: the header says that.",
    )
    accept_proxy: tuple[Any, ...] | None = proxies(
        "Peers that send clients' addresses, by the PROXY protocol.",
        "A connection from these networks is reset unless it begins with a header of the PROXY protocol, v1 or v2. "
        "`unix` stands for all peers of UNIX sockets. The address in the header then counts as the client's: in the "
        "log, for `--allow` and `--deny`, for `--max-connections-per-source`, and for `--send-proxy`. All other peers "
        "are clients, whatever they send.",
    )
    proxy_header_timeout: float = duration(
        "10s",
        "Limit for the header of a peer in --accept-proxy.",
        "Some load balancers send it only with the client's first bytes: those must be told to send it at once. An "
        "error without `--accept-proxy`.",
        least=3,
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long things may take."""

    connect_timeout: float = duration(
        "10s",
        "Limit for reaching REMOTE, name lookup included.",
        "A client whose upstream is not connected within this time is reset.",
        least=0.001,
    )
    half_close_timeout: float = duration(
        "60s",
        "Inactivity limit after one direction has ended.",
        "The connection is reset when no byte has passed in the other direction for this time. `0`: the first end "
        "closes both directions, as in the Rust tcpproxy 0.4.",
    )
    idle_timeout: float = duration(
        "off",
        "Inactivity that ends a connection.",
        "The connection is reset when no byte has passed in either direction for this time. `off`: no limit.",
        least=0.001,
        off=True,
    )
    keepalive: int = duration(
        "60s",
        "Idle time until TCP keepalive probes start.",
        "A peer that answers no probe is reset after a further half of this time, or 3 s if that is longer; on Linux "
        "also a peer that has not acknowledged all bytes yet. A peer that answers and merely does not read is kept. "
        "The time is rounded up to whole seconds. `off`: no probes.",
        least=1,
        most=32767,
        off=True,
        whole=True,
    )
    grace: float = duration(
        "5s",
        "Time for open connections to end when stopping.",
        "The proxy stops listening at once on SIGTERM or SIGINT (in a program: in `stop`). Connections that are still "
        "open after this time are reset. A second signal resets them at once. The default is shorter than the 10 s "
        "after which `docker stop` kills a container.",
        embedded="0s",
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How much is kept of what passes."""

    buffer_size: int = size(
        "64KiB",
        "Bytes per read, and kept for a slow receiver.",
        "The most that one read takes, and the most that the proxy keeps of a direction whose receiver is slow.",
        least=1024,
        most=16 * 1024**2,
    )
    socket_buffer: int = size(
        "off",
        "Kernel buffer of each socket and direction.",
        "Bounds what the kernel holds of a stalled direction. `off`: the system's choice, which grows to several MiB "
        "for a slow receiver. A buffer that is too small for a fast and distant peer makes that peer slower.",
        least=4096,
        most=1024**3,
        off=True,
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast bytes may pass: (to upstream, to clients), in bytes per second; 0: as fast as they can."""

    max_rate: tuple[int, int] = rates(
        "Bytes per second, of all connections together.",
        "For each direction: `10MB/s`, `100Mbit/s`; or apart, `to_upstream=1MB/s,to_client=10MB/s`. All "
        "connections have equal shares, and one that needs less leaves the rest to the others. Senders are slowed down "
        "by TCP: nothing is kept. `off` or `0`: no limit.",
        minor=True,
    )
    max_rate_per_connection: tuple[int, int] = rates(
        "Bytes per second, of each connection.",
        "As `--max-rate`. Both may be given.",
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the command prints."""

    debug: bool = flag(
        "Print how each connection ended, and its bytes.",
        "Three lines per connection on stderr: the bytes of each direction, then duration, connect time and reason.",
        short="-d",
        first=True,
        command_only=True,
    )
    quiet: bool = flag(
        "Print no line for a new connection.",
        "Leaves out `New connection from ADDR:PORT`.",
        short="-q",
        command_only=True,
    )
    log_format: str = choice(
        ("text", "json"),
        "Format of all log lines.",
        "`json`: one object a line, all on stdout, with the start and the end of each connection, and the error that "
        "ends the command. docs/seeing.md lists the fields.",
        command_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """How what passes is shown and kept."""

    top: bool = flag(
        "Show the live connections, and keep showing them.",
        "All of the terminal shows who is connected, how fast, and which side is slow, once a second, with the log at "
        "its foot; keys sort and scroll. Needs rich: `pip install 'tcpproxy[top]'`. Not with JSON, `-x` or `-A`, and "
        "not on Windows.",
        command_only=True,
    )
    hex: bool = flag(
        "Print the bytes that pass, in hex.",
        "Each read of the proxy is a block on stdout: a line with direction, time, number of the connection, length "
        "and offsets, and lines as those of `hexdump -C`. If output is slow, blocks are left out and counted; the "
        "bytes are never delayed.",
        short="-x",
        command_only=True,
    )
    text: bool = flag(
        "Print the bytes that pass, as text.",
        "As `-x`, but a read that is mostly UTF-8 text is printed as text, with everything that is not printable "
        "escaped.",
        short="-A",
        command_only=True,
    )
    dump_limit: int = size(
        "4KiB",
        "Bytes of each read that -x and -A print.",
        "The number of the other bytes follows. `off`: all are printed. An error without `-x` or `-A`.",
        least=1,
        most=_WHOLE,
        off=True,
        command_only=True,
        minor=True,
    )
    capture: str | None = path(
        "Write what passes to a pcapng file, for Wireshark.",
        "Each connection is one TCP stream from its client to upstream, made from what the proxy has read and "
        "delivered; no special rights are needed. The file is overwritten, and only its owner may read it. With a "
        "named pipe, the proxy waits for its reader before it listens. `-` is stdout; all lines then go to stderr. A "
        "slow disk or reader slows the connections down, so that the capture is complete. A full disk ends the "
        "capture but not the connections, and the exit code is then 1.",
        metavar="FILE|-",
    )
    capture_rotate: int = size(
        "off",
        "Begin another capture file at this size.",
        "The files are named as dumpcap names them: `a.pcapng` becomes `a_00001_20261128193000.pcapng` and so on, with "
        "the local time. A connection goes on in the next file; `mergecap -a` joins files.",
        least=64 * 1024,
        most=1024**4,
        off=True,
        minor=True,
    )
    capture_files: int = number(
        None,
        "Capture files to keep; the oldest goes.",
        "With `1` the capture ends when the file is full, and the connections go on.",
        least=1,
        most=99999,
        unset=0,
        shown="any number",
        minor=True,
    )
    color: str = choice(
        ("auto", "always", "never"),
        "Colors, one per direction, in -x and -A.",
        "`auto`: if stdout is a terminal, `TERM` is not `dumb` and `NO_COLOR` is unset or empty.",
        command_only=True,
        minor=True,
    )

    @property
    def shown(self) -> int:
        """Bytes of each read to show; 0: nothing is shown."""
        return (self.dump_limit or _WHOLE) if self.hex or self.text else 0


@dataclass(frozen=True, kw_only=True)
class Bending:
    """What is done to connections on purpose."""

    fault: tuple[Any, ...] = faults(
        "Delay, cut, stall or refuse connections on purpose.",
        "`[DIRECTION:]KIND[=VALUE][,KEY=VALUE]...`, like `to_upstream:latency=100ms,jitter=20ms`; several times for "
        "several faults. Without a direction it is `to_client`. `--help-faults` lists the kinds, "
        "docs/faults.md says what they do.",
        command_only=True,
    )
    preset: tuple[Any, ...] = preset(
        "Imitate the latency and rate of a network.",
        "Latency and rates of WebPageTest's profiles: 2g, edge, 3gslow, 3g, 3gfast, 4g, lte, dial, dsl, cable, fios. "
        "The command prints the faults that it stands for.",
        command_only=True,
    )
    seed: int | None = number(
        None,
        "Seed of the random numbers of faults.",
        "The same seed chooses the same connections and delays. The command prints it.",
        least=0,
        most=2**64 - 1,
        shown="random",
        command_only=True,
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Operating:
    """How the process runs."""

    workers: int = workers(
        "Number of threads that relay.",
        "From 1 to 64. `auto`: one for each CPU that the process may use, by its affinity and by the CPU quota of its "
        "control groups.",
    )
    sandbox: str = choice(
        ("auto", "off", "require"),
        "Drop rights that relaying does not need (Linux).",
        "Gives up for good: new privileges, changes of files, starting programs, signals to other processes, and TCP "
        "connections to ports other than REMOTE's (and 53, for names). `auto`: as much of it as the kernel has. "
        "`require`: the command does not start unless the kernel has no_new_privs and Landlock with TCP ports (Linux "
        "6.7).",
        command_only=True,
    )
    metrics: Endpoint | None = place(  # noqa: RUF009  it returns a field
        "Serve Prometheus metrics and health checks over HTTP.",
        "`/metrics` for Prometheus, `/healthz` and `/readyz` for probes: docs/metrics.md lists names and answers. A "
        "port alone is on 127.0.0.1; other machines reach `0.0.0.0:9464`. Needs prometheus-client: `pip install "
        "'tcpproxy[metrics]'`.",
        command_only=True,
        minor=True,
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What is tried to be fast."""

    zero_copy: str = choice(
        ("auto", "off"),
        "Move bulk bytes inside the kernel (Linux).",
        "`auto`: by splice on Linux; elsewhere bytes are copied. `off`: bytes are always copied.",
        hidden=("always",),  # from the first byte on, for tests
    )
    busy_poll: int = busy_poll(
        "Poll before sleeping, for shorter round trips.",
        "How long a worker polls after an event before it sleeps, from 1 to 1000 microseconds. `auto`: only while gaps "
        "between events are short, no other thread wants the CPU, and a measurement shows a gain; not under a CPU "
        "quota, which polling would use up.",
    )


class Options(TypedDict, total=False):
    """The arguments of `tcpproxy.Proxy` beside `remote` and `on_event`; `Proxy` describes each."""

    bind: str | os.PathLike[str]
    port: int | str
    forwards: Sequence[str]
    unix_mode: int | str
    source: Sequence[str]
    max_connections: int | str | None
    max_connections_per_source: int | str | None
    allow: str | Sequence[str] | None
    deny: str | Sequence[str] | None
    send_proxy: str | None
    accept_proxy: str | Sequence[str] | None
    proxy_header_timeout: float | str
    connect_timeout: float | str
    half_close_timeout: float | str
    idle_timeout: float | str | None
    keepalive: float | str | None
    grace: float | str
    buffer_size: int | str
    socket_buffer: int | str | None
    max_rate: str | None
    max_rate_per_connection: str | None
    capture: str | None
    capture_rotate: int | str | None
    capture_files: int | str | None
    workers: int | str
    zero_copy: str
    busy_poll: int | str


GROUPS: dict[str, type[Any]] = {
    "listening": Listening,
    "connecting": Connecting,
    "clients": Clients,
    "proxy_protocol": ProxyProtocol,
    "timeouts": Timeouts,
    "memory": Memory,
    "rates": Rates,
    "output": Output,
    "seeing": Seeing,
    "bending": Bending,
    "operating": Operating,
    "speed": Speed,
}
"""By their names in `Config`, in the order of --help."""

ROWS: dict[str, list[Option]] = {name: rows(group) for name, group in GROUPS.items()}


HEADINGS = {
    "listening": "Listening",
    "connecting": "Connecting",
    "clients": "Clients",
    "proxy_protocol": "PROXY protocol",
    "timeouts": "Time-outs",
    "memory": "Memory",
    "rates": "Rates",
    "output": "Output",
    "seeing": "Seeing",
    "bending": "Faults",
    "operating": "Operating",
    "speed": "Speed",
}
"""Of --help and docs/options.md. No docstrings: python -OO has none."""


def every_row() -> list[Option]:
    """The options of all groups, in order."""
    return [option for options in ROWS.values() for option in options]
