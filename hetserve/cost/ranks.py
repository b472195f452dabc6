"""A stage on several tensor-parallel devices where nobody measured one: a share of the work each, and two all-reduces a layer."""

from __future__ import annotations

from dataclasses import replace

from hetserve.cost.curve import Curve
from hetserve.cost.gpu import CURVE_ROWS
from hetserve.cost.kernels import ring_s
from hetserve.cost.roofline import StepCost
from hetserve.cost.step import Rank


def shared(whole: StepCost, rank: Rank, layers: int, row_bytes: int, latency_s: float, bytes_per_s: float) -> StepCost:
    """What the ranks of `whole`, a stage of so many layers on one device, take together: a `rank.tp`-th of all but its fixed times.

    Args:
        row_bytes: of a token's hidden state.
        latency_s, bytes_per_s: of the slowest link between two ranks.
    """
    rows = sorted({*map(float, CURVE_ROWS), *whole.layers.rows})
    reduce_s = [2 * layers * float(ring_s(rank.tp, latency_s, bytes_per_s, row_bytes * row)) for row in rows]
    dense = Curve(tuple(rows), tuple(whole.layers.at(row) / rank.tp + each_s for row, each_s in zip(rows, reduce_s, strict=True)))
    heads = rank.kv_heads / rank.model.kv_heads
    return replace(
        whole,
        layers=dense,
        head=whole.head * (1 / rank.tp),
        context_s=whole.context_s * heads,
        sequence_s=whole.sequence_s * heads,
        pair_s=whole.pair_s / rank.tp,
        source=f"{whole.source}; shared by {rank.tp}",
    )
