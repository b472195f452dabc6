"""What a user may fix about a plan; everything left open is resolved by the planner before the plan is made."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.spec.profile import Profile
from hetserve.spec.workload import Workload

TYPICAL = Workload(1024.0, 256.0)  # what planners balance for when nobody says: lengths of a chat


@dataclass(frozen=True)
class Options:
    """None, 0 or "": the planner chooses."""

    dtype: str = ""  # activations and KV, and weights where nothing else is faster; default: bfloat16, or float32 for a float32 checkpoint
    kv_memory_bytes: int = 0  # of all pools of a device together
    max_model_len: int = 0
    max_seqs: int = 256
    max_step_tokens: int = 1024
    steps_in_flight: int = 2
    max_waiting: int = 4096
    profile: Profile | None = None  # what was measured of the cluster for this model
    delta: float = 0.05  # hetis: what leaving a device's dense speed out may cost, relative (its Delta)
    heads: str = ""  # hetis: the placement policy, one of spec.plan.HEADS; default: exact
    theta: float | None = 0.5  # hetis: drift at which a request is placed anew (its Theta); None: never
