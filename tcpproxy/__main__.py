"""The command's entry point, also as `python -m tcpproxy`."""

import signal
import sys


def main() -> None:
    """Runs the command. Ctrl-C before its handlers are set ends the process by the signal, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup ignores it: then it stays ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from ._core.worker import POLLER  # noqa: F401
    except ImportError as error:
        from .errors import not_compiled

        sys.exit(str(not_compiled(error)))
    from .command import cli  # late: its imports take most of the time of a start

    cli.main()


if __name__ == "__main__":
    main()
