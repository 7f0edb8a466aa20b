"""Builds the compiled core; everything else about the package is in pyproject.toml."""

import os
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CHOSEN = ("poller", "splice")
"""Modules of which there is a file for each kind of system."""

MODULES = sorted(path.stem for path in Path("tcpproxy/_core").glob("*.pyx") if path.stem.split("_")[0] not in CHOSEN)
POLLERS = {
    "linux": "epoll",
    "win": "poll",
    **dict.fromkeys(("macosx", "freebsd", "openbsd", "netbsd", "dragonfly"), "kqueue"),
}
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "autotestdict": False,
    "auto_pickle": False,
    "freethreading_compatible": True,
}

SYSTEM = sysconfig.get_platform().split("-")[0]
"""What is compiled for, which sys.platform is not in a cross build: linux, macosx, win, freebsd, ..."""

HEADERS = [
    f"tcpproxy/_core/{name}.h"
    for name in ("net", "net_posix", "net_windows", "address", "unix", "sockopt", "thread", "sync", "file")
]

DOUBLE = "tests/platforms/kqueue"
"""A kqueue for Linux, with which the kqueue poller is tested there; that build also does without what macOS has not."""

STABLE_ABI = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}
"""One wheel for every Python from 3.11 on; a free-threaded Python has no stable ABI that goes back so far."""

MSVC = os.name == "nt"
"""Compiled on Windows: by Microsoft's compiler, which reads neither CFLAGS nor LDFLAGS."""

CFLAGS = "-O2 -g0 -DNDEBUG -fwrapv -Wall -Werror=implicit-function-declaration"
LDFLAGS = ""
if SYSTEM != "win":
    CFLAGS += " -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2"
if SYSTEM not in ("win", "macosx"):  # ELF
    LDFLAGS += "-Wl,-z,relro,-z,now,-z,noexecstack"


def poller():
    """The one poller of this platform; TCPPROXY_POLLER names another one for tests."""
    name = os.environ.get("TCPPROXY_POLLER") or POLLERS.get(SYSTEM)
    if name is None:
        sys.exit(
            f"tcpproxy does not know {sysconfig.get_platform()}, but {', '.join(POLLERS)}. For a relative of one of "
            "these teach tcpproxy/_core/net_posix.h its sockets; then TCPPROXY_POLLER=poll pip install ."
        )
    if name not in ("epoll", "kqueue", "poll"):
        sys.exit(f"tcpproxy has no poller {name!r}: TCPPROXY_POLLER is epoll, kqueue or poll")
    if name == "kqueue" and SYSTEM == "linux" and not os.path.exists(f"{DOUBLE}/kqueue.c"):
        sys.exit(f"tcpproxy: on Linux TCPPROXY_POLLER=kqueue is for tests, and needs {DOUBLE} of the source tree")
    return f"poller_{name}"


DOUBLED = SYSTEM == "linux" and poller() == "poller_kqueue"


def extension(module, source, *more):
    return Extension(
        f"tcpproxy._core.{module}",
        [f"tcpproxy/_core/{source}.pyx", *more],
        include_dirs=["tcpproxy/_core", *([DOUBLE] if DOUBLED else [])],
        depends=HEADERS,
        libraries=["ws2_32"] if SYSTEM == "win" else [],
        # Checked indirect calls, and no time of day in the file: as hardened and as reproducible as the ELF files.
        extra_compile_args=["/guard:cf", "/Brepro"] if MSVC else [],
        extra_link_args=["/guard:cf", "/Brepro"] if MSVC else [],
        define_macros=[
            *([("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else []),
            *([("NET_AS_ON_MACOS", None)] if DOUBLED else []),
        ],
        py_limited_api=bool(STABLE_ABI),
    )


# In front of what the environment says, which is so the last word.
for variable, flags in (("CFLAGS", CFLAGS), ("LDFLAGS", LDFLAGS)):
    os.environ[variable] = f"{flags} {os.environ.get(variable, '')}"

setup(
    options={
        # A tree for each poller: the second build of a checkout must not take over modules of the first.
        "build": {"build_base": f"build/{poller()}"},
        "bdist_wheel": STABLE_ABI,
    },
    ext_modules=cythonize(
        [extension(module, module) for module in MODULES]
        + [extension("poller", poller(), *([f"{DOUBLE}/kqueue.c"] if DOUBLED else []))]
        + [extension("splice", "splice_linux" if SYSTEM == "linux" and not DOUBLED else "splice_none")],
        build_dir=f"build/{poller()}",
        compiler_directives=DIRECTIVES,
        show_all_warnings=False,
    ),
)
