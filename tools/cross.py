#!/usr/bin/env python3
"""Compiles and links the core for other platforms, with the zig compiler from PyPI: python tools/cross.py TARGET...

Needs `pip install ziglang cython setuptools` and the headers of this Python, which serve every POSIX target under the
limited API. For each target (without any: all it knows) the modules are put into build/cross/TARGET and named with what
they are; a module that is missing, or for another machine, is an error. Nothing of it is run.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

TARGETS = {
    "x86_64-macos.11.0": ("macosx-11.0-x86_64", "Mach-O x86_64"),
    "aarch64-macos.11.0": ("macosx-11.0-arm64", "Mach-O arm64"),
    "x86_64-freebsd.14.0": ("freebsd-14.0-amd64", "ELF x86_64"),
    "x86_64-netbsd.10.1": ("netbsd-10.1-amd64", "ELF x86_64"),
    "x86_64-openbsd.7.8": ("openbsd-7.8-amd64", "ELF x86_64"),
    "x86_64-linux-musl": ("linux-x86_64", "ELF x86_64"),
    "aarch64-linux-musl": ("linux-aarch64", "ELF aarch64"),
}
"""zig's name of a target: (what sysconfig.get_platform() says there, what its modules are)."""

ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
MACH_MACHINES = {0x01000007: "x86_64", 0x0100000C: "arm64"}


def kind(module: pathlib.Path) -> str:
    """Format and machine of a linked module, from its header."""
    head = module.read_bytes()[:20]
    if head[:4] == b"\x7fELF":
        return f"ELF {ELF_MACHINES.get(struct.unpack_from('<H', head, 18)[0], 'of another machine')}"
    if head[:4] == b"\xcf\xfa\xed\xfe":
        return f"Mach-O {MACH_MACHINES.get(struct.unpack_from('<I', head, 4)[0], 'of another machine')}"
    return "neither ELF nor Mach-O"


def copy_headers(to: pathlib.Path) -> None:
    """This Python's headers; where pyconfig.h only refers to another file, that one, which no -I of a target finds."""
    shutil.copytree(sysconfig.get_path("include"), to)
    shutil.copy(sysconfig.get_config_h_filename(), to / "pyconfig.h")


def build(target: str, headers: pathlib.Path, temp: pathlib.Path) -> list[pathlib.Path]:
    """Builds all extension modules for that target. CalledProcessError: the compiler or the linker refused."""
    platform, _ = TARGETS[target]
    out = ROOT / "build" / "cross" / target
    shutil.rmtree(out, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "TCPPROXY_POLLER"}
    environment |= {
        "CC": f"{sys.executable} -m ziglang cc -target {target}",
        # _BSD_SOURCE: Linux's pyconfig.h asks for POSIX and no more, which OpenBSD takes at its word.
        "CFLAGS": f"-g0 -fno-sanitize=undefined -D_BSD_SOURCE -DPy_LIMITED_API=0x030B0000 -I{headers}",
        "LDFLAGS": "-s -Wl,-undefined,dynamic_lookup" if platform.startswith("macosx") else "-s",
        "_PYTHON_HOST_PLATFORM": platform,
    }
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(out),
        "--build-temp",
        str(temp / target),
    ]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return sorted(out.rglob("*.so"))


def main(targets: list[str]) -> int:
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    failed = 0
    names = {path.stem for path in (ROOT / "tcpproxy" / "_core").glob("*.pyx")}
    expected = {name.partition("_")[0] for name in names}  # one of poller_*, one of splice_*
    with tempfile.TemporaryDirectory() as folder:
        temp = pathlib.Path(folder)
        copy_headers(temp / "include")
        for target in targets or TARGETS:
            try:
                modules = build(target, temp / "include", temp)
            except subprocess.CalledProcessError as error:
                print(f"{target}: not built, exit code {error.returncode}", file=sys.stderr)
                failed += 1
                continue
            for module in modules:
                print(f"{target}: {module.name.partition('.')[0]} is {kind(module)}, {module.stat().st_size} bytes")
            good = {module.name.partition(".")[0] for module in modules if kind(module) == TARGETS[target][1]}
            if good != expected:
                print(f"{target}: {', '.join(sorted(expected - good))} not built for it", file=sys.stderr)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
