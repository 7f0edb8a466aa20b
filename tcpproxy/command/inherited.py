"""Inherited signals, terminal and children. Imported first, because signals must work during later imports."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

hung_up: list[int] = []
"""The number of SIGHUP, once for each that arrived without a terminal and before `serve` set its handlers."""

IGNORED = ("SIGUSR2", "SIGTTOU", "SIGCHLD")
"""Signals that are ignored from the start.

SIGUSR2 ends a process that has no handler for it, and people send it to programs that may print their state.
SIGTTOU stops a background process that writes to a terminal with `stty tostop`: a log line would stop the relay.
With SIGCHLD ignored, the kernel reaps children. The command starts none, but it inherits the children of a script that
became the command by `exec`, and as PID 1 every orphan.
SIGTSTP (Ctrl-Z) and SIGTTIN keep their effect: a user wants the first, and nothing reads the terminal.
"""

SHOWING = ("SIGUSR1", "SIGINFO")
"""Signals that make `serve` show the live connections. SIGINFO is Ctrl-T on the BSDs and macOS; it ends no process."""

VIEWING = ("SIGWINCH", "SIGTSTP", "SIGQUIT", "SIGCONT")
"""Signals for the live view: the terminal has a new size; Ctrl-Z; Ctrl-\\; the process is continued."""


def prepare() -> None:
    """Unblocks signals, ignores or handles those that must not end the process, reaps inherited children.

    To be called at the very start, before the long imports. Signals are unblocked, because a blocked one would never
    arrive. Signals that are ignored already stay ignored (nohup, a script's `&`). Until `serve` sets its handlers,
    SIGINT and SIGTERM have their default effect, and so has SIGHUP if there is a terminal.
    """
    for name in IGNORED:
        _replace(name, signal.SIG_IGN)
    if hasattr(signal, "SIGCHLD"):
        _reap()
    for name in SHOWING:
        _replace(name, nothing)
    stopping = stopping_signals()
    if hasattr(signal, "SIGHUP") and signal.SIGHUP not in stopping:
        _replace("SIGHUP", lambda number, _frame: hung_up.append(number))
    for number in stopping:
        if os.getpid() == 1:
            # The kernel drops a signal to PID 1 that has no handler, instead of ending it.
            signal.signal(number, lambda number, _frame: os._exit(128 + number))
        elif signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)  # no traceback
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # last: a pending signal is delivered at once


def nothing(_number: int, _frame: object) -> None:
    """A handler that does nothing: `serve` reads the number of the signal from a socket (`signal.set_wakeup_fd`)."""


def is_ignored(number: int) -> bool:
    """Is this signal ignored?"""
    return signal.getsignal(number) == signal.SIG_IGN


def stopping_signals() -> list[int]:
    """Returns the numbers of the signals that stop the proxy and are not ignored.

    SIGHUP stops the proxy only if there is a terminal: then it means that the terminal has gone.
    """
    names = ["SIGINT", "SIGTERM"]
    if sys.platform == "win32":
        names.append("SIGBREAK")  # Ctrl-Break, or the console window was closed
    elif _has_terminal():
        names.append("SIGHUP")
    return [number for name in names if not is_ignored(number := getattr(signal, name))]


def _has_terminal() -> bool:
    """Does the process have a controlling terminal?"""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))  # read-only: the sandbox forbids to write
        return True
    for number in range(3):  # a container or chroot may have no /dev/tty
        with contextlib.suppress(OSError):
            os.tcgetpgrp(number)  # fails unless it is the controlling terminal
            return True
    return False


def _replace(name: str, handler: object) -> None:
    """Sets the handler of a signal, if this system has the signal and its effect is still the default."""
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _reap() -> None:
    """Reaps the children that ended before SIGCHLD was ignored."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
