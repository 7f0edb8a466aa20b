"""Gives up what a running proxy does not need, so that a mistake in it is worth less to a hostile peer. Linux.

For the command only: what is given up here never comes back, and a library must not do that to its program. It holds
for the calling thread and for the threads that it starts from then on.
"""

from __future__ import annotations

import os
import sys

from ..config.config import Config
from ..errors import StartError
from ..network.resolver import numeric

_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1
_NET_PORT = 2
_CONNECT_TCP = 1 << 1
_SCOPE_SIGNAL = 1 << 1

_EXECUTE, _WRITE_FILE = 1 << 0, 1 << 1
_CHANGES = sum(1 << bit for bit in range(4, 13))
"""Removing and making of files and directories. Reading stays: libraries that look names up are loaded late."""
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

NSSWITCH = "/etc/nsswitch.conf"
DNS = 53
LOOKUPS = {"files", "dns", "resolve", "myhostname", "mymachines", "mdns", "mdns_minimal", "mdns4", "mdns4_minimal"}
"""Sources of names (nsswitch.conf) that need no TCP but DNS's. Others, as NIS or LDAP, have ports of their own."""


def enter(config: Config, mode: str) -> None:
    """Gives up new privileges, changes of files, other programs, signals to others, and connections to other ports.

    Before anything starts a thread. Mode `auto` takes what the system has, `require` all of it, `off` nothing.

    Raises:
        StartError: the system has less than `require` wants.
    """
    if mode == "off":
        return
    missing = _no_new_privileges() or _landlock(config)
    if missing and mode == "require":
        raise StartError("cannot enter the sandbox that is required", OSError(missing))


def _no_new_privileges() -> str:
    """What is missing, or nothing."""
    if not sys.platform.startswith("linux"):
        return "this system has none"
    return "" if _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else "no_new_privs is refused"


def _landlock(config: Config) -> str:
    """What is missing, or nothing."""
    version = _call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return "the kernel has no Landlock, or it is switched off"
    files = _EXECUTE | _WRITE_FILE | _CHANGES
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        files |= right if version >= since else 0
    ports = ports_to_reach(config)
    words = [files]
    if version >= 4:
        words.append(_CONNECT_TCP if ports else 0)
    if version >= 6:
        words.append(_SCOPE_SIGNAL)
    attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    ruleset = _call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return "Landlock refuses"
    try:
        for port in ports if version >= 4 else ():
            rule = _CONNECT_TCP.to_bytes(8, sys.byteorder) + port.to_bytes(8, sys.byteorder)
            if _call("syscall", _ADD_RULE, ruleset, _NET_PORT, rule, 0) < 0:
                return "Landlock refuses"
        if _call("syscall", _RESTRICT_SELF, ruleset, 0) < 0:
            return "Landlock refuses"
    finally:
        os.close(ruleset)
    return "" if version >= 4 else "this kernel's Landlock knows no TCP ports (Linux 6.7 does)"


def ports_to_reach(config: Config) -> set[int]:
    """The ports that TCP may connect to; none: any, because looking the name up may need others."""
    if numeric(config.remote.host, config.remote.port):
        return {config.remote.port}
    try:
        with open(NSSWITCH, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError:
        lines = []  # then it is files and dns
    sources = {word for line in lines if line[:1] == ["hosts:"] for word in line[1:] if not word.startswith("[")}
    return {config.remote.port, DNS} if sources <= LOOKUPS else set()


def _call(name: str, *args: int | bytes | None) -> int:
    """A function of the C library, every number as wide as a register; -1 also where there is none."""
    try:
        import ctypes

        function = getattr(ctypes.CDLL(None), name)
    except (ImportError, OSError, AttributeError):
        return -1
    return int(function(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args)))
