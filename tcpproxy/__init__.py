"""A TCP proxy for the one-time task: a command, and a library for tests and programs.

    with tcpproxy.Proxy("db.example:5432") as proxy:
        connection = socket.create_connection(proxy.address)

Proxy          listens and forwards; help(tcpproxy.Proxy) lists its options
Event          a fact about a proxy or a connection, as `on_event` gets it; EventKind and Reason are types of its fields
Stats          numbers, from Proxy.stats()
Connection     a live connection, from Proxy.connections(); State is the type of its state
Forward        a place to listen and its target, from Proxy.forwards
Recording      the bytes of a connection, from Proxy.recordings; Chunk is one read
faults         the module with what a proxy does to connections on purpose: latency, reset_peer, preset...
TcpProxyError  base of all errors: UsageError, StartError, WaitTimeout, WorkerError

The names are imported when they are first used.
"""

TYPE_CHECKING = False  # typing's own costs the command milliseconds
if TYPE_CHECKING:
    from . import faults as faults
    from .errors import StartError, TcpProxyError, UsageError, WaitTimeout, WorkerError
    from .proxy import Proxy
    from .report.event import Event, EventKind, Reason
    from .tap.recording import Chunk, Recording
    from .views import Connection, Forward, State, Stats

__version__ = "0.1.0"
__all__ = [
    "Chunk",
    "Connection",
    "Event",
    "EventKind",
    "Forward",
    "Proxy",
    "Reason",
    "Recording",
    "StartError",
    "State",
    "Stats",
    "TcpProxyError",
    "UsageError",
    "WaitTimeout",
    "WorkerError",
]

if not TYPE_CHECKING:  # with a module __getattr__ a type checker accepts any name

    def __getattr__(name: str) -> object:
        """Imports a name's module at its first use."""
        import importlib

        if name == "faults":  # a module, which everybody expects to be there
            return importlib.import_module(".faults", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "Proxy":
            home = "proxy"
        elif name in ("Event", "EventKind", "Reason"):
            home = "report.event"
        elif name in ("Chunk", "Recording"):
            home = "tap.recording"
        elif name in ("Connection", "Forward", "State", "Stats"):
            home = "views"
        else:
            home = "errors"
        try:
            module = importlib.import_module(f".{home}", __name__)
        except ImportError as error:
            from .errors import not_compiled

            raise not_compiled(error) from None
        return globals().setdefault(name, getattr(module, name))

    def __dir__() -> list[str]:
        """The public names, also those that are not imported yet."""
        return [*__all__, "__version__"]
