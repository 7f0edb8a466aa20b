"""A TCP proxy for the one-time task: a command, and a library for tests and programs."""

from .errors import StartError, TcpProxyError, UsageError, WorkerError, not_compiled

try:
    from .proxy import Connection, Proxy, Stats
except ImportError as error:
    raise not_compiled(error) from None
from .logs import Event

__version__ = "0.1.0"
__all__ = ["Connection", "Event", "Proxy", "StartError", "Stats", "TcpProxyError", "UsageError", "WorkerError"]
