"""Cuts a weighted graph into groups: heavy edges inside, node sizes shared out evenly. Recursive bisection along Fiedler vectors.

HexGen-2 says "spectral partitioning" with balanced memory and no more. Chosen here: the symmetric normalised Laplacian, one bisection at a time, each
in proportion to the groups that either side will hold, and among cuts that are about balanced the lightest one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SLACK = 0.15  # how far a side's size may be from its share, relative to both sides' together, for the sake of a lighter cut
TILT = 1e-3  # of the mean edge: how much nearer neighbours in order are, so that equal nodes are cut in order and alike on every machine


def spectral_groups(weights: Floats, sizes: Floats, groups: int) -> Ints:
    """A group for each node, every group at least one node.

    Args:
        weights: [nodes, nodes] of edges; symmetric, not negative, the diagonal is not looked at.
        sizes: [nodes] positive, shared out evenly over the groups.
        groups: 1 up to nodes.

    Returns: int64 [nodes], numbers from 0 up to groups - 1.
    """
    nodes = len(sizes)
    assert 1 <= groups <= nodes and weights.shape == (nodes, nodes)
    apart = np.abs(np.subtract.outer(np.arange(nodes), np.arange(nodes)))
    tilted = weights + TILT * (weights.mean() or 1.0) * (1 - apart / nodes)
    np.fill_diagonal(tilted, 0.0)
    found = np.zeros(nodes, np.int64)
    parts = [(np.arange(nodes), 0, groups)]
    while parts:
        members, first, count = parts.pop()
        if count == 1:
            found[members] = first
            continue
        left = count // 2
        chosen = _bisect(tilted[np.ix_(members, members)], sizes[members], left, count - left)
        parts += [(members[chosen], first, left), (members[~chosen], first + left, count - left)]
    return found


def fiedler(weights: Floats) -> Floats:
    """The eigenvector of the second smallest eigenvalue of the normalised Laplacian, for each node as a position on a line: float64 [nodes].

    The sign is the one that puts the first node on the left.
    """
    from scipy.linalg import eigh  # here: a machine that only runs plans may lack it

    root = 1 / np.sqrt(np.maximum(weights.sum(axis=1), 1e-300))
    laplacian = np.eye(len(root)) - root[:, None] * weights * root
    _, vectors = eigh(laplacian, subset_by_index=[0, 1])
    place = vectors[:, 1] * root
    return place if place[0] <= place.mean() else -place


def _bisect(weights: Floats, sizes: Floats, left: int, right: int) -> NDArray[np.bool_]:
    """[nodes] which are on the left, with at least `left` nodes of `left / (left + right)` of the size."""
    nodes = len(sizes)
    order = np.argsort(np.round(fiedler(weights), 9), kind="stable") if nodes > 2 else np.arange(nodes)
    ends = np.arange(left, nodes - right + 1)  # how many nodes the left side may have
    held = np.cumsum(sizes[order])[ends - 1] / sizes.sum()
    off = np.abs(held - left / (left + right))
    ordered = weights[np.ix_(order, order)]
    sums = np.cumsum(np.cumsum(ordered, axis=0), axis=1)  # [i, j] of the first i + 1 rows and j + 1 columns
    inside = sums[ends - 1, ends - 1]
    cut = np.cumsum(ordered.sum(axis=1))[ends - 1] - inside
    ratio = np.round(cut / (held * (1 - held)) / (cut.sum() or 1.0), 12) * (1 + off)  # a light cut that shares sizes out well
    best = ends[np.lexsort((off, np.where(off <= max(SLACK, off.min()), ratio, np.inf)))[0]]
    chosen = np.zeros(nodes, bool)
    chosen[order[:best]] = True
    return chosen
