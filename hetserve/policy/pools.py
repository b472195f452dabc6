"""What policies are told of the pools of a stage, and how a pool's attention time follows from it (Hetis, Eq. 3 and 7, per head group)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetserve.solve.minmax import State

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]


class StagePools(NamedTuple):
    """Numbers of each pool of a stage: its primaries', one per tensor-parallel rank, then its attention workers'.

    A pool that holds `h` head groups with `g` tokens together takes (head_s * h + token_s * g) * shared + fixed_s, without `shared` while no other
    pool of the stage holds anything; an empty one takes no time.
    """

    held: Ints  # [pools] head groups there, without the requests that are asked about
    cached: Ints  # [pools] their head groups * tokens
    pages_free: Ints  # [pools]
    head_s: Floats  # [pools] seconds per head group
    token_s: Floats  # [pools] per head group and token
    fixed_s: Floats  # [pools] once it holds anything
    shared: Floats  # [pools] times slower, at least 1, while other pools of the stage attend too

    def alone(self) -> StagePools:
        """The same as if pools did not slow each other."""
        return self._replace(shared=np.ones(len(self.held)))

    def unit_s(self, tokens: Ints) -> Floats:
        """float64 [requests, pools] seconds that a head group of each request adds to a pool while others hold something too."""
        return (self.head_s + self.token_s * np.asarray(tokens)[:, None]) * self.shared

    def state(self) -> State:
        """The same as what `solve` fills."""
        work_s = (self.held * self.head_s + self.cached * self.token_s) * self.shared
        return State(work_s, self.fixed_s, self.held > 0, np.array(self.pages_free, np.int64), self.shared)
