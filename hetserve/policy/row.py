"""The online policies of one system, as the controller takes them. Each is a pure function on numbers; the files beside this one hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetserve.policy.pools import StagePools

Ints = NDArray[np.integer]
Int32s = NDArray[np.int32]
Floats = NDArray[np.float64]

Route = Callable[[int, Ints, Ints, Floats], int]  # see policy/route.py
Batch = Callable[[int, Ints], list[int]]  # see policy/batch.py
Heads = Callable[[int, int, Ints, Ints, StagePools], Int32s]  # see policy/heads.py
Rebalance = Callable[[int, int, Ints, Ints, Ints, StagePools], Ints]  # see policy/rebalance.py
Evict = Callable[[Ints], int]  # see policy/evict.py


@dataclass(frozen=True)
class Policies:
    route: Route
    batch: Batch
    heads: Heads
    rebalance: Rebalance
    evict: Evict
