"""Makes a device slower by sleeping in proportion to the CPU time it spends, so that more devices than cores can be run. Results are `emulated`.

Dense work and attention have a factor each. The core is free for another device while this one sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hetserve.engine.model.decoder import Attend
from hetserve.engine.slack import sleep_s
from hetserve.spec.cluster import Stretch


@contextmanager
def stretched(factor: float) -> Iterator[None]:
    """What happens inside takes `factor` times as long."""
    since_s = time.process_time()
    yield
    sleep_s((factor - 1) * (time.process_time() - since_s))


class StretchedPass:
    """Wraps one pass's `attend`: whatever CPU time passes between its calls is dense work, whatever passes in them is attention.

    `finish` after the pass, for the dense work behind the last attention.
    """

    def __init__(self, attend: Attend, stretch: Stretch) -> None:
        self._attend = attend
        self._stretch = stretch
        self._since_s = time.process_time()

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As the wrapped one."""
        self.finish()
        with stretched(self._stretch.attention):
            out = self._attend(layer, q, k, v)
        self._since_s = time.process_time()
        return out

    def finish(self) -> None:
        sleep_s((self._stretch.dense - 1) * (time.process_time() - self._since_s))
        self._since_s = time.process_time()
