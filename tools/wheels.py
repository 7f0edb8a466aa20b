"""Builds the wheels of all platforms that can be compiled for from Linux x86_64, audits them and tries them out:

    pip install '.[wheels]' && python tools/wheels.py --out dist [--python PATH]... [TARGET]...

A target is one of TARGETS below (default: all), compiled from a fresh sdist by the compiler of this machine (host) or
by zig; each a second time, in another folder, for the same hash. --python is one more interpreter to try the wheels on;
a free-threaded one gets a wheel of its own, and the standard library of a 3.13 serves a Windows Python too. What is for
another machine, or for a newer Python, runs on those of tools/foreign.py, as far as they can be had; --native leaves
that out.
The wheels of a release come from native machines (.github/workflows/wheels.yml); these show beforehand that they can be
built, and what is in them. The table at the end says what was done with each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import foreign
from inspect_wheel import wheel_faults

ROOT = Path(__file__).resolve().parents[1]
SMOKE = Path(__file__).resolve().with_name("smoke.py")


@dataclass(frozen=True)
class Target:
    """A platform to compile for: its name in Python's words, the compiler, and the tag that the wheel must get."""

    platform: str
    compiler: str
    poller: str = "epoll"
    tag: str = ""
    compile: str = ""
    link: str = ""


def _zig(target: str) -> str:
    return f"{sys.executable} -m ziglang cc -fno-sanitize=undefined -target {target}"


def _macos(machine: str, zig_machine: str) -> Target:
    compiler, link = _zig(f"{zig_machine}-macos.11.0"), "-Wl,-undefined,dynamic_lookup"
    return Target(f"macosx-11.0-{machine}", compiler, "kqueue", f"macosx_11_0_{machine}", link=link)


TARGETS = {
    "host": Target("linux-x86_64", "gcc", tag="manylinux_2_28_x86_64"),
    "x86_64": Target("linux-x86_64", _zig("x86_64-linux-gnu.2.17"), tag="manylinux_2_17_x86_64"),
    "aarch64": Target("linux-aarch64", _zig("aarch64-linux-gnu.2.17"), tag="manylinux_2_17_aarch64"),
    "musl-x86_64": Target("linux-x86_64", _zig("x86_64-linux-musl"), tag="musllinux_1_2_x86_64"),
    "musl-aarch64": Target("linux-aarch64", _zig("aarch64-linux-musl"), tag="musllinux_1_2_aarch64"),
    "macos-x86_64": _macos("x86_64", "x86_64"),
    "macos-arm64": _macos("arm64", "aarch64"),
    "windows-amd64": Target("win-amd64", _zig("x86_64-windows-gnu"), "poll", "win_amd64"),
    "windows-arm64": Target("win-arm64", _zig("aarch64-windows-gnu"), "poll", "win_arm64"),
}


@dataclass
class Row:
    """What is said of a wheel in the table."""

    wheel: Path
    audits: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        _, _, *tags = self.wheel.stem.split("-")
        size, runs = self.wheel.stat().st_size, "; ".join(self.runs) or "not run"
        return f"| {'-'.join(tags)} | {size} | {', '.join(self.audits)} | {runs} |"


def run(*command: object, **variables: str) -> str:
    """The output of a command that must not fail."""
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    if "performance hint" in done.stdout + done.stderr:
        sys.exit("a performance hint: code below the door takes the GIL")
    return done.stdout + done.stderr


