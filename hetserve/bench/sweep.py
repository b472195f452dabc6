"""A simulated system at several rates, and its saturation knee: the highest rate at which output keeps up with input.

A run keeps up when, by the time its last request arrived, at least KEEPS_UP of the tokens due by then had been told (`output_share`), later requests
did not wait ever longer for their first token (`saturated`), and the run was long enough to see that. Rates above one that does not keep up are taken
not to keep up either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hetserve.errors import BenchError

KEEPS_UP = 0.95
LONG = 4.0  # requests arrive for this many times as long as one of them takes after its first token, or there is no telling what piles up
DEFINITION = f"the highest rate at which {KEEPS_UP:.0%} of the output due was there when the last request arrived, and waits did not grow"
WITHIN = 0.05  # a knee that is looked for lies between two rates no further apart than this, relative
STEP = 1.5  # by which rates are raised or lowered until one keeps up and one does not
MOST_STEPS = 20

At = Callable[[float], dict[str, Any]]  # requests per second -> that run's summary (`simulated.summary`)


def rate_of(run: dict[str, Any]) -> float:
    """A run's rate, requests per second."""
    return float(run["request_rate"])


def keeps_up(run: dict[str, Any]) -> bool | None:
    """Whether a run keeps up; None where it cannot be told: requests came all at once, or are too few."""
    if run["output_share"] is None or run["saturated"] is None:
        return False if run["completed"] == 0 else None
    return bool(run["output_share"] >= KEEPS_UP and not run["saturated"] and not too_short(run))


def too_short(run: dict[str, Any]) -> bool:
    """Whether a run at a finite rate is over before what piles up can show."""
    return bool((run["median_e2el_ms"] - run["median_ttft_ms"]) / 1e3 * LONG > run["num_prompts"] / rate_of(run))


def knee(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The knee that runs at several rates show: the highest rate below all that do not keep up, and the lowest that does not.

    `request_rate` is None where not even the lowest rate keeps up, `above` where all do; `too_short`: longer runs might keep up at `above`. None
    where fewer than two runs can be told.
    """
    told = sorted((one for one in runs if keeps_up(one) is not None), key=rate_of)
    if len(told) < 2:
        return None
    behind = next((number for number, one in enumerate(told) if not keeps_up(one)), len(told))
    best = told[behind - 1] if behind else None
    return {
        "request_rate": rate_of(best) if best else None,
        "above": rate_of(told[behind]) if behind < len(told) else None,
        "too_short": behind < len(told) and too_short(told[behind]),
        "output_throughput": best["output_throughput"] if best else None,
        "definition": DEFINITION,
    }


def find_knee(at: At, runs: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Runs at further rates, until the knee is known to within WITHIN; with those there are already, by rate.

    The first rate is what the system completes per second when all requests come at once; halving is geometric.

    Raises:
        BenchError: too few requests to tell, or no rate that keeps up, or none that does not.
    """
    found = list(runs)
    low = max((rate_of(one) for one in found if keeps_up(one)), default=0.0)
    high = min((rate_of(one) for one in found if keeps_up(one) is False), default=math.inf)
    low = low if low < high else 0.0
    rate = math.sqrt(low * high) if low > 0 and high < math.inf else low * STEP or high / STEP
    if math.isinf(rate):
        rate = at(math.inf)["request_throughput"]
    for _ in range(MOST_STEPS):
        if high <= low * (1 + WITHIN):
            return sorted(found, key=rate_of)
        if not rate > 0:
            break
        run = at(rate)
        found.append(run)
        up = keeps_up(run)
        if up is None:
            raise BenchError(f"{run['num_prompts']} requests are too few to tell whether answers keep up with them.", hint="more --num-prompts")
        low, high = (rate, high) if up else (low, rate)
        rate = math.sqrt(low * high) if low > 0 and high < math.inf else low * STEP or high / STEP
    raise BenchError(
        f"No knee was found: {'no rate keeps up' if low == 0 else 'every rate keeps up'}, down to or up to {rate:.3g} requests per second.",
        hint="a longer run, by more --num-prompts, tells them apart",
    )
