"""Builds the doors: extension modules through which the unit tests call the compiled core, one a module of the core.

tests/unit/doors/NAME.pyx declares what the core's .pxd files declare and calls the installed modules, so that a change
of a struct or a signature shows as a failure to compile. It becomes the module door_NAME, which no package contains.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

ROOT = Path(__file__).parents[2]
"""The source tree: doors need its .pxd and .h files, the compiled modules are those of the installed package."""

SOURCES = ROOT / "tests" / "unit" / "doors"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,
}
"""As in setup.py, where they matter."""


def names() -> list[str]:
    return sorted(path.stem for path in SOURCES.glob("*.pyx"))


def module_name(name: str) -> str:
    return f"door_{name}"


def extension(name: str, folder: Path) -> Extension:
    """Translates a door to C in the folder. Returns the setuptools.Extension."""
    from Cython.Build import cythonize
    from setuptools import Extension

    source = folder / f"{module_name(name)}.pyx"  # a copy, because the C file is written beside it
    shutil.copy2(SOURCES / f"{name}.pyx", source)
    module = Extension(
        module_name(name),
        [str(source)],
        include_dirs=[str(ROOT / "tcpproxy" / "_core")],
        libraries=["ws2_32"] if os.name == "nt" else [],
    )
    include = [str(ROOT), str(SOURCES)]
    return cythonize([module], include_path=include, compiler_directives=DIRECTIVES, quiet=True)[0]


def build(name: str, folder: Path) -> Path:
    """Compiles a door in the folder. Returns the extension module's file."""
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    command = build_ext(Distribution({"ext_modules": [extension(name, folder)]}))
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(module_name(name)))
