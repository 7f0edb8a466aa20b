"""Signals as the process inherits them. Imported first, so that they are right while the rest is imported."""

from __future__ import annotations

import os
import signal
import sys

STOPPING = ["SIGINT", "SIGTERM"]
"""They stop the proxy; SIGHUP too, if the process has a controlling terminal, which is then gone."""

if sys.platform == "win32":
    STOPPING.append("SIGBREAK")  # Ctrl-Break, or the console window was closed

HARMLESS = ("SIGUSR1", "SIGUSR2")
"""They would end a process that does not know them: a first try of who wants to see its state."""


def prepare() -> None:
    """Sets the signals right that the process has inherited. At the very start, before the long imports.

    A blocked signal would never arrive: it is unblocked. One that is ignored stays so (nohup, a script's `&`). Until
    `serve` sets its handlers, a signal ends the process as it ends any program.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [getattr(signal, name) for name in (*STOPPING, "SIGHUP", *HARMLESS)])
    for name in HARMLESS:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name in STOPPING:
        number = getattr(signal, name)
        if os.getpid() == 1:
            # The kernel drops a signal to PID 1 that has no handler, instead of ending it.
            if not is_ignored(number):
                signal.signal(number, lambda number, _frame: os._exit(128 + number))
        elif signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)  # no traceback


def is_ignored(number: int) -> bool:
    """Is this signal ignored?"""
    return signal.getsignal(number) == signal.SIG_IGN
