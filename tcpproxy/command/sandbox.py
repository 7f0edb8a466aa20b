"""Drops privileges that the relay does not need, to limit what an exploited bug can do. Linux only.

For the command only: a process cannot regain privileges, so a library must not drop those of its program. They are
dropped for the calling thread and for threads that it starts later.
"""

from __future__ import annotations

import os
import re
import sys

from ..config.config import Config
from ..config.groups import every_row
from ..errors import StartError
from ..network.resolver import numeric

# Numbers of linux/prctl.h, of the system calls (the same on every architecture), and of linux/landlock.h.
_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_CONNECT_TCP = 1 << 1
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1 << 0, 1 << 1

_EXECUTE, _WRITE_FILE = 1 << 0, 1 << 1
_REMOVE_FILE, _MAKE_REG = 1 << 5, 1 << 8
_CHANGES = sum(1 << bit for bit in range(4, 13))
"""Making and removing files and directories. Reading stays allowed: the C library loads resolver libraries late."""
_REFER, _TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 13, 1 << 14, 1 << 15, 1 << 16

NSSWITCH = "/etc/nsswitch.conf"
DNS = 53
LOOKUPS = {"files", "dns", "resolve", "myhostname", "mymachines", "mdns", "mdns_minimal", "mdns4", "mdns4_minimal"}
"""Sources of host names in nsswitch.conf that use no TCP port or 53. Others, such as NIS and LDAP, use other ports."""

REFUSED = "Landlock refuses"


def enter(config: Config, mode: str) -> str:
    """Gives up the rights to gain privileges, change files, run programs, signal other processes, connect elsewhere.

    To be called before the first thread starts.

    Args:
        config: says where the proxy connects to, and which files it writes.
        mode: `auto`: give up what the system supports; `require`: all of it; `off`: nothing.

    Returns:
        A sentence to print when upstream cannot be reached, if the sandbox may be the cause; else empty.

    Raises:
        StartError: `require`, and the system does not support all of it.
    """
    if mode == "off":
        return ""
    missing = _no_new_privileges() or _landlock(config)
    if missing and mode == "require":
        raise StartError.because("cannot enter the sandbox that is required", OSError(missing))
    return "" if missing else _suspicion(ports_to_reach(config) or set())


def _suspicion(ports: set[int]) -> str:
    """Returns a sentence if a preloaded library has replaced connect(), as proxychains and torsocks do; else empty.

    They connect to the port of their own proxy, torsocks also for look-ups, and the sandbox refuses that. The errno
    does not show the cause: EACCES also comes from routes and SELinux, and proxychains turns it into ECONNREFUSED.

    Args:
        ports: the TCP ports that the sandbox allows; empty: it allows all.
    """
    library = _library_of("connect")
    # Usually libc.so.6, libc-2.31.so, libpthread.so.0 (glibc before 2.34), ld-musl-*.so.1, or the program itself.
    if not ports or not re.search(r"\.so\b", library) or re.match(r"(libc|libpthread|ld-musl)\b", library):
        return ""
    option = {row.name: row.long for row in every_row()}["sandbox"]
    allowed = " and ".join(map(str, sorted(ports, reverse=True)))
    return (
        f"{library} has taken connect() over in this process, and the sandbox refuses it every port but {allowed}; "
        f"{option} off lifts that"
    )


def _library_of(name: str) -> str:
    """Returns the file name of the library that defines a C function in this process; empty if unknown."""
    try:
        import ctypes

        libraries = ctypes.CDLL(None)
        found = (ctypes.c_void_p * 4)()  # Dl_info, which begins with the path
        known = libraries.dladdr(ctypes.cast(getattr(libraries, name), ctypes.c_void_p), found)
        return os.path.basename(os.fsdecode(ctypes.string_at(found[0] or 0))) if known else ""
    except Exception:  # as in _call
        return ""


