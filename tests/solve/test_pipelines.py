"""Pipelines that share no unit: against all there are on small inputs, and what every answer must be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from hetserve.solve.pipelines import Pipelines, best_pipelines


def case(seed: int, units: int, blocks: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Units of three kinds with room for some blocks, some links slow."""
    rng = np.random.default_rng(seed)
    kinds = np.sort(rng.integers(3, size=units))
    speed, room = np.array([9.0, 4.0, 1.0])[kinds], np.array([blocks, blocks // 2 + 1, 2])[kinds]
    counts = np.arange(blocks + 1)
    rates = np.where((counts > 0) & (counts <= room[:, None]), speed[:, None] / np.maximum(counts, 1), 0.0)
    carried = np.where(rng.random((units, units)) < 0.3, 0.5, np.inf)
    return rates, carried, list(range(units))  # links are unlike, so units are


def best_of_all(rates: np.ndarray, carried: np.ndarray) -> float:
    """By trying everything."""
    units, blocks = rates.shape[0], rates.shape[1] - 1

    def ways(free: frozenset[int], at: int, last: int, flow: float) -> Iterator[tuple[frozenset[int], float]]:
        if at == blocks:
            yield free, flow
            return
        for unit in free:
            for count in range(1, blocks - at + 1):
                limit = min(flow, rates[unit, count], carried[last, unit] if last >= 0 else np.inf)
                if limit > 0:
                    yield from ways(free - {unit}, at + count, unit, limit)

    def most(free: frozenset[int]) -> float:
        if free not in known:
            known[free] = max((flow + most(left) for left, flow in ways(free, 0, -1, np.inf)), default=0.0)
        return known[free]

    known: dict[frozenset[int], float] = {}
    return most(frozenset(range(units)))


def check(found: Pipelines, rates: np.ndarray, carried: np.ndarray) -> None:
    """Ways share nothing, hold every block once, and let through what is told."""
    units = [unit for way in found.ways for unit, _, _ in way]
    assert len(set(units)) == len(units)
    total = 0.0
    for way in found.ways:
        assert way[0][1] == 0 and way[-1][2] == rates.shape[1] - 1
        assert all(one[2] == other[1] for one, other in pairwise(way))
        limits = [rates[unit, last - first] for unit, first, last in way] + [carried[one[0], other[0]] for one, other in pairwise(way)]
        total += min(limits)
    assert found.total == pytest.approx(total, rel=1e-3) and found.total <= found.bound * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_all_placements(seed) -> None:
    rates, carried, alike = case(seed, 4, 4)
    found = best_pipelines(rates, carried, alike, 2.0)
    check(found, rates, carried)
    assert found.total == pytest.approx(best_of_all(rates, carried), rel=1e-3)


def test_larger_ones_are_sound_and_the_same_each_time() -> None:
    rates, carried, alike = case(1, 10, 10)
    once, again = (best_pipelines(rates, carried, alike, 0.2) for _ in range(2))
    check(once, rates, carried)
    assert once == again and once.total > 0


def test_layers_in_proportion_to_speed() -> None:
    rates = np.array([[0, *(3 / np.arange(1, 9))], [0, *(1 / np.arange(1, 9))]])
    rates[:, 8] = 0  # nobody holds all
    found = best_pipelines(rates, np.full((2, 2), np.inf), [0, 1], 1.0)
    ((first, second),) = found.ways
    assert {first[0]: first[2] - first[1], second[0]: second[2] - second[1]} == {0: 6, 1: 2}


def test_nothing_fits() -> None:
    rates = np.array([[0.0, 1.0, 0.0, 0.0]])
    assert best_pipelines(rates, np.full((1, 1), np.inf), [0], 0.5).ways == ()
    assert best_pipelines(np.zeros((2, 4)), np.full((2, 2), np.inf), [0, 0], 0.5).ways == ()
