"""What is asked of a system: how many requests, how fast, how long. What planners and the simulator know of a load; no request list."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.errors import SpecError


@dataclass(frozen=True)
class Workload:
    """Random token lengths and arrivals, as `vllm bench serve --dataset-name random` has them.

    Lengths are uniform in [length * (1 - range_ratio), length * (1 + range_ratio)]; gaps between arrivals are gamma distributed.
    """

    num_prompts: int
    input_len: int  # tokens
    output_len: int  # tokens
    range_ratio: float = 0.0
    request_rate: float = float("inf")  # requests per second; inf: all at once
    burstiness: float = 1.0  # shape of the gamma distribution; 1: Poisson arrivals
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_prompts", 1), ("input_len", 1), ("output_len", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"a workload's {name} must be at least {least}, got {getattr(self, name)}")
        if not (0 <= self.range_ratio < 1 and self.request_rate > 0 and self.burstiness > 0):
            raise SpecError("a workload needs 0 <= range_ratio < 1, request_rate > 0 and burstiness > 0")
