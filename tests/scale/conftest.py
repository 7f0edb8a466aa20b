"""Campaigns of a set length bring the time that they may take along."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_soak.py":
            item.add_marker(pytest.mark.timeout(90 * config.getoption("--rounds") + 90))
