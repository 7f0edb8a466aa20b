"""A TCP proxy for the one-time task: a command, and a library for tests and programs."""

from .errors import StartError, TcpProxyError, UsageError, WorkerError
from .logs import Event
from .proxy import Connection, Proxy, Stats

__version__ = "0.1.0"
__all__ = ["Connection", "Event", "Proxy", "StartError", "Stats", "TcpProxyError", "UsageError", "WorkerError"]
