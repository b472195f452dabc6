"""One object that answers for a whole cluster: a stage's step, a head group's share of decode attention, a move. Planner and dispatcher ask it.

Three sources, in order: the measured profile of a device, else rates of its kind; every answer names its source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hetserve.cost.rates import device_rates
from hetserve.cost.roofline import Roofline, StepCost
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import Profile

LINK_BYTES = 2e9  # per second between worker processes of one machine
LINK_S = 1e-4  # a round trip of one


@dataclass(frozen=True)
class HeadCost:
    """Decode attention of a stage's layers on one pool, per step: head_s * head groups + token_s * (head groups * tokens) + fixed_s.

    Transfers to and from the primary are in it where the pool is another device's (Hetis, Eq. 3, 4 and 7, per head group instead of per head).
    `fixed_s` is due only when the pool holds something.
    """

    head_s: float
    token_s: float
    fixed_s: float
    source: str


@dataclass(frozen=True)
class Costs:
    """Answers for the devices of one cluster and one model.

    Args:
        dtype: of activations and KV.
        profile: what was measured; None: nothing was.
    """

    model: ModelSpec
    dtype: str
    cluster: Cluster
    profile: Profile | None = None

    def stage_cost(self, device: str, layers: tuple[int, int], weights: str) -> StepCost:
        """The step-time formula of layers [first, last) on a device whose weights are stored as `weights`."""
        whole = Roofline(self.model, weights, device_rates(self.cluster.device(device), weights)).step_cost()
        share = (layers[1] - layers[0]) / self.model.layers
        return replace(
            whole,
            token_s=whole.token_s * share,
            weights_s=whole.weights_s * share,
            context_s=whole.context_s * share * DTYPE_BYTES[self.dtype] / DTYPE_BYTES[weights],
            pair_s=whole.pair_s * share,
            sample_s=whole.sample_s if layers[1] == self.model.layers else 0.0,
        )

    def head_cost(self, device: str, layers: tuple[int, int], primary: str | None = None) -> HeadCost:
        """Decode attention on a device; `primary` is the device that sends it q, k and v, None: it is that device itself."""
        rates = device_rates(self.cluster.device(device), self.dtype)
        n_layers = layers[1] - layers[0]
        vector_bytes = self.model.head_dim * DTYPE_BYTES[self.dtype]
        token_s = n_layers * 2 * vector_bytes / rates.read_bytes
        if primary is None:
            return HeadCost(0.0, token_s, 0.0, rates.source)
        vectors = 2 * self.model.group + 2
        return HeadCost(n_layers * vectors * vector_bytes / LINK_BYTES, token_s, n_layers * LINK_S, rates.source)

    def move_s(self, source: str, target: str, size_bytes: int) -> float:
        """Seconds to move KV pages from one device to another."""
        return size_bytes / LINK_BYTES