def make_sdist(out: Path) -> Path:
    """The sdist of this tree, without a generated file."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        generated = [name for name in archive.getnames() if re.search(r"/tcpproxy/.*\.c$|\.so$|\.o$|/build/", name)]
    if generated:
        sys.exit(f"generated files in the sdist: {generated}")
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def for_windows(target: Target) -> Target:
    """With the headers and the import libraries that make a module for Windows, see tests/platforms/wine.py.

    Without zig's helpers, of which it would put 50 KB into each module for a memcpy: that is in Windows, as are all.
    """
    kitchen = foreign.kitchen(target.compiler.split()[-1])
    kitchen.get_tools()
    link = f"-s -rtlib=none {kitchen.libraries / 'python3.lib'} {kitchen.libraries / 'ntdll.lib'}"
    return Target(target.platform, target.compiler, target.poller, target.tag, f"-I{kitchen.headers}", link)


def build(tree: Path, target: Target, out: Path) -> Path:
    """The wheel of an unpacked sdist for a target, as the compiler left it."""
    for stale in (*tree.glob("build/*/lib*"), *tree.glob("build/*/temp*"), *tree.glob("build/*/bdist*")):
        shutil.rmtree(stale)
    shutil.rmtree(out, ignore_errors=True)
    if target.platform.startswith("win"):
        target = for_windows(target)
    settings = tree.parent / "settings.cfg"
    settings.write_text(f"[build_ext]\nparallel = {os.cpu_count()}\n")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree),
        CC=target.compiler,
        LDSHARED=f"{target.compiler} -shared",  # without the library path that this Python may have been linked with
        CFLAGS=target.compile,
        LDFLAGS=target.link,
        TCPPROXY_POLLER=target.poller,
        _PYTHON_HOST_PLATFORM=target.platform,
        DIST_EXTRA_CONFIG=str(settings),
        ZIG_LOCAL_CACHE_DIR=str(tree.parent / "zig"),  # else a second build would find the objects of the first
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def repair(wheel: Path, target: Target, out: Path) -> Path:
    """The wheel under the tag that promises where it runs."""
    if target.platform.startswith("win"):
        with rewritten(wheel) as tree:
            for module in tree.glob("tcpproxy/_core/*.so"):
                module.rename(module.with_name(f"{module.name.partition('.')[0]}.pyd"))
            for library in tree.glob("tcpproxy/_core/*.lib"):  # how to link with a module, which nobody does
                library.unlink()
    if "musl" in target.tag:
        # zig's musl is plain "libc.so", which is a file of its own on systems with glibc.
        library = f"libc.musl-{target.platform.removeprefix('linux-')}.so.1"
        with rewritten(wheel) as tree:
            for module in tree.glob("tcpproxy/_core/*.so"):
                run("patchelf", "--replace-needed", "libc.so", library, module)
    with tempfile.TemporaryDirectory() as folder:
        if "linux" in target.platform:
            run(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", folder, wheel)
            (wheel,) = Path(folder).iterdir()
        if target.tag not in wheel.name:
            sys.exit(f"{wheel.name} does not reach {target.tag}")
        return Path(shutil.copy(wheel, out))


@contextlib.contextmanager
def rewritten(wheel: Path) -> Iterator[Path]:
    """The tree of a wheel, which is packed again after the block."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
        (tree,) = Path(folder).iterdir()
        yield tree
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, tree)


def audit(row: Row) -> None:
    """Contents, hardening, size; the tag; and the stable ABI where the wheel promises one."""
    faults = list(wheel_faults(row.wheel))
    if faults:
        sys.exit("\n".join([row.wheel.name, *faults]))
    row.audits.append("inspected")
    if "linux" in row.wheel.name:
        said = run(sys.executable, "-m", "auditwheel", "show", row.wheel)
        found = re.search(r'following\s+platform\s+tag:\s+"(\w+)"', said)
        row.audits.append(f"auditwheel show: {found[1] if found else said}")
    if "abi3" in row.wheel.name:
        run(sys.executable, "-m", "abi3audit", "--strict", row.wheel)
        row.audits.append("abi3audit")


