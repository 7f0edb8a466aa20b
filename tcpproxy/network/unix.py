"""Listening UNIX sockets: makes them with a mode, replaces stale files, removes its own at the end.

When a server is killed, the file of its socket stays, and connects to it are refused. The next start replaces the file.
A start holds a lock on the folder from before bind until it listens, so that no other start takes its file for stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable

from ..config.forwards import ForwardSpec
from ..errors import StartError
from ..native import Event, monotonic
from ..text import quoted
from .resolver import Address

UNIX = -1
"""The port in an Address of a UNIX socket. Its bytes are then the path, or an abstract name after a NUL."""

BACKLOG = 4096

LOCK_WAIT = 5.0
"""The most seconds that a start waits for another start's lock."""


def unix_address(path: str) -> Address:
    """Returns the Address of a path in the form of `Endpoint.path`."""
    return (_kernel_name(path).encode("utf-8", "surrogateescape") if path[0] == "@" else os.fsencode(path)), UNIX, 0


def _kernel_name(path: str) -> str:
    return f"\0{path[1:]}" if path.startswith("@") else path


class Folders:
    """Locks on folders, which `close` releases. Does nothing on systems without flock."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}
        self.bound: set[tuple[int, int]] = set()
        """Files of sockets that do not listen yet: connects to them are refused, but they are not stale."""

    def lock(self, path: str) -> None:
        """Locks the folder of a path, unless the path is abstract; waits at most LOCK_WAIT.

        A folder that this user may write but not read cannot be locked. It is used without a lock.

        Raises:
            OSError: there is no such folder, or another program holds the lock for longer.
        """
        try:
            import fcntl
        except ImportError:
            return
        if path.startswith("@"):
            return
        try:
            fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) in self._held:
            os.close(fd)
            return
        self._held[info.st_dev, info.st_ino] = fd
        deadline = monotonic() + LOCK_WAIT
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() > deadline:
                    raise
                Event().wait(0.01)

    def close(self) -> None:
        """Releases all locks."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        self.bound.clear()


class UnixPort:
    """A UNIX socket to listen on, with the methods of Port.

    Args:
        spec: the forward, whose listener is a path.
        mode: the permissions of the file: who may connect.
        folders: gets a lock on the file's folder, to be released once the socket listens.
        several: the proxy has other forwards, so that errors name this one.

    Raises:
        StartError: the path cannot be bound.
    """

    def __init__(self, spec: ForwardSpec, mode: int, folders: Folders, several: bool = False) -> None:
        self.path = spec.listener.path
        self.addresses = [self.path]
        self.names = [self.path]
        self.left = ""
        """After `close`: why the file could not be removed; empty: it was removed."""
        self._mode, self._which = mode, f" for {quoted(spec.text)}" if several else ""
        self._inode: tuple[int, int] | None = None
        self._bound: socket.socket | None = None
        self._bind(folders)

    def _bind(self, folders: Folders) -> None:
        try:
            folders.lock(self.path)
            if not self.path.startswith("@") and _inode(self.path) in folders.bound:  # another path to the same file
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            self._bound = bind_path(self.path, self._mode)
        except OSError as error:
            raise StartError.because(f"cannot listen on {self.path}{self._which}", error) from error
        if not self.path.startswith("@"):
            self._inode = _inode(self.path)
            if self._inode:
                folders.bound.add(self._inode)

    def listen(self) -> list[socket.socket]:
        """Returns a listening socket, which the caller closes.

        Raises:
            StartError: the path cannot be bound, or listened on.
        """
        with contextlib.closing(Folders()) as folders:
            if not self._bound:  # not the first time: after `keep`
                self._bind(folders)
            listener, self._bound = self._bound, None
            assert listener  # _bind has made it
            try:
                listener.listen(BACKLOG)
            except OSError as error:
                listener.close()
                raise StartError.because(f"cannot listen on {self.path}{self._which}", error) from error
        return [listener]

    def keep(self) -> None:
        """Does nothing: the file stays, and connects to it are refused while nobody listens."""

    def close(self) -> None:
        """Closes the socket if it does not listen yet. Removes the file, unless another file has replaced it."""
        if self._bound:
            self._bound.close()
            self._bound = None
        inode, self._inode = self._inode, None
        try:
            if inode and _inode(self.path) == inode:
                os.unlink(self.path)
        except OSError as error:
            self.left = str(error.strerror)

    def forget(self) -> None:
        """To be called in a forked child: closes its copy of the socket. The file stays, for the parent."""
        self._inode = None
        self.close()

    def is_own(self, address: Address) -> bool:
        """Does a connection to this address reach this socket?"""
        return comes_to(address, self.path, self._inode)


def comes_to(address: Address, path: str, inode: tuple[int, int] | None = None) -> bool:
    """Does a connection to an address reach the socket of a path?

    Args:
        address: where the connection goes.
        path: as in `Endpoint.path`.
        inode: device and inode number of the file at `path`; None: its current ones.
    """
    name, port, _ = address
    if port != UNIX:
        return False
    if path.startswith("@"):
        return address == unix_address(path)
    with contextlib.suppress(OSError):
        return name[:1] != b"\0" and _inode(os.fsdecode(name), os.stat) == (inode or _inode(path))
    return False


def bound_path(listener: socket.socket) -> str:
    """Returns the path that a UNIX socket is bound to, in the form of `Endpoint.path`."""
    name = listener.getsockname()
    return name if isinstance(name, str) else f"@{name[1:].decode('utf-8', 'surrogateescape')}"


def _inode(path: str, look: Callable[[str], os.stat_result] = os.lstat) -> tuple[int, int] | None:
    """Returns the device and inode number of a file; None if there is none."""
    try:
        info = look(path)
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def bind_path(path: str, mode: int) -> socket.socket:
    """Returns a socket that is bound to a path. Replaces the file of a server that has ended.

    To be called with the folder locked.

    Raises:
        OSError: a server listens there, the file is no socket, or the system refuses.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if path.startswith("@"):
            sock.bind(_kernel_name(path))
            return sock
        try:
            _bind_with_mode(sock, path, mode)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            _bind_with_mode(sock, path, mode)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_with_mode(sock: socket.socket, path: str, mode: int) -> None:
    """Binds a socket. The file never has more permissions than `mode`."""
    # Linux gives the file the permissions of the socket, less the umask. Elsewhere a socket has none to set.
    of_socket = -1
    with contextlib.suppress(OSError):
        os.fchmod(sock.fileno(), mode)
        of_socket = stat.S_IMODE(os.fstat(sock.fileno()).st_mode)
    if of_socket == mode:
        sock.bind(path)
        if stat.S_IMODE(os.lstat(path).st_mode) != mode:
            os.chmod(path, mode)  # sets what the umask has cleared
        return
    umask = os.umask(0o777 & ~mode)  # the umask belongs to the whole process, so only for the bind
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


def _is_stale(path: str) -> bool:
    """Is the file a socket whose server has ended? Raises OSError if it is no socket, or connect() fails otherwise."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError("what is there is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # its backlog is full
            return False
    return False
