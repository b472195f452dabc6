"""What planners know of a load: how long requests are and how many come. Means over many requests; nobody's own length."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.errors import SpecError


@dataclass(frozen=True)
class Workload:
    """Means of a load.

    Raises:
        SpecError: a length, a rate or a concurrency that is not positive.
    """

    input_tokens: float  # of a prompt
    output_tokens: float  # of an answer
    request_rate: float = float("inf")  # requests per second; inf: as many as can be served
    concurrency: float = float("inf")  # requests under way at once, at most; inf: as many as there is room for

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "request_rate", "concurrency"):
            if not getattr(self, name) > 0:
                raise SpecError(f"a workload's {name} must be positive, got {getattr(self, name)}")
