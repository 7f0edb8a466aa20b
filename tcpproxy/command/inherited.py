"""What the process inherits: signals, a terminal, children. Imported first, so that it is right during the imports."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

hung_up: list[int] = []
"""SIGHUP, for each one that came before `serve` set its handlers and that had no terminal to tell about."""

IGNORED = ("SIGUSR2", "SIGTTOU", "SIGCHLD")
"""Ignored from the start.

SIGUSR2 would end a process that does not know it, and some send it to see a program's state. By SIGTTOU a terminal with
`stty tostop` stops a background process that writes to it: the relay would stop for a log line. SIGTSTP (Ctrl-Z) and
SIGTTIN keep their effect: a user wants the first, and nothing reads the terminal. The command starts no processes; by
ignoring SIGCHLD it tells the kernel to reap those of a script that became the command by `exec`, and those that fall to
PID 1.
"""

SHOWING = ("SIGUSR1", "SIGINFO")
"""They make `serve` show the live connections; SIGINFO is Ctrl-T where it exists, and harmless by itself."""


VIEWING = ("SIGWINCH", "SIGTSTP", "SIGQUIT", "SIGCONT")
"""They are for the live view: the terminal has a new size, it is wanted by others (Ctrl-Z, Ctrl-\\), and it may be ours
again."""


def prepare() -> None:
    """Sets right what the process has inherited. At the very start, before the long imports.

    A blocked signal would never arrive: it is unblocked. One that is ignored stays so (nohup, a script's `&`). Until
    `serve` sets its handlers, SIGINT and SIGTERM end the process as they end any program, and SIGHUP does so only if
    there is a terminal.
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
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # last: one that waits is delivered at once


def nothing(_number: int, _frame: object) -> None:
    """A handler: `serve` reads of a signal from a socket."""


def is_ignored(number: int) -> bool:
    """Is this signal ignored?"""
    return signal.getsignal(number) == signal.SIG_IGN


def stopping_signals() -> list[int]:
    """Those that stop the proxy and are not ignored: SIGHUP only if there is a terminal, which is then gone."""
    names = ["SIGINT", "SIGTERM"]
    if sys.platform == "win32":
        names.append("SIGBREAK")  # Ctrl-Break, or the console window was closed
    elif _has_terminal():
        names.append("SIGHUP")
    return [number for name in names if not is_ignored(number := getattr(signal, name))]


def _has_terminal() -> bool:
    """Has the process a controlling terminal?"""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))  # to write, the sandbox forbids
        return True
    for number in range(3):  # a container or chroot may have no /dev/tty
        with contextlib.suppress(OSError):
            os.tcgetpgrp(number)  # fails unless it is the controlling terminal
            return True
    return False


def _replace(name: str, handler: object) -> None:
    """Sets what a signal does, if this system has it and it has its default effect."""
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _reap() -> None:
    """Reaps the children that have ended before SIGCHLD was ignored."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
