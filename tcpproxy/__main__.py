"""The command's entry point, also as `python -m tcpproxy`."""

import signal
import sys


def main() -> None:
    """Runs the command. Ctrl-C before it is set up ends it like any program: by the signal, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from ._core.worker import POLLER  # noqa: F401
    except ImportError as error:
        from .errors import not_compiled

        sys.exit(str(not_compiled(error)))
    from .command import cli  # the imports behind it take most of a start's time

    cli.main()


if __name__ == "__main__":
    main()
