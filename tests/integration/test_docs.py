"""README and docs/: examples run, links lead somewhere, and what a service file says is valid."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from support.command import Command
from support.machine import tells_resets
from support.peers import Echo, connect, free_port
from support.streams import echoes, read_exactly
from support.waiting import TIMEOUT, eventually

import tcpproxy
from tcpproxy.config.endpoints import parse_endpoints
from tcpproxy.config.forwards import parse_forward
from tcpproxy.report.event import EventKind
from tcpproxy.report.fields import LEVELS, OF_CONNECTIONS, OF_OTHERS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("bench/*.md"))]
README_LINES = 120
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for all of a machine's, and where to connect to them."""

Case = pytest.param

if not (ROOT / "docs").is_dir() or not (ROOT / "bench").is_dir():
    pytest.skip("needs the whole source tree", allow_module_level=True)


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of each fenced and each indented block; the language of the latter is "indented"."""
    fence = indented = None
    lines: list[str] = []
    start = 0
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], 1):
        if fence is None and line.lstrip().startswith("```"):
            fence, lines, start = line.strip().removeprefix("```"), [], number + 1
        elif fence is not None and line.lstrip().startswith("```"):
            yield start, fence, "\n".join(lines) + "\n"
            fence = None
        elif fence is not None:
            lines.append(line)
        elif line.startswith("    ") and not line.startswith("     "):
            if not indented:
                indented, start = [], number
            indented.append(line[4:])
        elif indented:
            yield start, "indented", "\n".join(indented) + "\n"
            indented = None


def where(page: Path, line: int) -> str:
    return f"{page.relative_to(ROOT).as_posix()}:{line}"


def programs() -> Iterator[object]:
    for page in PAGES:
        for line, language, text in blocks(page):
            if language == "python":
                yield Case(text, id=where(page, line))


def commands() -> Iterator[object]:
    """The arguments of every line that starts tcpproxy, up to a comment or what the shell makes of its output."""
    for page in PAGES:
        for first, language, text in blocks(page):
            if language not in ("console", "sh", "indented"):
                continue
            for line, typed in enumerate(text.splitlines(), first):
                typed = typed.removeprefix("$ ")
                if re.match(r"(systemd-run .*)?tcpproxy ", typed):
                    words = shlex.split(re.split(r"[|>&]", typed)[0], comments=True)
                    yield Case(words[words.index("tcpproxy") + 1 :], id=where(page, line))


PROGRAMS, COMMANDS = list(programs()), list(commands())


def test_they_are_found() -> None:
    """The control of what follows."""
    assert len(PROGRAMS) >= 5
    assert len(COMMANDS) >= 10


@pytest.mark.timeout(150)  # pytest takes half a minute to start on a busy machine
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs(program: str, tmp_path: Path) -> None:
    """Each runs by itself in a fresh interpreter; one with tests in it is run by pytest."""
    if "raises(ConnectionResetError)" in program and not tells_resets():
        pytest.skip("needs a system that tells a later reader of a reset")
    file = tmp_path / ("test_example.py" if "\ndef test_" in program else "example.py")
    file.write_text(program, encoding="utf-8")
    runner = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if file.name.startswith("test_") else []
    done = subprocess.run(
        [sys.executable, *runner, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not runner or " passed" in done.stdout


EXCERPTS = [(where(page, line), *language.split()[1:], text) for page in PAGES for line, language, text in blocks(page)]


@pytest.mark.parametrize(("place", "file", "text"), [Case(*it, id=it[0]) for it in EXCERPTS if len(it) == 3])
def test_excerpts(place: str, file: str, text: str) -> None:
    """A block that names a file is a part of it, letter for letter."""
    assert text in (ROOT / file).read_text(encoding="utf-8"), place


def local(arguments: list[str], upstream: str) -> list[str]:
    """The same command on this machine: its target, which comes last, is `upstream`; its port is a free one."""
    told = [*arguments[:-1], upstream]
    for number, option in enumerate(arguments[:-1], 1):
        if option == "-L":
            told[number] = f"0:{upstream}"
        elif option in ("-l", "--local-port"):
            told[number] = "0"
        elif option in ("-b", "--bind") and told[number] not in EVERYWHERE:
            told[number] = "127.0.0.1"  # also in place of a path, which somebody may use
        elif option == "--metrics":
            told[number] = str(free_port())
    return told


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands(arguments: list[str], command: Callable[..., Command], echo: Echo) -> None:
    """Each starts, listens and relays."""
    assert parse_forward("-L", arguments[-1]) if "-L" in arguments else parse_endpoints(arguments[-1])
    if "::" in arguments and not has_ipv6():
        pytest.skip("no IPv6 here")
    process = command(*local(arguments, echo.name))
    eventually(lambda: process.stdout or process.process.poll() is not None, TIMEOUT)
    assert process.stdout, process.stderr
    listening = json.loads(process.stdout[0])["listener"] if "json" in arguments else process.stdout[0].split()[2]
    host, _, port = listening.rpartition(":")
    with connect((EVERYWHERE.get(host.strip("[]"), host), int(port))) as client:
        if "--send-proxy" in arguments:
            client.sendall(b"hello")
            assert read_exactly(client, 33)[28:] == b"hello"  # behind a header of version 2
        else:
            assert echoes(client)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_the_readme() -> None:
    """A newcomer reads it to the end; and it has the picture whose link a release changes (wheels.yml)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert re.search(r"\]\([A-Za-z][^):]*\.svg\)", text)


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page: Path) -> None:
    """Relative ones: the file exists, and so does the heading."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_the_library_page() -> None:
    """It has every public name, and every field of what they return."""
    text = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(?:async with )?(\w+)(?:\([^`]*\))?`", text))
    names = {name for name in dir(tcpproxy.Proxy) if not name.startswith("_")}
    options = {
        name
        for name, option in inspect.signature(tcpproxy.Proxy).parameters.items()
        if option.kind != option.VAR_KEYWORD
    }
    fields = {*tcpproxy.Stats.__slots__, *tcpproxy.Connection.__slots__, *tcpproxy.Event._fields}
    assert {*tcpproxy.__all__, *names, *options, *fields} - said == set()


def test_the_page_of_records() -> None:
    """It has every kind of record, and every field."""
    text = (ROOT / "docs/seeing.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`([\w-]+)`", text))
    names = {name for names in (*OF_CONNECTIONS.values(), OF_OTHERS) for name in names}
    kinds = {*get_args(EventKind), *LEVELS} - {"forwarding"}  # which is for terminals
    assert {
        *kinds,
        *names,
        "time",
        "level",
        "kind",
        "listener",
        "target",
        "pid",
        "version",
        "exit_code",
    } - said == set()


def test_the_service_files(tmp_path: Path) -> None:
    """Systemd reads the unit of docs/operating.md, and those of deploy/, without a complaint."""
    analyze, program = shutil.which("systemd-analyze"), shutil.which("true")
    if not analyze or not program:
        pytest.skip("needs systemd-analyze")
    (unit,) = (text for _, language, text in blocks(ROOT / "docs/operating.md") if language == "ini")
    units = {
        "tcpproxy-db.service": unit,
        **{path.name: path.read_text("utf-8") for path in ROOT.glob("deploy/tcpproxy*")},
    }
    assert len(units) == 4
    for name, text in units.items():
        (tmp_path / name).write_text(text.replace("/opt/tcpproxy/bin/tcpproxy", program), "utf-8")
    names = [str(tmp_path / name.replace("@", "@a")) for name in units]
    done = subprocess.run([analyze, "verify", *names], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_command(command: Callable[..., Command], echo: Echo) -> None:
    """Their arguments are good ones."""
    pages = [ROOT / "docs/operating.md", *ROOT.glob("deploy/*.service")]
    lines = re.findall(r"^ExecStart=\S+ (.+)$", "\n".join(page.read_text("utf-8") for page in pages), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        process = command(*local(line.split(), echo.name))
        with connect(process.address) as client:
            assert echoes(client)
