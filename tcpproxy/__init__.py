"""A TCP proxy for the one-time task: a command, and a library for tests and programs."""

TYPE_CHECKING = False  # typing's own costs the command milliseconds
if TYPE_CHECKING:
    from .errors import StartError, TcpProxyError, UsageError, WorkerError
    from .proxy import Proxy
    from .report.event import Event
    from .views import Connection, Stats

__version__ = "0.1.0"
__all__ = ["Connection", "Event", "Proxy", "StartError", "Stats", "TcpProxyError", "UsageError", "WorkerError"]

if not TYPE_CHECKING:  # a type checker takes it for a promise of any name at all

    def __getattr__(name: str) -> object:
        """Imports what is asked for first; the command needs a moment before that, for its signals."""
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = {"Proxy": "proxy", "Event": "report.event", "Connection": "views", "Stats": "views"}
        home = homes.get(name, "errors")
        try:
            module = importlib.import_module(f".{home}", __name__)
        except ImportError as error:
            from .errors import not_compiled

            raise not_compiled(error) from None
        return globals().setdefault(name, getattr(module, name))
