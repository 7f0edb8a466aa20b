"""Builds the wheels that this machine can build, from a fresh sdist, audits them and tries them out. On Linux x86_64:

    pip install '.[wheels]' && python tools/wheels.py --out dist [--python PATH]... [--on TARGET=COMMAND]... [TARGET]...

A target is one of TARGETS below (default: all), compiled by the compiler of this machine (host) or by zig. --python is
one more interpreter to try the wheels on; a free-threaded one gets a wheel of its own. --on gives an interpreter for
another machine, such as "aarch64=qemu-aarch64-static -L ROOT ROOT/usr/bin/python3.11", where ROOT is a folder with the
unpacked arm64 packages of Debian's Python, or "musl-x86_64=ROOT/bin/python3.11", made from its source by musl-gcc.
The wheels of a release come from native machines (.github/workflows/wheels.yml); these show beforehand that they can be
built, and what is in them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from inspect_wheel import wheel_faults

ROOT = Path(__file__).parents[1]
SMOKE = Path(__file__).with_name("smoke.py")


@dataclass(frozen=True)
class Target:
    """A platform to compile for: its name in Python's words, the compiler, and the tag that auditwheel is to find."""

    platform: str
    compiler: str
    poller: str = "epoll"
    policy: str = ""
    link: str = ""


def _zig(target: str) -> str:
    return f"{sys.executable} -m ziglang cc -fno-sanitize=undefined -target {target}"


TARGETS = {
    "host": Target("linux-x86_64", "gcc", policy="manylinux_2_28_x86_64"),
    "x86_64": Target("linux-x86_64", _zig("x86_64-linux-gnu.2.17"), policy="manylinux_2_17_x86_64"),
    "aarch64": Target("linux-aarch64", _zig("aarch64-linux-gnu.2.17"), policy="manylinux_2_17_aarch64"),
    "musl-x86_64": Target("linux-x86_64", _zig("x86_64-linux-musl"), policy="musllinux_1_2_x86_64"),
    "musl-aarch64": Target("linux-aarch64", _zig("aarch64-linux-musl"), policy="musllinux_1_2_aarch64"),
    "macos-x86_64": Target(
        "macosx-11.0-x86_64", _zig("x86_64-macos.11.0"), "kqueue", link="-Wl,-undefined,dynamic_lookup"
    ),
    "macos-arm64": Target(
        "macosx-11.0-arm64", _zig("aarch64-macos.11.0"), "kqueue", link="-Wl,-undefined,dynamic_lookup"
    ),
}


def run(*command: object, **variables: str) -> str:
    """The output of a command that must not fail."""
    done = subprocess.run(
        [str(word) for word in command], env=os.environ | variables, capture_output=True, text=True, check=False
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


def build(tree: Path, target: Target, out: Path) -> Path:
    """The wheel of an unpacked sdist for a target, as the compiler left it."""
    for stale in (*tree.glob("build/*/lib*"), *tree.glob("build/*/temp*"), *tree.glob("build/*/bdist*")):
        shutil.rmtree(stale)
    shutil.rmtree(out, ignore_errors=True)
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree),
        CC=target.compiler,
        LDSHARED=f"{target.compiler} -shared",  # without the library path that this Python may have been linked with
        LDFLAGS=target.link,
        TCPPROXY_POLLER=target.poller,
        _PYTHON_HOST_PLATFORM=target.platform,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def repair(wheel: Path, target: Target, out: Path) -> Path:
    """The wheel under the tag that promises where it runs."""
    if not target.policy:
        return Path(shutil.copy(wheel, out))
    if "musl" in target.policy:
        wheel = _name_musl(wheel, f"libc.musl-{target.platform.removeprefix('linux-')}.so.1")
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", folder, wheel)
        (repaired,) = Path(folder).iterdir()
        if target.policy not in repaired.name:
            sys.exit(f"{repaired.name} does not reach {target.policy}")
        return Path(shutil.copy(repaired, out))


