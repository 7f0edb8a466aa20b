"""Servers for the examples, where they are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.servers import postgres_server, redis_server


@pytest.fixture(scope="session")
def redis_port() -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        yield redis_server(stack)


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        yield f"postgresql://postgres@127.0.0.1:{postgres_server(stack)}/postgres"
