"""What a user may fix about a plan; everything left open is resolved by the planner before the plan is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """None or 0: the planner chooses."""

    dtype: str = ""  # weights and KV; default: bfloat16, or float32 for a float32 checkpoint
    kv_memory_bytes: int = 0  # of all pools of a device together
    max_model_len: int = 0
    max_seqs: int = 256
    max_step_tokens: int = 1024
    steps_in_flight: int = 2
    max_waiting: int = 4096