def _name_musl(wheel: Path, library: str) -> Path:
    """zig's musl is plain "libc.so", which is a file of its own on systems with glibc."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
        (tree,) = Path(folder).iterdir()
        for module in tree.glob("tcpproxy/_core/*.so"):
            run("patchelf", "--replace-needed", "libc.so", library, module)
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, tree)
    return wheel


def audit(wheel: Path) -> None:
    """Contents, hardening, size; and the stable ABI where the wheel promises one."""
    faults = list(wheel_faults(wheel))
    if faults:
        sys.exit("\n".join([wheel.name, *faults]))
    if "abi3" in wheel.name:
        run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    print(f"{wheel.stat().st_size:7} {wheel.name}", flush=True)


def check_reproducible(sdist: Path, wheel: Path) -> None:
    """A second build, in another folder, has the same hash."""
    with tempfile.TemporaryDirectory() as folder:
        again = build(unpack(sdist, Path(folder) / "another"), TARGETS["host"], Path(folder) / "raw")
        first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again))
    if first != second:
        sys.exit(f"not reproducible: {first} {second}")
    print(f"reproducible: {first}", flush=True)


def build_free_threaded(python: Path, sdist: Path, out: Path) -> Path:
    """The wheel of one free-threaded interpreter, by the machine's own compiler."""
    with tempfile.TemporaryDirectory() as folder:
        version = run(python, "-c", "import sys; print('%d%d' % sys.version_info[:2])").strip()
        run(sys.executable, "-m", "pip", "--python", python, "wheel", "--no-deps", "--wheel-dir", folder, sdist)
        (wheel,) = Path(folder).glob(f"*-cp{version}t-*.whl")
        return repair(wheel, TARGETS["host"], out)


def try_out(wheel: Path, python: Path) -> None:
    """Installs the wheel for an interpreter, in a folder of its own, and relays with it."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "--python", python, "install", "--target", folder, wheel)
        print(f"        {run(python, SMOKE, PYTHONPATH=folder).strip()}", flush=True)


def try_on(command: str, wheel: Path) -> None:
    """Relays with the wheel's modules, as they are, in an interpreter that pip cannot serve."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        print(f"        {run(*shlex.split(command), SMOKE, '--library-only', PYTHONPATH=folder).strip()}", flush=True)


def is_free_threaded(python: Path) -> bool:
    code = "import sysconfig; print(bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
    return run(python, "-c", code).strip() == "True"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the wheels go (default: dist)")
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter to try the wheels on")
    parser.add_argument("--on", metavar="TARGET=COMMAND", action="append", default=[], help="an emulated interpreter")
    options = parser.parse_args()
    emulated = dict(word.split("=", 1) for word in options.on)
    options.out.mkdir(parents=True, exist_ok=True)
    # Of the last commit, like the workflow's; a tree without history: of its newest change log.
    git = subprocess.run(["git", "log", "-1", "--pretty=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    os.environ.setdefault("SOURCE_DATE_EPOCH", git.stdout.strip() or str(int((ROOT / "CHANGELOG.md").stat().st_mtime)))
    with tempfile.TemporaryDirectory() as temporary:
        sdist = make_sdist(options.out)
        tree = unpack(sdist, Path(temporary) / "source")
        for name in options.targets:
            target = TARGETS[name]
            built = build(tree, target, Path(temporary) / "raw")
            wheel = repair(built, target, options.out)
            audit(wheel)
            if name in emulated:
                try_on(emulated[name], wheel)
            if name == "host":
                check_reproducible(sdist, built)
                for python in (Path(sys.executable), *options.python):
                    if not is_free_threaded(python):
                        try_out(wheel, python)
        for python in filter(is_free_threaded, options.python):
            wheel = build_free_threaded(python, sdist, options.out)
            audit(wheel)
            try_out(wheel, python)


if __name__ == "__main__":
    main()