def digest(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def build_free_threaded(python: Path, sdist: Path, out: Path) -> Path:
    """The wheel of one free-threaded interpreter, by the machine's own compiler."""
    with tempfile.TemporaryDirectory() as folder:
        version = run(python, "-c", "import sys; print('%d%d' % sys.version_info[:2])").strip()
        run(sys.executable, "-m", "pip", "--python", python, "wheel", "--no-deps", "--wheel-dir", folder, sdist)
        (wheel,) = Path(folder).glob(f"*-cp{version}t-*.whl")
        return repair(wheel, TARGETS["host"], out)


def try_out(row: Row, python: Path) -> None:
    """Installs the wheel for an interpreter, in a folder of its own, and relays with it."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "--python", python, "install", "--target", folder, row.wheel)
        note(row, run(python, SMOKE, PYTHONPATH=folder))


def try_on(row: Row, command: Callable[[], list[str]]) -> None:
    """Relays with the wheel's modules, as they are, in an interpreter that pip cannot serve."""
    try:
        argv = command()
    except foreign.MissingError as why:
        row.runs.append(f"not run: {why}")
        return
    # wine passes signals and new processes to what was compiled for Windows; an emulator or a loader that is not the
    # system's does not start programs.
    mode = [] if "wine" in argv[0] else ["--library-only"]
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(row.wheel) as archive:
            archive.extractall(folder)
        note(row, run(*argv, SMOKE, *mode, PYTHONPATH=folder))


def note(row: Row, said: str) -> None:
    line = next((line for line in said.splitlines() if "bytes there and back" in line), "")
    if not line:
        sys.exit(f"{row.wheel.name} does not relay:\n{said}")
    print(f"        {line}", flush=True)
    row.runs.append(line.partition(":")[0])


def of(python: Path, what: str) -> str:
    """The value of an expression there."""
    return run(python, "-c", f"import sys, sysconfig; print({what})").strip()


def interpreters(name: str, pythons: list[Path]) -> Iterator[Callable[[], list[str]]]:
    """Foreign ones for that target."""
    if name in ("host", "x86_64"):
        yield from (python for its, python in foreign.PYTHONS.items() if its.startswith("debian"))
    if name in foreign.PYTHONS:
        yield foreign.PYTHONS[name]
    if name == "windows-amd64":
        for python in pythons:
            if of(python, "sys.version_info[1]") == "13" and sys.version_info[1] != 13:
                library = of(python, "sysconfig.get_path('stdlib')")
                yield functools.partial(foreign.windows, minor=13, library=library)


def make_wheel(target: Target, trees: list[Path], places: list[Path], out: Path) -> Row:
    """Builds the wheel of a target once from each tree, in a place of its own. Exits if the two differ."""
    for place in places:
        place.mkdir()
    first, again = (
        repair(build(tree, target, place / "raw"), target, place) for tree, place in zip(trees, places, strict=True)
    )
    row = Row(Path(shutil.copy(first, out)))
    print(f"{row.wheel.stat().st_size:7} {row.wheel.name}", flush=True)
    if digest(first) != digest(again):
        sys.exit(f"not reproducible: {digest(first)} {digest(again)}")
    audit(row)
    row.audits.append("same hash twice")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the wheels go (default: dist)")
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter to try the wheels on")
    parser.add_argument("--native", action="store_true", help="no interpreters of other machines")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf came with the packages
    # Of the last commit, like the workflow's; a tree without history: of its newest change log.
    git = subprocess.run(["git", "log", "-1", "--pretty=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    os.environ.setdefault("SOURCE_DATE_EPOCH", git.stdout.strip() or str(int((ROOT / "CHANGELOG.md").stat().st_mtime)))
    free = [python for python in options.python if of(python, "sysconfig.get_config_var('Py_GIL_DISABLED')") == "1"]
    locked = [Path(sys.executable), *(python for python in options.python if python not in free)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        sdist = make_sdist(options.out)
        trees = [unpack(sdist, Path(temporary) / name / "source") for name in ("first", "another")]
        for name in options.targets:
            places = [Path(temporary) / f"{number}-{name}" for number in range(2)]
            row = make_wheel(TARGETS[name], trees, places, options.out)
            rows.append(row)
            for python in locked if name in ("host", "x86_64") else []:
                try_out(row, python)
            for command in [] if options.native else interpreters(name, options.python):
                try_on(row, command)
        for python in free:
            rows.append(Row(build_free_threaded(python, sdist, options.out)))
            audit(rows[-1])
            try_on(rows[-1], lambda python=python: [str(python)])  # an older pip does not know its tag
    print("\n| wheel | bytes | audits | run on |\n|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
