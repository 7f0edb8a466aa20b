"""Pythons of other machines that run on this one: python tools/foreign.py [NAME]... On Debian, x86_64.

    debian-3.14     that of Debian's newest suite, with its own glibc
    debian-3.15     so is this
    aarch64         Debian's own arm64 Python under qemu            (apt-get install qemu-user-static)
    musl-x86_64     CPython from Debian's source, by musl-gcc       (apt-get install musl-tools xz-utils make gcc)
    windows-amd64   a Windows Python under wine                     (apt-get install wine wine64)

What they consist of is got and made once, in build/foreign and build/wine; nothing is installed. Said is, of each
(without any: of all), the command that starts it.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "foreign"


class MissingError(Exception):
    """There is no such Python here; says why."""


def _needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            raise MissingError(f"needs {program}")


def _call(log: Path, *argv: object, folder: Path | None = None, **variables: str) -> None:
    """A command whose output is of interest only if it fails."""
    with log.open("a") as file:
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise MissingError(f"{argv[0]} ended with {done.returncode}: see {log}")


class Apt:
    """apt-get with lists and a cache of its own, a machine where nothing is installed, and the system's mirrors.

    Args:
        folder: where it keeps them.
        architecture: in Debian's words.
        suite: from which packages come; the system's own if there is none.
    """

    def __init__(self, folder: Path, architecture: str, suite: str = "") -> None:
        _needs("apt-get", "dpkg-deb")
        self.folder, self.log = folder, folder / "apt.log"
        sources = folder / "sources"
        for place in (sources, folder / "state" / "lists" / "partial", folder / "cache" / "archives" / "partial"):
            place.mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        own = platform.freedesktop_os_release()["VERSION_CODENAME"]
        for file in (*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
            # The distribution's own, and its source packages.
            if file.suffix in (".list", ".sources") and re.search(rf"[ /]{own}\b", text := file.read_text()):
                text = re.sub(rf"(?<= ){own}(?=\s)", suite or own, text)  # not its updates: what is newer wins
                text = re.sub(r"^Types:.*", "Types: deb deb-src", text, flags=re.M)
                text += "".join(f"\ndeb-src {rest}" for rest in re.findall(r"^deb (.*)", text, re.M)) + "\n"
                (sources / file.name).write_text(text)
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": sources,
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self("update")

    def __call__(self, *argv: str) -> None:
        _call(self.log, "apt-get", "-q", "-y", *self._options, *argv, folder=self.folder)


def unpacked(name: str, *packages: str, architecture: str, suite: str = "") -> Path:
    """A folder with packages and all that they depend on."""
    home, root = HOME / name, HOME / name / "root"
    if not (root / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        Apt(home, architecture, suite)("--download-only", "--no-install-recommends", "install", *packages)
        for file in sorted((home / "cache" / "archives").glob("*.deb")):
            _call(home / "apt.log", "dpkg-deb", "-x", file, root)
        (root / "done").touch()
    return root


def by_own_loader(root: Path, program: str) -> list[str]:
    """The command of a program by the loader of its own glibc, as this machine's may be older than it needs."""
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(root / program)]


def aarch64() -> list[str]:
    _needs("qemu-aarch64-static")
    root = unpacked("aarch64", "python3", architecture="arm64")
    return ["qemu-aarch64-static", "-L", str(root), str(root / "usr" / "bin" / "python3")]


def debian(version: str) -> list[str]:
    root = unpacked(f"debian-{version}", f"python{version}", architecture="amd64", suite="sid")
    return by_own_loader(root, f"usr/bin/python{version}")


def musl() -> list[str]:
    _needs("musl-gcc", "make", "xz")
    home = HOME / "musl-x86_64"
    python = home / "root" / "bin" / "python3"
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        Apt(home, "amd64")("--download-only", "--tar-only", "source", "python3.11")
        (archive,) = home.glob("python3.11_*.orig.tar.*")
        with tarfile.open(archive) as source:
            source.extractall(home / "source", filter="data")
        (tree,) = (home / "source").iterdir()
        # musl-gcc calls itself a compiler for glibc's triplet, and so gets glibc's headers.
        log, compiler = home / "build.log", home / "cc"
        compiler.write_text(
            '#!/bin/sh\ncase "$*" in *-print-multiarch*) echo x86_64-linux-musl;; *) exec musl-gcc "$@";; esac\n'
        )
        compiler.chmod(0o755)
        options = [f"--prefix={home / 'root'}", "--without-ensurepip", "--disable-test-modules"]
        _call(log, "./configure", "-q", *options, folder=tree, CC=str(compiler), CFLAGS="-O1")
        _call(log, "make", "-s", f"-j{os.cpu_count()}", folder=tree)
        _call(log, "make", "-s", "install", folder=tree)
        shutil.rmtree(home / "source")
        (home / "done").touch()
    return [str(python)]


def kitchen(*arguments: Any, **options: Any) -> Any:
    """What tests/platforms/wine.py makes Windows modules and Pythons with, in its own folder."""
    sys.path.insert(0, str(ROOT / "tests" / "platforms"))
    from wine import Kitchen

    return Kitchen(ROOT / "build" / "wine", *arguments, **options)


def windows(**options: Any) -> list[str]:
    """Args: options: `minor` and `library` of another Python than this one, see there."""
    _needs("wine", "objdump")
    its = kitchen(**options)
    its.get_tools()
    its.get_python()
    its.start_wine()
    os.environ |= {name: its.environment[name] for name in ("WINEPREFIX", "WINEDEBUG")}
    return ["wine", str(its.python / "python.exe")]


PYTHONS: dict[str, Callable[[], list[str]]] = {
    "debian-3.14": functools.partial(debian, "3.14"),
    "debian-3.15": functools.partial(debian, "3.15"),
    "aarch64": aarch64,
    "musl-x86_64": musl,
    "windows-amd64": windows,
}


def main() -> None:
    for name in sys.argv[1:] or PYTHONS:
        print(f"{name}: {' '.join(PYTHONS[name]())}", flush=True)


if __name__ == "__main__":
    main()
