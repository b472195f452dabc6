"""Groups as nodes of a coarser graph, and those nodes in two sets with as much weight as possible between the sets: the opposite of a partition."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EVERY_SPLIT = 1000  # splits up to which all are tried; more: exchanges from a greedy start


def coarsen(weights: Floats, labels: Ints, groups: int) -> Floats:
    """[groups, groups] weight of the edges between groups; nothing on the diagonal. Nodes labelled below 0 are in none."""
    member = (labels[:, None] == np.arange(groups)).astype(float)
    coarse = member.T @ weights @ member
    np.fill_diagonal(coarse, 0.0)
    return coarse


def between(weights: Floats, first: Bools) -> float:
    """Weight of the edges between the nodes of the first set and the others."""
    return float(weights[np.ix_(first, ~first)].sum())


def most_between(weights: Floats, count: int) -> Bools:
    """[nodes] the `count` of them with the most weight between them and the others: exact for few, else a local optimum of exchanges."""
    nodes = len(weights)
    assert 0 < count < nodes
    if comb(nodes, count) <= EVERY_SPLIT:
        masks = np.zeros((comb(nodes, count), nodes), bool)
        masks[np.arange(len(masks))[:, None], list(combinations(range(nodes), count))] = True
        crossing = (masks @ weights * ~masks).sum(axis=1)
        return masks[int(np.argmax(crossing * (1 - 1e-12 * np.arange(len(masks)))))]
    first = np.zeros(nodes, bool)
    gain = weights.sum(axis=1)  # of joining the first set
    for _ in range(count):
        one = int(np.where(first, -np.inf, gain).argmax())
        first[one] = True
        gain = gain - 2 * weights[one]
    return _exchanged(weights, first)


def _exchanged(weights: Floats, first: Bools) -> Bools:
    """Exchanges the best two nodes until none gains; at most as often as there are nodes."""
    tiny = 1e-9 * float(weights.max(initial=0.0))
    for _ in range(len(first)):
        out, into = np.flatnonzero(first), np.flatnonzero(~first)
        change = weights @ first - weights @ ~first  # of a node that leaves the first set; less that, of one that joins it
        both = change[out][:, None] - change[into] + 2 * weights[np.ix_(out, into)]
        best = int(both.argmax())
        if both.flat[best] <= tiny:
            break
        first[out[best // len(into)]], first[into[best % len(into)]] = False, True
    return first
