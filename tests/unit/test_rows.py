"""The checklist in docs/behaviours.md: a test names each of its rows, or the row is here with the reason why not.

"Row N" in the text of a test is one of its 112 behaviours.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LAST = 112

NOT_TESTED: dict[int, str] = {}

TESTED_IN_PART: dict[int, str] = {}

NUMBERS = re.compile(r"\bRows? (\d+(?:(?:-| to |, | and |, and )\d+)*)", re.IGNORECASE)


def rows(text: str) -> set[int]:
    """The rows that a text names."""
    found: set[int] = set()
    for numbers in NUMBERS.findall(text):
        for first, last in re.findall(r"(\d+)(?:(?:-| to )(\d+))?", numbers):
            found.update(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row 3: one, and 4 others", {3}),
        ("Rows 1 to 3, 5 and 7-8: several", {1, 2, 3, 5, 7, 8}),
        ("a thing (row 39), another (rows 9, 10, and 12)", {39, 9, 10, 12}),
        ("Rows 16, 17: and no others\n    3 lines below", {16, 17}),
        ("no row, no number, no arrow 3", set()),
    ],
)
def test_reading(text: str, expected: set[int]) -> None:
    assert rows(text) == expected


def test_every_row_has_a_test_or_a_reason() -> None:
    tests = [path for path in Path(__file__).parents[1].rglob("test_*.py") if path.name != Path(__file__).name]
    tested = set().union(*(rows(path.read_text(encoding="utf-8")) for path in tests))
    assert tested | set(NOT_TESTED) == set(range(1, LAST + 1))
    assert not tested & set(NOT_TESTED)
    assert set(TESTED_IN_PART) <= tested


def test_the_checklist() -> None:
    """It has every row, once and in order, and says itself which rows no test covers."""
    checklist = Path(__file__).parents[2] / "docs/behaviours.md"
    if not checklist.exists():
        pytest.skip("no docs here")
    text = checklist.read_text(encoding="utf-8")
    lines = re.findall(r"^\| *(\d+) \|(.+)\|(.+)\|(.+)\|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in lines] == list(range(1, LAST + 1))
    assert all(cell.strip() for _, *cells in lines for cell in cells)
    sentences = re.findall(r"No test covers these rows today([^.]+)\.", text)
    named = re.findall(r"(\d+)(?: to (\d+))?", "".join(sentences))
    assert {row for first, last in named for row in range(int(first), int(last or first) + 1)} == set(NOT_TESTED)
