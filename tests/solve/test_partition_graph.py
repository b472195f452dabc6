"""Groups of a graph: spectral bisection, Kernighan-Lin exchanges, and the opposite cut of the coarser graph, against brute force where it is
small."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from hetserve.solve.sides import between, coarsen, most_between
from hetserve.solve.spectral import fiedler, spectral_groups
from hetserve.solve.swaps import inside, refine


def nodes_of(*sizes: int, near: float = 100.0, far: float = 1.0) -> np.ndarray:
    """Machines with so many devices, near each other within and far between."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.where(owner[:, None] == owner, near, far)
    np.fill_diagonal(weights, 0.0)
    return weights


def random_graph(seed: int, nodes: int) -> np.ndarray:
    weights = np.random.default_rng(seed).random((nodes, nodes)) ** 3
    weights = weights + weights.T
    np.fill_diagonal(weights, 0.0)
    return weights


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_machines_are_kept_whole(groups) -> None:
    weights = nodes_of(4, 4, 4, 4, 4, 4, 4, 4)
    shuffled = np.random.default_rng(3).permutation(32)
    labels = np.empty(32, int)
    labels[shuffled] = spectral_groups(weights[np.ix_(shuffled, shuffled)], np.ones(32), groups)
    for machine in labels.reshape(8, 4):
        assert len(set(machine)) == 1
    assert np.bincount(labels, minlength=groups).tolist() == [32 // groups] * groups


def test_sizes_are_shared_out() -> None:
    sizes = np.array([80.0, 80, 24, 24, 24, 24, 12, 12, 12, 12])
    labels = spectral_groups(nodes_of(2, 4, 4, near=3.0), sizes, 2)
    held = np.bincount(labels, weights=sizes)
    assert held.min() >= sizes.sum() * (0.5 - 0.15)


@pytest.mark.parametrize("groups", range(1, 8))
def test_every_group_has_a_node(groups) -> None:
    for seed in range(10):
        labels = spectral_groups(random_graph(seed, 7), np.random.default_rng(seed).random(7) + 0.1, groups)
        assert set(labels) == set(range(groups))


def test_an_edgeless_and_a_torn_graph_are_cut_too() -> None:
    assert set(spectral_groups(np.zeros((5, 5)), np.ones(5), 3)) == {0, 1, 2}
    torn = nodes_of(3, 3, far=0.0)
    assert len(set(spectral_groups(torn, np.ones(6), 2)[:3])) == 1


def test_the_fiedler_vector_tells_two_clusters_apart() -> None:
    place = fiedler(nodes_of(5, 3))
    assert (place[:5] < 0).all() and (place[5:] > 0).all()


def test_exchanges_only_gain_and_keep_the_least_size() -> None:
    for seed in range(20):
        weights, sizes = random_graph(seed, 9), np.random.default_rng(seed).integers(1, 4, 9).astype(float)
        labels = np.arange(9) % 3
        before = np.bincount(labels, weights=sizes)
        after = refine(weights, sizes, labels, least=4.0)
        assert inside(weights, after) >= inside(weights, labels)
        assert np.bincount(after).tolist() == [3, 3, 3]
        assert (np.bincount(after, weights=sizes) >= np.minimum(before, 4.0)).all()


def test_exchanges_find_the_best_halves_of_small_graphs() -> None:
    found, best = [], []
    for seed in range(20):
        weights = random_graph(seed, 8)
        labels = refine(weights, np.ones(8), np.arange(8) % 2, least=0.0)
        found.append(inside(weights, labels))
        halves = [np.isin(np.arange(8), half).astype(int) for half in combinations(range(8), 4)]
        best.append(max(inside(weights, half) for half in halves))
    assert np.median(np.array(found) / best) > 0.99 and min(np.array(found) / best) > 0.9


def test_with_many_groups_only_pairs_that_gain_are_touched() -> None:
    weights = nodes_of(*[2] * 20)
    labels = np.repeat(np.arange(20), 2)
    mixed = labels.copy()
    mixed[[0, 2]] = mixed[[2, 0]]
    after = refine(weights, np.ones(40), mixed, least=0.0)
    assert inside(weights, after) == inside(weights, labels)
    assert (after[4:] == mixed[4:]).all()


def test_the_coarser_graph_has_the_weight_between_groups() -> None:
    weights = random_graph(1, 6)
    coarse = coarsen(weights, np.array([0, 0, 1, 1, -1, 2]), 3)
    assert coarse[0, 1] == pytest.approx(weights[:2, 2:4].sum()) and coarse[0, 0] == 0
    assert np.allclose(coarse, coarse.T) and coarse[1, 2] == pytest.approx(weights[2:4, 5].sum())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_sets_with_most_between_them(count) -> None:
    for seed in range(5):
        weights = random_graph(seed, 6)
        masks = [np.array(mask, bool) for mask in product((True, False), repeat=6) if sum(mask) == count]
        assert between(weights, most_between(weights, count)) == pytest.approx(max(between(weights, mask) for mask in masks))


def test_many_groups_are_split_nearly_as_well() -> None:
    for seed in range(5):
        weights = random_graph(seed, 14)
        first = most_between(weights, 7)  # 3,432 splits: by exchanges
        best = max(between(weights, np.isin(np.arange(14), chosen)) for chosen in combinations(range(14), 7))
        assert first.sum() == 7 and between(weights, first) > 0.97 * best
