"""Builds the compiled core; everything else about the package is in pyproject.toml."""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = ["connecting", "engine", "events", "half", "handoff", "relay", "spin", "table", "timers", "worker"]
POLLERS = {"linux": "epoll"}
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "autotestdict": False,
    "auto_pickle": False,
}


def poller():
    """The one poller of this platform; TCPPROXY_POLLER names another one for tests."""
    name = os.environ.get("TCPPROXY_POLLER") or POLLERS.get(sys.platform)
    if name not in ("epoll", "poll"):
        sys.exit(f"tcpproxy: no poller {name or 'for ' + sys.platform!r}, expected TCPPROXY_POLLER=epoll or poll")
    return f"poller_{name}"


def extension(module, source):
    return Extension(
        f"tcpproxy._core.{module}",
        [f"tcpproxy/_core/{source}.pyx"],
        include_dirs=["tcpproxy/_core"],
        depends=["tcpproxy/_core/net.h", "tcpproxy/_core/sync.h"],
        extra_compile_args=["-O2", "-Wall", "-Werror=implicit-function-declaration"],
    )


setup(
    # A tree for each poller: the second build of a checkout must not take over modules of the first.
    options={"build": {"build_base": f"build/{poller()}"}},
    ext_modules=cythonize(
        [extension(module, module) for module in MODULES]
        + [extension("poller", poller())]
        + [extension("splice", "splice_linux" if sys.platform == "linux" else "splice_none")],
        build_dir=f"build/{poller()}",
        compiler_directives=DIRECTIVES,
        show_all_warnings=False,
    ),
)
