"""The online policies of one system, as the controller takes them. Each is a pure function on numbers; the files beside this one hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Policies:
    route: Callable[[Ints, Ints], int]  # see policy/route.py
    batch: Callable[[int, Ints], list[int]]  # see policy/batch.py
    heads: Callable[[int, Ints], Int32s]  # see policy/heads.py
    rebalance: Callable[[Ints, Ints], list[tuple[int, int]]]  # see policy/rebalance.py
    evict: Callable[[Ints], int]  # see policy/evict.py
