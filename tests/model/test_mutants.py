"""A test that cannot fail proves nothing: relays with known mistakes fail it."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
from support.machine import needs_proc

from tcpproxy._core.worker import FEATURES

from .driver import Violation, compare
from .mutants import MUTANTS, POLLER, build
from .test_schedules import FOUND, configured, explore

EXAMPLES = (500, 2000)
"""Schedules in which each of them has to be found: those of the fixed seed, and others, which may be unlucky ones."""


@pytest.mark.timeout(600)  # a build
@pytest.mark.parametrize("name", MUTANTS)
def test_broken_relay_is_found(name: str, tmp_path: Path, schedule_seeds: tuple[int, int]) -> None:
    """Rows 10, 18, 67, 68, 82, 86: each mistake breaks one of them."""
    needs_proc()
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    mutant = MUTANTS[name]
    if mutant.only and mutant.only != POLLER:
        pytest.skip(f"no mistake with {POLLER}, which reports again what is left")
    if mutant.mode == "always" and "splice" not in FEATURES:
        pytest.skip("a build without splice")
    environment = build(mutant, tmp_path)
    with configured(mutant.mode, 1, narrow=False, hang=3.0, env=environment) as (direct, relayed):
        assert relayed.command
        assert str(tmp_path) in Path(f"/proc/{relayed.command.process.pid}/maps").read_text()
        with pytest.raises(Violation, match="through the relay"):
            compare(FOUND[mutant.known], direct, relayed)
        for number, examples in () if mutant.rare else zip(schedule_seeds, EXAMPLES, strict=True):
            with pytest.raises(Violation, match="through the relay") as found:
                explore(direct, relayed, number, examples, shrink=False)
            print(found.value)
