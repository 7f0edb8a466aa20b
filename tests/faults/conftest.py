"""Fixtures of the campaigns."""

from __future__ import annotations

import contextlib

import pytest
from traffic import Server


@pytest.fixture
def server(stack: contextlib.ExitStack) -> Server:
    return stack.enter_context(contextlib.closing(Server()))
