"""The command's entry point, also as `python -m tcpproxy`."""

import errno
import gc
import os
import sys

from .command.inherited import prepare


def main() -> None:
    """Runs the command. Until `serve` sets its handlers, signals have their default effect: see `prepare`."""
    prepare()
    try:
        _run()
    except MemoryError:
        sys.exit(f"tcpproxy: cannot start: {os.strerror(errno.ENOMEM)}")


def _run() -> None:
    gc.disable()  # the imports make next to no garbage
    try:
        from ._core.worker import POLLER  # noqa: F401
    except ImportError as error:
        from .errors import not_compiled

        sys.exit(str(not_compiled(error)))
    from .command import cli  # late: its imports take most of the time of a start

    gc.freeze()  # else the next collection looks at all that they have made: 3 ms
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
