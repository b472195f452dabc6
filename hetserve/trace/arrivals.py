"""When requests arrive: all at once, or gamma-distributed gaps at a rate (burstiness 1 is Poisson), or a rate that ramps up.

Open loop: arrivals do not wait for answers. The definitions are those of `vllm bench serve`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetserve.errors import UsageError


@dataclass(frozen=True)
class Arrivals:
    """How requests arrive.

    Attributes:
        rate_per_s: mean arrivals per second; infinite means all at second 0.
        burstiness: shape of the gamma distribution of gaps: 1 Poisson, below 1 burstier, above 1 more even, infinite regular.
        ramp: "linear" or "exponential" from ramp_start_per_s to ramp_end_per_s over the requests; empty for a constant rate.
    """

    rate_per_s: float = math.inf
    burstiness: float = 1.0
    ramp: str = ""
    ramp_start_per_s: float = 0.0
    ramp_end_per_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate_per_s > 0:
            raise UsageError(f"--request-rate must be positive (or inf), not {self.rate_per_s:g}.")
        if not self.burstiness > 0:
            raise UsageError(f"--burstiness must be positive, not {self.burstiness:g}.")
        if not self.ramp:
            return
        if math.isfinite(self.rate_per_s):
            raise UsageError("--request-rate and --ramp-up-strategy exclude each other.", hint="leave --request-rate out: the ramp sets the rate")
        if not 0 <= self.ramp_start_per_s < self.ramp_end_per_s or (self.ramp == "exponential" and self.ramp_start_per_s == 0):
            raise UsageError(
                f"A ramp goes from a lower to a higher rate, not from {self.ramp_start_per_s:g} to {self.ramp_end_per_s:g}.",
                hint="give --ramp-up-start-rps and --ramp-up-end-rps; an exponential ramp starts above 0",
            )


def arrival_times(arrivals: Arrivals, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[count] seconds after the start, ascending. At a constant finite rate they are rescaled so that the last is at count / rate."""
    rates = _rates(arrivals, count)
    if math.isinf(arrivals.burstiness) or np.isinf(rates).all():
        gaps = 1.0 / rates
    else:
        gaps = rng.gamma(arrivals.burstiness, 1.0 / (rates * arrivals.burstiness))
    times = np.cumsum(gaps)
    if not arrivals.ramp and math.isfinite(arrivals.rate_per_s):
        times *= count / arrivals.rate_per_s / times[-1]
    return times


def followed_times(arrivals: Arrivals, times_s: Sequence[float], slowdown: float = 1.0) -> NDArray[np.float64]:
    """[count] seconds after the first request: a trace's own times, `slowdown` times as long; at a finite rate, stretched as `arrival_times` are.

    Raises:
        UsageError: a ramp or a burstiness, which a trace has of its own; or requests that all came at once and cannot be stretched.
    """
    if arrivals.ramp or arrivals.burstiness != 1.0:
        raise UsageError("A trace's own times take neither a ramp nor --burstiness.", hint="--request-rate stretches them to a rate")
    times = np.asarray(times_s) - times_s[0]
    if math.isinf(arrivals.rate_per_s):
        return times * slowdown
    if not times[-1] > 0:
        raise UsageError("These requests of the trace came all at once: there is no time between them to be stretched.")
    return np.asarray(times * (len(times) / arrivals.rate_per_s / times[-1]))


def _rates(arrivals: Arrivals, count: int) -> NDArray[np.float64]:
    if not arrivals.ramp:
        return np.full(count, arrivals.rate_per_s)
    done = np.arange(count) / max(count - 1, 1)
    start, end = arrivals.ramp_start_per_s, arrivals.ramp_end_per_s
    if arrivals.ramp == "exponential":
        return np.asarray(start * (end / start) ** done)
    return np.maximum(start + (end - start) * done, end / count)  # a ramp from 0 would wait forever for its first request
