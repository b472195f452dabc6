"""Maximum flow by push-relabel (preflow-push), OR-tools' SimpleMaxFlow: real capacities in, a flow and its bottleneck out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

UNITS = 2**40  # integer units that the most that can pass is cut into


@dataclass(frozen=True)
class Flow:
    """Attributes:
    total: what reaches the sink.
    flows: [arcs].
    saturated: [arcs] which are used to their capacity.
    cut: [arcs] which cross one minimum cut, the nearest to the source: saturated arcs that limit the total together.
    """

    total: float
    flows: Floats
    saturated: Bools
    cut: Bools


def max_flow(tails: ArrayLike, heads: ArrayLike, capacities: ArrayLike, source: int, sink: int) -> Flow:
    """A flow with the largest total from source to sink.

    Args:
        tails, heads: [arcs] node numbers from 0 up.
        capacities: [arcs] at least 0; inf is allowed, not on a whole way from source to sink.

    Raises:
        ValueError: a capacity is negative or not a number, or there is no limit.
    """
    from ortools.graph.python.max_flow import SimpleMaxFlow  # here: planners are imported where nothing is planned

    tails, heads = np.asarray(tails, np.int32), np.asarray(heads, np.int32)
    capacities = np.asarray(capacities, float)
    if not (capacities >= 0).all():
        raise ValueError("capacities must be numbers of at least 0")
    limit = float(min(capacities[tails == source].sum(), capacities[heads == sink].sum()))  # no flow is larger
    if np.isinf(limit):
        finite = capacities[np.isfinite(capacities)].sum()
        limit = finite + 1.0  # only an endless way could pass more
    limit = limit or max(capacities[np.isfinite(capacities)].max(initial=0.0), 1.0)  # nothing passes at all
    unit = limit / UNITS
    whole = np.floor(np.minimum(capacities, 2 * limit) / unit).astype(np.int64)  # 2: an arc that could carry more than all is never full
    solver = SimpleMaxFlow()
    arcs = solver.add_arcs_with_capacity(tails, heads, whole)
    status = solver.solve(source, sink)
    assert status == solver.OPTIMAL, status
    flows = np.asarray(solver.flows(arcs), np.int64)
    total = float(solver.optimal_flow() * unit)
    if np.isinf(capacities).any() and total > limit * (1 - 1e-9):
        raise ValueError("there is a way of endless capacity from source to sink")
    near = np.zeros(int(max(tails.max(initial=0), heads.max(initial=0), source, sink)) + 1, bool)
    near[solver.get_source_side_min_cut()] = True
    return Flow(total, flows * unit, (flows == whole) & (whole > 0), near[tails] & ~near[heads])
