"""Dice: random numbers that depend on their arguments only."""

from __future__ import annotations

import math
import statistics
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

MASK = 2**64 - 1
words = st.integers(0, MASK)

GOLDEN = {
    (0, 0, 0, 0, 0): 0x2130748AAAC80268,
    (1, 0, 0, 0, 0): 0xE28195DDD9EE4956,
    (0, 1, 0, 0, 0): 0xD1C0270687984B37,
    (0, 0, 1, 0, 0): 0x967E49A6CC979914,
    (0, 0, 0, 1, 0): 0xD9EEF7F073D37C42,
    (0, 0, 0, 0, 1): 0x2A4F111B3BE57715,
    (8123, 0xCBF29CE484222325, 17, 2, 0): 0xE73052A2B309999F,
    (MASK, MASK, MASK, 2, MASK): 0x8052F61873F45946,
}
"""Version 1. A fault that was found with a seed is found again by a later version of the program."""


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def test_golden_vectors(door: ModuleType) -> None:
    assert door.VERSION == 1
    assert {key: door.roll(*key) for key in GOLDEN} == GOLDEN


@given(words, words, st.integers(0, 2**61), st.integers(0, 2), words)
def test_as_said(door: ModuleType, seed: int, fault: int, connection: int, direction: int, offset: int) -> None:
    x = mix(seed + 0x9E3779B97F4A7C15 & MASK)
    for word in fault, connection * 4 + direction & MASK, offset:
        x = mix((x ^ word) + 0x9E3779B97F4A7C15 & MASK)
    assert door.roll(seed, fault, connection, direction, offset) == x


@given(words, words)
def test_below(door: ModuleType, number: int, limit: int) -> None:
    assert door.below(number, limit) == number * limit >> 64


@pytest.mark.parametrize("word", range(5))
def test_each_word_changes_half_of_the_bits(door: ModuleType, word: int) -> None:
    """Neighbouring connections and offsets are as different as any."""
    changed = []
    for value in range(4000):
        key = [8123, 77, value // 3, value % 2, value // 7]
        key[word] = value if word != 3 else value % 2
        other = key.copy()
        other[word] = key[word] + 1
        changed.append((door.roll(*key) ^ door.roll(*other)).bit_count())
    assert statistics.fmean(changed) == pytest.approx(32, abs=0.5)
    assert min(changed) > 5


def test_uniform(door: ModuleType) -> None:
    numbers = [door.roll(1, 2, 3, 0, offset) for offset in range(50_000)]
    assert {door.uniform(number, 2) for number in numbers} == {-2, -1, 0, 1, 2}
    assert door.uniform(0, 10**15) == -(10**15)
    assert door.uniform(MASK, 10**15) == 10**15
    scaled = [door.uniform(number, 10**9) for number in numbers]
    assert statistics.fmean(scaled) == pytest.approx(0, abs=4 * 10**9 / math.sqrt(3 * len(scaled)))
    assert statistics.pstdev(scaled) == pytest.approx(10**9 / math.sqrt(3), rel=0.02)
    assert {door.uniform(number, 0) for number in numbers} == {0}


def test_normal(door: ModuleType) -> None:
    numbers = [door.roll(1, 2, 3, 0, offset) for offset in range(50_000)]
    for sigma in (1000, 20 * 10**6, 10**16):
        scaled = [door.normal(number, sigma) for number in numbers]
        assert statistics.fmean(scaled) == pytest.approx(0, abs=4 * sigma / math.sqrt(len(scaled)))
        assert statistics.pstdev(scaled) == pytest.approx(sigma, rel=0.02)
        assert max(map(abs, scaled)) <= 4.9 * sigma
        for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
            within = sum(abs(each) <= deviations * sigma for each in scaled) / len(scaled)
            assert within == pytest.approx(share, abs=0.01)
    assert {door.normal(number, 0) for number in numbers[:100]} == {0}


def test_share_of_connections(door: ModuleType) -> None:
    """10,000 connections at 10 %: within four standard deviations; a higher share includes all of them."""
    numbers = [door.roll(8123, 5, connection, door.OF_CONNECTION, 0) for connection in range(10_000)]
    taken = {at for at, number in enumerate(numbers) if number < MASK // 10}
    assert abs(len(taken) - 1000) < 4 * math.sqrt(10_000 * 0.1 * 0.9)
    assert taken < {at for at, number in enumerate(numbers) if number < MASK // 2}
