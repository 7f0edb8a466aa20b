"""The exceptions of tcpproxy, each with the exit code of the command."""

from __future__ import annotations

import errno
import os
import socket
import sys

TYPE_CHECKING = False  # typing's own costs the command milliseconds
if TYPE_CHECKING:
    from typing import Self


def describe(error: int) -> str:
    """Returns the system's text for an errno. strerror does not know Winsock's numbers: Python has a table of them."""
    if error == errno.EDEADLK:  # of the core alone: a target that would lead to the proxy's own listener
        return "it is this proxy's own address"
    table: dict[int, str] = getattr(socket, "errorTab", {})
    return table[error].rstrip(".") if error in table else os.strerror(error)


class TcpProxyError(Exception):
    """Base of all errors that tcpproxy raises on purpose; the text is one sentence."""

    exit_code = 1


class UsageError(TcpProxyError, ValueError):
    """An invalid argument; the text names the value and what was expected."""

    exit_code = 2


CANNOT_REFUSE = "a proxy that was given sockets cannot refuse clients, expected one with a port of its own"
"""The text of a UsageError. The proxy cannot refuse clients of given sockets: they would wait in the shared backlog."""


class StartError(TcpProxyError, OSError):
    """The proxy cannot listen, or the system refuses a descriptor, memory or a thread; `errno` is the system's.

    Its arguments are those of any OSError, so that it can be copied and pickled.
    """

    @classmethod
    def because(cls, what: str, error: Exception) -> Self:
        """Makes a StartError from another error.

        Args:
            what: what could not be done, with the address.
            error: the error of the system or the interpreter; it has no errno unless it is an OSError.
        """
        if isinstance(error, socket.gaierror):  # its number is the resolver's, not an errno
            return cls(None, f"{what}: {error.strerror}")
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        return cls(number, f"{what}: {describe(number) if number else error}")

    def __str__(self) -> str:
        return str(self.strerror)


class WaitTimeout(TcpProxyError, TimeoutError):  # noqa: N818, a kind of TimeoutError
    """A wait has reached its time limit; the text shows what has happened."""


class WorkerError(TcpProxyError, OSError):
    """A worker has ended because its poller failed, and the proxy has stopped. No peer can cause it."""

    def __str__(self) -> str:
        return f"the relay has stopped: {self.strerror} ({self.filename})"


def not_compiled(error: ImportError) -> ImportError:
    """Returns the error to raise when the compiled core cannot be imported; the command prints its text and ends.

    Args:
        error: the error of the import.
    """
    if "interpreter" in str(error).lower():  # Cython's words, or those of Python 3.12 and later
        text = f"tcpproxy: one interpreter of a process can load the core, and another one has ({error})"
        return ImportError(text, name="tcpproxy")
    import sysconfig  # here: only a failed import needs it

    folder = os.path.dirname(__file__)
    text = (
        f"tcpproxy: {folder} holds no compiled core that this Python {sys.version.split()[0]} for "
        f"{sysconfig.get_platform()} can load ({error}). If that is a source tree, compile it with "
        f"`{sys.executable} -m pip install {os.path.dirname(folder)}`, which needs a C compiler (with -e if that is "
        "how it was installed). If not, `pip install --force-reinstall tcpproxy`."
    )
    return ImportError(text, name="tcpproxy")
