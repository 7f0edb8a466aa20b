"""One row per option, and everything that is made from it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin

import pytest
from options import PAGE, README, pages, typed

import tcpproxy
from tcpproxy.command.manual import NARROWEST, TWO_COLUMNS, WIDEST, help_text
from tcpproxy.config.groups import GROUPS, HEADINGS, ROWS, Options, every_row
from tcpproxy.config.options import Option

ROOT = Path(__file__).parents[2]
EVERY = pytest.mark.parametrize("row", every_row(), ids=lambda row: row.name)
IN_A_PROGRAM = [row for row in every_row() if not row.command_only]

OF_OPTIONS = ("groups.py", "manual.py", "unknown.py", "usage.py")

needs_pages = pytest.mark.skipif(not README.exists() or not PAGE.exists(), reason="needs the whole source tree")


def test_arguments() -> None:
    """The TypedDict, which type checkers read, has the same names as the rows; and a place for each default."""
    assert list(Options.__annotations__) == [row.name for row in IN_A_PROGRAM]
    for row in IN_A_PROGRAM:
        kind = Options.__annotations__[row.name]
        kinds = (
            [get_origin(each) or each for each in get_args(kind) or (kind,)]
            if get_origin(kind) is not Sequence
            else [Sequence]
        )
        assert isinstance(row.default_in_program, tuple(kinds))


def test_names() -> None:
    """No name or letter twice, in a program or on the command line."""
    names = [row.name for row in every_row()]
    spelt = [*(row.long for row in every_row()), *(row.short for row in every_row() if row.short)]
    spelt += ["-h", "--help", "-V", "--version"]
    assert len(set(names)) == len(names)
    assert len(set(spelt)) == len(spelt)
    assert not {*names} & {"remote", "on_event"}


@EVERY
def test_words(row: Option) -> None:
    """The help is one short sentence; the documentation has whole ones; a default can be given."""
    assert re.fullmatch(r"[A-Z][^.]*\.", row.help)
    assert len(row.help.split()) <= 9
    assert row.doc.endswith(".")
    assert row.doc.isprintable()
    row.parse("a", row.default)
    row.parse("a", row.default_in_program)
    assert row.shown or row.default is not None


@EVERY
def test_spelt_once(row: Option) -> None:
    """Only the examples of --help repeat an option, and the tables of what others call it."""
    code = [path for path in (ROOT / "tcpproxy").rglob("*.py") if path.name not in OF_OPTIONS]
    if not code:
        pytest.skip("no source tree here")
    assert [path for path in code if re.search(rf"{row.long}\b", path.read_text(encoding="utf-8"))] == []


# --- in a program ---


def test_signature() -> None:
    """Every option with its default in a program."""
    parameters = inspect.signature(tcpproxy.Proxy).parameters
    assert list(parameters)[:6] == ["remote", "on_event", "record", "faults", "seed", "sockets"]
    options = {name: each.default for name, each in list(parameters.items())[6:]}
    assert options == {row.name: row.default_in_program for row in IN_A_PROGRAM}
    assert all(each.kind == each.KEYWORD_ONLY for each in list(parameters.values())[1:])
    assert str(parameters["grace"]) == "grace: float | str = '0s'"
    assert list(inspect.signature(tcpproxy.Proxy.__init__).parameters) == ["self", *parameters]


def test_signature_of_a_subclass() -> None:
    """Its own where it has one."""

    class Same(tcpproxy.Proxy):
        pass

    class Other(tcpproxy.Proxy):
        def __init__(self, port: int) -> None:
            super().__init__(f"localhost:{port}")

    assert inspect.signature(Same) == inspect.signature(tcpproxy.Proxy)
    assert list(inspect.signature(Other).parameters) == ["port"]


@pytest.mark.parametrize("row", IN_A_PROGRAM, ids=lambda row: row.name)
def test_docstring(row: Option) -> None:
    """Every option with its default in a program and its unit, among the arguments."""
    text = " ".join(inspect.getdoc(tcpproxy.Proxy).split())
    (told,) = re.findall(rf" {row.name}: (.*?Default: \S+)", text)
    assert told.startswith(f"{row.help} {row.doc}")
    assert re.search(rf"Default: {re.escape(repr(row.default_in_program))}[.,]", told)
    assert row.unit in told
    assert "<options>" not in text


def test_docstring_lines() -> None:
    """They fit a terminal of 100 columns, or nearly so."""
    assert max(map(len, inspect.getdoc(tcpproxy.Proxy).splitlines())) <= 110


def test_without_docstrings() -> None:
    """Python -OO has none; --help is the same."""
    argv = [sys.executable, "-OO", "-c", "import tcpproxy; print(tcpproxy.Proxy.__doc__)"]
    assert subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=30, check=True).stdout == "None\n"
    argv = [sys.executable, "-OO", "-m", "tcpproxy", "--help"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(argv, cwd="/", env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == help_text(80) + "\n"


def test_import_is_light() -> None:
    """`import tcpproxy` loads neither the options nor what they need."""
    code = "import sys, tcpproxy; print([name for name in sys.modules if name.startswith(('tcpproxy.', 'click'))])"
    argv = [sys.executable, "-P", "-c", code]
    assert subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=30, check=True).stdout == "[]\n"


SNIPPET = """
import tcpproxy
tcpproxy.Proxy("localhost:80", idle_timeout="5m", port=0, max_connections=None)
tcpproxy.Proxy("localhost:80", idle_timout=5)
tcpproxy.Proxy("localhost:80", idle_timeout=[])
"""


def test_type_checker(tmp_path: Path) -> None:
    """It knows the options, and the types of their values."""
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "snippet.py"]
    home = Path(tcpproxy.__file__).parents[1]
    environment = os.environ if home.name == "site-packages" else {**os.environ, "MYPYPATH": str(home)}  # editable
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False)
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert [line.split(":")[1] for line in errors] == ["4", "5"], done.stdout + done.stderr
    assert 'Unexpected keyword argument "idle_timout"' in errors[0]
    assert 'incompatible type "list' in errors[1]


# --- on the command line ---


@EVERY
def test_help(row: Option) -> None:
    """Each option with its default, in its group."""
    text = help_text(100)
    section = "Main options" if row.first else HEADINGS[next(name for name in ROWS if row in ROWS[name])]
    (lines,) = re.findall(rf"\n{section}:\n(.*?)\n\n", text, re.DOTALL)
    (told,) = re.findall(rf"^  (?:{row.short or '  '}. )?\s*{re.escape(typed(row))}\s+([^-].*)", lines, re.MULTILINE)
    described = " ".join(lines[lines.index(told) :].split())
    default = f" [default: {row.shown or row.default}]" if row.metavar else ""
    assert described.startswith(f"{row.help}{default}")


def test_help_begins_with_the_options_of_the_original() -> None:
    """REMOTE, -b, -l, -d, -V, -h; with -L, which stands for the first three."""
    text = help_text(80)
    assert re.findall(r"REMOTE|^  (-\w),", text, re.MULTILINE)[:2] == ["", ""]
    assert re.findall(r"^  -(\w),", text, re.MULTILINE)[:6] == ["b", "l", "L", "d", "V", "h"]
    assert text.index("REMOTE") < text.index("-b")


def test_help_in_groups() -> None:
    """Then groups, examples, exit codes, signals, in this order."""
    titles = re.findall(r"^(\w[\w -]*):(?: |$)", help_text(80), re.MULTILINE)
    groups = [HEADINGS[name] for name in GROUPS if not all(row.first for row in ROWS[name])]
    assert titles == ["Usage", "Main options", *groups, "Examples", "Exit codes", "Signals"]


@pytest.mark.parametrize("columns", [1, 40, 60, 79, 80, 100, 120, 500])
def test_width_of_help(columns: int) -> None:
    """No line is wider than the terminal or 100 columns; only examples and options of a narrow one are."""
    width = max(NARROWEST, min(columns, WIDEST))
    wide = [line for line in help_text(columns).splitlines() if len(line) > width]
    assert columns < TWO_COLUMNS or wide == []
    assert all(re.match(r"  tcpproxy|  +-", line) for line in wide)


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("100", 100), ("300", 100), ("0", 80), ("wide", 80)])
def test_columns_of_the_environment(columns: str, widest: int) -> None:
    """COLUMNS counts, up to 100; without it, and without a terminal, it is 80."""
    argv = [sys.executable, "-m", "tcpproxy", "--help"]
    environment = {**os.environ, "COLUMNS": columns}
    done = subprocess.run(argv, cwd="/", env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == help_text(widest) + "\n"


# --- in the documentation ---


@needs_pages
def test_pages_are_up_to_date() -> None:
    """If not: python tools/options.py."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, path


@needs_pages
@EVERY
def test_documentation(row: Option) -> None:
    """Each option has its sentences and defaults in docs/options.md, and a row in README.md unless it is minor."""
    in_readme = f"`{typed(row)}` |".replace("|", r"\|").replace(r"` \|", "` |") in README.read_text(encoding="utf-8")
    assert in_readme != row.minor
    page = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(
        rf"^### `(?:-\w, )?{re.escape(typed(row))}`\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE
    )
    text = " ".join(section.split())
    assert f"{row.help} {row.doc}" in text
    if row.metavar:
        assert f"Default: {row.shown}." in text or f"Default: `{row.default}`." in text
    if row.embedded is not None:
        assert f"In a program: `{row.name}`, default `{row.embedded!r}`." in text