def _no_new_privileges() -> str:
    """Sets no_new_privs. Returns what the system does not support, or an empty text."""
    if not sys.platform.startswith("linux"):
        return "this system has none"
    return "" if _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else "no_new_privs is refused"


def _landlock(config: Config) -> str:
    """Gives up the other rights, by Landlock. Returns what the system does not support, or an empty text."""
    version = _call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return "the kernel has no Landlock, or it is switched off"
    files = _EXECUTE | _WRITE_FILE | _CHANGES
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        files |= right if version >= since else 0
    ports = ports_to_reach(config)
    paths = paths_to_reach(config)
    if version >= 9 and paths is not None:  # older versions do not restrict connects to UNIX sockets
        files |= _RESOLVE_UNIX
    words = [files]
    if version >= 4:
        words.append(0 if ports is None else _CONNECT_TCP)
    if version >= 6:
        abstract = any(each.path.startswith("@") for forward in config.forwards for each in forward.targets)
        words.append(_SCOPE_SIGNAL | (0 if abstract else _SCOPE_ABSTRACT_UNIX))
    attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    ruleset = _call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return REFUSED
    folders = {}
    if config.seeing.capture and config.seeing.capture_rotate:
        rights = files & (_WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE)
        folders[os.path.dirname(config.seeing.capture) or "."] = rights
    for path in paths or () if files & _RESOLVE_UNIX else ():
        # Allow the folder, because a server that is restarted makes a new file.
        folder = os.path.dirname(path)
        folders[folder] = folders.get(folder, 0) | _RESOLVE_UNIX
    try:
        allowed = all(_allow_port(ruleset, port) for port in ports or ()) if version >= 4 else True
        allowed = allowed and all(_allow_beneath(ruleset, folder, rights) for folder, rights in folders.items())
        if not allowed or _call("syscall", _RESTRICT_SELF, ruleset, 0) < 0:
            return REFUSED
    finally:
        os.close(ruleset)
    return "" if version >= 4 else "Landlock of this kernel has no TCP ports; Linux 6.7 is needed"


def _allow_port(ruleset: int, port: int) -> bool:
    """Adds a rule: TCP may connect to this port. False: the system refuses the rule."""
    rule = _CONNECT_TCP.to_bytes(8, sys.byteorder) + port.to_bytes(8, sys.byteorder)
    return _call("syscall", _ADD_RULE, ruleset, _NET_PORT, rule, 0) == 0


def _allow_beneath(ruleset: int, folder: str, rights: int) -> bool:
    """Adds a rule: these rights hold in a folder and below. False: it is refused, or there is no such folder."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        return _call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) == 0
    finally:
        os.close(fd)


def paths_to_reach(config: Config) -> set[str] | None:
    """Returns the paths of UNIX sockets to connect to. None: any, because look-ups of names may use other ones."""
    targets = [each for forward in config.forwards for each in forward.targets]
    if all(each.path or numeric(each.host.partition("%")[0], each.port) for each in targets):
        return {each.path for each in targets if each.path and not each.path.startswith("@")}
    return None


def ports_to_reach(config: Config) -> set[int] | None:
    """Returns the TCP ports to connect to. None: any, because look-ups of names may use other ones."""
    targets = [each for forward in config.forwards for each in forward.targets if not each.path]
    ports = {each.port for each in targets}
    if all(numeric(each.host.partition("%")[0], each.port) for each in targets):
        return ports
    try:
        with open(NSSWITCH, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError:
        lines = []  # without the file the C library uses files and dns
    sources = {word for line in lines if line[:1] == ["hosts:"] for word in line[1:] if not word.startswith("[")}
    return ports | {DNS} if sources <= LOOKUPS else None


def _call(name: str, *args: int | bytes | None) -> int:
    """Calls a function of the C library, with numbers as C longs. Returns -1 if it fails or does not exist."""
    try:
        import ctypes

        function = getattr(ctypes.CDLL(None), name)
        return int(function(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args)))
    except Exception:  # MemoryError at import: libffi needs executable memory, which SELinux or PaX may refuse
        return -1
