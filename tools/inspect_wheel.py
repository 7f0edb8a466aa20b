"""Says what is wrong with a wheel: python tools/inspect_wheel.py WHEEL...

Its contents, its version, its size, and how its compiled modules were hardened. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

MODULES = [
    "accepting",
    "admission",
    "bending",
    "bulk",
    "capture",
    "closing",
    "connecting",
    "control",
    "engine",
    "events",
    "fallback",
    "half",
    "header",
    "inbox",
    "introducing",
    "metering",
    "opening",
    "outlet",
    "packets",
    "pcapng",
    "pieces",
    "plan",
    "poller",
    "reader",
    "recorded",
    "recordings",
    "relay",
    "reports",
    "resources",
    "rulebook",
    "savefile",
    "shaped",
    "shaper",
    "shaping",
    "sources",
    "spin",
    "splice",
    "table",
    "tap",
    "timers",
    "trial",
    "worker",
]

MOST = 500_000
"""Bytes of a wheel."""

EXPECTED = (
    r"tcpproxy/((command|config|network|report|tap)/)?(\w+\.py|py\.typed)",
    r"tcpproxy/_core/(__init__\.py|(capture|recorded|rulebook|worker)\.pyi)",
    rf"tcpproxy/_core/({'|'.join(MODULES)})(\.abi3\.so|\.cpython-3\d+t-[\w-]+\.so|\.pyd|\.cp3\d+t-[\w-]+\.pyd)",
    r"tcpproxy-[\d.]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|top_level\.txt|licenses/LICENSE|sboms/[\w.-]+)",
)
NEEDED = ("tcpproxy/py.typed", "tcpproxy/_core/worker.pyi")


def wheel_faults(path: Path) -> Iterator[str]:
    """What is wrong with this wheel, a line each."""
    if path.stat().st_size > MOST:
        yield f"{path.stat().st_size} bytes, at most {MOST}"
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        yield from (f"stray file {name}" for name in names if not re.fullmatch("|".join(EXPECTED), name))
        yield from (f"no {name}" for name in NEEDED if name not in names)
        yield from _version_faults(path, wheel)
        compiled = {Path(name).name: wheel.read(name) for name in names if name.endswith((".so", ".pyd"))}
    found = sorted(name.split(".")[0] for name in compiled)
    if found != MODULES:
        yield f"compiled modules {found}"
    yield from binary_faults(compiled)


def _version_faults(path: Path, wheel: zipfile.ZipFile) -> Iterator[str]:
    name, version, *tags = path.stem.split("-")
    source = re.search(r'^__version__ = "(.+)"$', wheel.read("tcpproxy/__init__.py").decode(), re.M)
    metadata = re.search(r"^Version: (.+)$", wheel.read(f"{name}-{version}.dist-info/METADATA").decode(), re.M)
    for where, match in ("the package", source), ("METADATA", metadata):
        if not match or match[1] != version:
            yield f"version {version}, but {match and match[1]} in {where}"
    if not re.match(r"cp311-abi3-|(cp3\d+)-\1t-", "-".join(tags)):
        yield f"tags {tags}, neither cp311-abi3 nor free-threaded"


def binary_faults(files: Mapping[str, bytes]) -> Iterator[str]:
    """What hardening the ELF files and DLLs among these compiled modules lack.

    A single module may have nothing to protect: stack protector and checked calls are looked for in all together.
    """
    for name, data in files.items():
        if data.startswith(b"MZ"):
            yield from (f"{name}: {fault}" for fault in _dll_faults(data))
    images = {name: ELFFile(io.BytesIO(data)) for name, data in files.items() if data.startswith(b"\x7fELF")}
    imported: set[str] = set()
    libraries: set[str] = set()
    for name, image in images.items():
        yield from (f"{name}: {fault}" for fault in _image_faults(image))
        table = image.get_section_by_name(".dynsym")
        assert isinstance(table, SymbolTableSection)
        imported |= {symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"}
        libraries |= {tag.needed for tag in _dynamic(image).iter_tags("DT_NEEDED")}
    if images and "__stack_chk_fail" not in imported:
        yield "no stack protector"
    if "libc.so.6" in libraries and not any(re.fullmatch(r"__\w+_chk", symbol) for symbol in imported):
        yield "no checked calls (_FORTIFY_SOURCE)"


DLL_FLAGS = {0x20: "64-bit address randomisation", 0x40: "address randomisation", 0x100: "data execution prevention"}


def _dll_faults(data: bytes) -> Iterator[str]:
    (header,) = struct.unpack_from("<I", data, 0x3C)
    (flags,) = struct.unpack_from("<H", data, header + 24 + 70)  # signature, file header; DllCharacteristics
    yield from (f"no {what}" for flag, what in DLL_FLAGS.items() if not flags & flag)


def _dynamic(image: ELFFile) -> DynamicSection:
    section = image.get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    return section


def _image_faults(image: ELFFile) -> Iterator[str]:
    segments = {segment["p_type"]: segment for segment in image.iter_segments()}
    if "PT_GNU_RELRO" not in segments:
        yield "no RELRO"
    if "PT_GNU_STACK" not in segments or segments["PT_GNU_STACK"]["p_flags"] & 1:
        yield "executable stack"
    tags = {tag["d_tag"]: tag for tag in _dynamic(image).iter_tags()}
    now = "DT_BIND_NOW" in tags or ("DT_FLAGS" in tags and tags["DT_FLAGS"]["d_val"] & 0x8)
    if not now and not ("DT_FLAGS_1" in tags and tags["DT_FLAGS_1"]["d_val"] & 0x1):
        yield "RELRO is not full: symbols are bound late"
    if "DT_TEXTREL" in tags:
        yield "text relocations"


def main() -> None:
    bad = False
    for argument in sys.argv[1:]:
        path = Path(argument)
        faults = list(wheel_faults(path))
        bad = bad or bool(faults)
        print(f"{path.stat().st_size:7} {path.name}", *(f"        {fault}" for fault in faults), sep="\n")
    sys.exit(bad)


if __name__ == "__main__":
    main()
