"""A plan run by the real controller on simulated devices, and its result in the shape and under the names of `hetserve bench --json`.

The same plan, arrivals and faults always give the same result: nothing here reads a clock, a file or a random number.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hetserve import metrics
from hetserve.bench.runner import fell_behind
from hetserve.control.config import ControllerConfig, config_from_plan
from hetserve.control.controller import Controller
from hetserve.control.messages import MoveKv
from hetserve.cost.costs import Costs
from hetserve.drive import Observer, drive
from hetserve.metrics import RequestRecord
from hetserve.sim.device import SimStage
from hetserve.sim.executor import Arrival, Outcome, SimExecutor
from hetserve.sim.faults import Fault
from hetserve.sim.links import Way
from hetserve.spec.model import DTYPE_BYTES
from hetserve.spec.plan import Plan, page_bytes
from hetserve.systems import policies_for
from hetserve.trace.datasets import Workload

ANSWERED = ("stop", "length")  # how a request ends that was answered whole


@dataclass(frozen=True)
class Simulation:
    """A plan ready to be run once, or that has been."""

    plan: Plan
    arrivals: tuple[Arrival, ...]
    config: ControllerConfig
    controller: Controller
    executor: SimExecutor

    def run(self, observe: Observer | None = None) -> None:
        """Until every request is over and nothing is left to happen; `observe` as in `drive` (a journal is one)."""
        drive(self.controller, self.executor, observe)

    @property
    def lasted_s(self) -> float:
        """Simulated seconds until the last thing happened; never 0, as rates are divided by it."""
        return max(self.executor.now_s, 1e-9)

    def records(self) -> list[RequestRecord]:
        """What became of each choice of each request, in their order; tokens come in chunks of one."""
        return [_record(outcome) for choices in self.executor.outcomes for outcome in choices]

    @property
    def open_loop(self) -> bool:
        """Whether requests come one after the other, so that it can be said whether answers keep up with them."""
        return max((one.at_s for one in self.arrivals), default=0.0) > 0

    def output_share(self) -> float | None:
        """Tokens told by the time the last request arrives, over those due by then had every request gone on as it did, but without waiting first.

        1 where answers keep up with arrivals; where requests pile up, the share of them that was worked off. None where all come at once.
        """
        last_s = max((one.at_s for one in self.arrivals), default=0.0)
        if not self.open_loop:
            return None
        told = due = 0
        for arrival, choices in zip(self.arrivals, self.executor.outcomes, strict=True):
            for one in choices if arrival.at_s < last_s else ():
                told += bisect_right(one.token_s, last_s)
                whole = one.reason in ANSWERED and bool(one.token_s)
                due += bisect_right(one.token_s, last_s + one.token_s[0] - one.at_s) if whole else arrival.output_tokens
        return told / due

    def busy_s(self) -> dict[str, float]:
        """By device, over all stages it serves: seconds in which a stage of its own weights worked on a step, each rank's alike and waiting for
        attention workers included, and seconds of decode attention for stages of others."""
        found: dict[str, float] = {}
        for group in self.executor.groups:
            attended_s = iter(group.attended_s)
            for stage, busy_s in zip(group.stages, group.busy_s, strict=True):
                for device in stage.devices:
                    own_s = next(attended_s)
                    found[device] = found.get(device, 0.0) + (busy_s if device in stage.primaries else own_s)
        return found


def arrivals_of(workload: Workload) -> list[Arrival]:
    """The requests of a workload, as the simulator takes them: their lengths and when they come."""
    lengths = workload.lengths
    return [Arrival(*one) for one in zip(workload.arrivals_s, lengths.input_tokens, lengths.output_tokens, strict=True)]


def assemble(plan: Plan, arrivals: Sequence[Arrival], faults: Sequence[Fault] = ()) -> Simulation:
    """A plan on simulated devices: what they and the links between them take is what the cost model says.

    Raises:
        UnsupportedError: the control plane does not run such a plan.
    """
    config = config_from_plan(plan)
    groups = [
        [SimStage(one.cost, tuple(pool.heads for pool in one.pools), tuple(pool.device for pool in one.pools), one.ranks) for one in group.stages]
        for group in config.groups
    ]
    costs = Costs(plan.model.shape, plan.model.dtype, plan.cluster, plan.profile)
    devices = [[pool.device for pool in group.pools] for group in config.groups]
    bytes_per_s: dict[str, float] = {}  # of a link, from when something first goes over it

    @cache
    def way(source: str, target: str) -> Way:
        if source == target:
            return Way(0.0, ())
        cost = costs.link_cost(source, target)
        rates = {f"{source} to {target}": cost.bytes_per_s, **plan.cluster.shared(source, target)}
        bytes_per_s.update(rates)
        return Way(cost.beta_s, tuple(rates))

    def carry(move: MoveKv) -> tuple[Way, int]:
        size_bytes = move.pages_from.size * page_bytes(plan.model.shape, move.layers, plan.model.dtype)
        return way(devices[move.source.group][move.source.pool], devices[move.target.group][move.target.pool]), size_bytes

    def hop(source: str, target: str, rows: int) -> tuple[Way, int]:
        return way(source, target), rows * plan.model.shape.hidden * DTYPE_BYTES[plan.model.dtype]

    limits = config.max_seqs, config.max_model_len
    executor = SimExecutor(arrivals, groups, config.kv_heads, carry, bytes_per_s, *limits, costs.excess(), faults, hop)
    return Simulation(plan, tuple(arrivals), config, Controller(config, policies_for(plan.system, plan.online)), executor)


def summary(
    done: Simulation,
    rate_per_s: float = math.inf,
    burstiness: float = 1.0,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A finished run under vLLM's keys, labelled as simulated, and beside them its plan, whether it kept up, and how busy the devices were.

    `slo_attainment` is the share of all requests that are within goodput_ms; a refused one is not. Of devices that the plan leaves out, `utilisation`
    is 0.

    Args:
        rate_per_s, burstiness: how its requests came, to be said beside the numbers.
        percentiles, goodput_ms: as `metrics.summarise` takes them.
    """
    records, counts, busy_s = done.records(), done.controller.counts(), done.busy_s()
    measured = metrics.summarise(records, done.lasted_s, percentiles, goodput_ms)
    good_per_s = measured["request_goodput"]
    waits = [(one.start_s, one.ttft_s) for one in records if one.ok]
    return {
        "kind": "simulated",
        "model_id": done.plan.model.shape.name,
        "system": done.plan.system,
        "cluster": done.plan.cluster.name,
        "plan": done.plan.hash,
        "num_prompts": len(records),
        "request_rate": rate_per_s if math.isfinite(rate_per_s) else "inf",
        "burstiness": burstiness,
        **measured,
        "slo_attainment": None if good_per_s is None else good_per_s * done.lasted_s / len(records),
        "saturated": fell_behind(waits) if done.open_loop else None,
        "output_share": done.output_share() if done.open_loop else None,
        "preemptions": counts["preemptions_total"],
        "moves": counts["moves_total"],
        "busy_s": busy_s,
        "utilisation": {device.name: busy_s.get(device.name, 0.0) / done.lasted_s for device in done.plan.cluster.devices},
    }


def _record(outcome: Outcome) -> RequestRecord:
    times = tuple(at_s - outcome.at_s for at_s in outcome.token_s)
    ok = outcome.reason in ANSWERED
    return RequestRecord(ok, outcome.prompt_tokens, len(times), outcome.at_s, 0.0, times, (1,) * len(times), error=outcome.why)
