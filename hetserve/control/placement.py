"""Which pool each lane of a sequence lies in. A lane is stage * kv_heads + KV head. Pure functions on small arrays."""

from __future__ import annotations

import numpy as np

from hetserve.control.messages import Int32s


def moved(placement: Int32s, pools: range, counts: Int32s) -> Int32s:
    """A placement with `counts` lanes on each pool of a stage that differs from `placement` in as few lanes as possible.

    Args:
        placement: int32 [heads] the stage's lanes now.
        pools: the stage's pools.
        counts: int32 [pools], sum = heads.

    Returns: int32 [heads]. Lanes that leave a pool are its last ones; those that enter one stay together.
    """
    new = placement.copy()
    spare: list[int] = []
    for pool, count in zip(pools, counts.tolist(), strict=True):
        here = np.flatnonzero(placement == pool)
        spare += here[count:].tolist()
    spare.sort()
    for pool, count in zip(pools, counts.tolist(), strict=True):
        missing = count - int(np.count_nonzero(placement == pool))
        for lane in spare[: max(0, missing)]:
            new[lane] = pool
        del spare[: max(0, missing)]
    assert not spare
    return new


def pool_counts(placement: Int32s, pools: range) -> Int32s:
    """int32 [sequences, pools] lanes of each sequence (placement int32 [sequences, heads]) on each pool."""
    return np.stack([(placement == pool).sum(1) for pool in pools], 1).astype(np.int32)
