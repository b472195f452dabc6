"""Kernighan-Lin: exchanges nodes between groups of a weighted graph so that more of the weight is inside them; sizes stay above what each needs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EVERY_PAIR = 12  # groups up to which every pair is tried; more: those that a single exchange improves
EPSILON = 1e-9  # of the heaviest edge: gains below are none


def refine(weights: Floats, sizes: Floats, labels: Ints, least: float, passes: int = 8) -> Ints:
    """The labels after exchanges between pairs of groups until a round of passes finds none, or `passes` rounds.

    A pass on a pair exchanges the best two nodes that have not moved yet, also at a loss, and keeps the exchanges up to the best sum of gains
    (Kernighan and Lin, 1970).

    Args:
        weights: [nodes, nodes] symmetric.
        sizes, labels: [nodes].
        least: of a group's size after an exchange; a group that is below already may not shrink.

    Returns: int64 [nodes].
    """
    labels, groups = labels.copy(), int(labels.max()) + 1
    tiny = EPSILON * float(weights.max(initial=0.0))
    for _ in range(passes):
        pairs = list(combinations(range(groups), 2)) if groups <= EVERY_PAIR else _improved_pairs(weights, labels, groups, tiny)
        if not any([_pass(weights, sizes, labels, pair, least, tiny) for pair in pairs]):
            break
    return labels


def inside(weights: Floats, labels: Ints) -> float:
    """Weight of all edges within groups, each once."""
    return float((weights * (labels[:, None] == labels)).sum() - np.trace(weights)) / 2


def _improved_pairs(weights: Floats, labels: Ints, groups: int, tiny: float) -> list[tuple[int, int]]:
    """Pairs of groups that the exchange of some two nodes improves."""
    member = np.eye(groups)[labels]
    to_group = weights @ member  # [nodes, groups]
    gain = to_group[:, labels] - (to_group * member).sum(axis=1)[:, None]  # [u, v] of u going to v's group
    u, v = np.nonzero((gain + gain.T - 2 * weights > tiny) & (labels[:, None] < labels))
    return sorted({(int(a), int(b)) for a, b in zip(labels[u], labels[v], strict=True)})


def _pass(weights: Floats, sizes: Floats, labels: Ints, pair: tuple[int, int], least: float, tiny: float) -> bool:
    """One pass on two groups; whether it changed them."""
    here, there = (np.flatnonzero(labels == group) for group in pair)
    rows = np.concatenate([here, there])
    local, size = weights[np.ix_(rows, rows)].copy(), sizes[rows]
    np.fill_diagonal(local, 0.0)
    side = np.repeat([0, 1], [len(here), len(there)])
    held = np.array([size[side == 0].sum(), size[side == 1].sum()])
    free = np.ones(len(rows), bool)
    sums, swaps = [0.0], []
    for _ in range(min(len(here), len(there))):
        other = local @ (side == 1) - local @ (side == 0)
        gain = np.where(side == 0, other, -other)  # of a node that changes sides
        left, right = np.flatnonzero(free & (side == 0)), np.flatnonzero(free & (side == 1))
        both = gain[left][:, None] + gain[right] - 2 * local[np.ix_(left, right)]
        grows = size[right] - size[left][:, None]  # of the first group
        sound = ((held[0] + grows >= least) | (grows >= 0)) & ((held[1] - grows >= least) | (grows <= 0))
        if not sound.any():
            break
        best = int(np.where(sound, both, -np.inf).argmax())
        u, v = left[best // len(right)], right[best % len(right)]
        sums.append(sums[-1] + float(both.flat[best]))
        swaps.append((u, v))
        held += (size[v] - size[u]) * np.array([1, -1])
        side[[u, v]] = 1, 0
        free[[u, v]] = False
    kept = int(np.argmax(sums))
    if sums[kept] <= tiny:
        return False
    for u, v in swaps[:kept]:
        labels[[rows[u], rows[v]]] = labels[[rows[v], rows[u]]]
    return True
