"""Fixtures of the campaigns."""

from __future__ import annotations

import contextlib
import sys

import pytest
from traffic import Server


@pytest.fixture(autouse=True)
def linux() -> None:
    if sys.platform != "linux":
        pytest.skip("faults come from strace and a preloaded library, as Linux has them")


@pytest.fixture
def server(stack: contextlib.ExitStack) -> Server:
    return stack.enter_context(contextlib.closing(Server()))
