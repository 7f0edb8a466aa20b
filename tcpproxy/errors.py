"""What can go wrong, each with the exit code that the command gives it."""

from __future__ import annotations

import errno
import os
import socket
import sys


def describe(error: int) -> str:
    """What the system says about an errno; of Winsock's, which strerror does not know, Python has a table."""
    table: dict[int, str] = getattr(socket, "errorTab", {})
    return table[error].rstrip(".") if error in table else os.strerror(error)


class TcpProxyError(Exception):
    """Base of every error that tcpproxy raises on purpose; its text is one sentence for a person."""

    exit_code = 1


class UsageError(TcpProxyError, ValueError):
    """An argument that cannot be meant: the text names the value and what was expected."""

    exit_code = 2


class StartError(TcpProxyError, OSError):
    """The proxy could not start listening or get what it needs; `errno` is what the system said.

    Args:
        what: what could not be done, with the address that it was about.
        error: what the system or the interpreter refused: an OSError, or one without a number, as for a thread.
    """

    def __init__(self, what: str, error: Exception) -> None:
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        super().__init__(number, f"{what}: {describe(number) if number else error}")

    def __str__(self) -> str:
        return str(self.strerror)


class WorkerError(TcpProxyError, OSError):
    """A worker ended by itself: its poller failed, and the proxy has stopped. Nothing a peer does leads here."""

    def __str__(self) -> str:
        return f"the relay has stopped: {self.strerror} ({self.filename})"


def not_compiled(error: ImportError) -> ImportError:
    """What to raise when the compiled core cannot be imported; the command ends with its text.

    Args:
        error: what the import said.
    """
    import sysconfig  # not above: a start that goes well does without

    folder = os.path.dirname(__file__)
    text = (
        f"tcpproxy: {folder} holds no compiled core that this Python {sys.version.split()[0]} for "
        f"{sysconfig.get_platform()} can load ({error}). If that is a source tree, compile it with "
        f"`{sys.executable} -m pip install {os.path.dirname(folder)}`, which needs a C compiler (with -e if that is "
        "how it was installed). If not, `pip install --force-reinstall tcpproxy`."
    )
    return ImportError(text, name="tcpproxy")
