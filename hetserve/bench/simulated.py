"""A plan run by the real controller on simulated devices, and its result in the shape and under the names of `hetserve bench --json`.

The same plan, arrivals and faults always give the same result: nothing here reads a clock, a file or a random number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hetserve import metrics
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
from hetserve.spec.plan import Plan, page_bytes
from hetserve.systems import policies_for
from hetserve.trace.datasets import Workload


@dataclass(frozen=True)
class Simulation:
    """A plan ready to be run once, or that has been."""

    plan: Plan
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

    def busy_s(self) -> dict[str, float]:
        """By device: seconds in which a stage whose primary it is worked on a step."""
        found: dict[str, float] = {}
        for group in self.executor.groups:
            for stage, busy_s in zip(group.stages, group.busy_s, strict=True):
                for device in stage.primaries:
                    found[device] = found.get(device, 0.0) + busy_s
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

    executor = SimExecutor(arrivals, groups, config.kv_heads, carry, bytes_per_s, config.max_seqs, config.max_model_len, costs.excess(), faults)
    return Simulation(plan, config, Controller(config, policies_for(plan.system, plan.online)), executor)


def summary(
    done: Simulation,
    rate_per_s: float = math.inf,
    burstiness: float = 1.0,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A finished run under vLLM's keys, labelled as simulated, and beside them the plan's hash and how busy the devices were.

    Args:
        rate_per_s, burstiness: how its requests came, to be said beside the numbers.
        percentiles, goodput_ms: as `metrics.summarise` takes them.
    """
    records, counts, busy_s = done.records(), done.controller.counts(), done.busy_s()
    return {
        "kind": "simulated",
        "model_id": done.plan.model.shape.name,
        "system": done.plan.system,
        "cluster": done.plan.cluster.name,
        "plan": done.plan.hash,
        "num_prompts": len(records),
        "request_rate": rate_per_s if math.isfinite(rate_per_s) else "inf",
        "burstiness": burstiness,
        **metrics.summarise(records, done.lasted_s, percentiles, goodput_ms),
        "preemptions": counts["preemptions_total"],
        "moves": counts["moves_total"],
        "busy_s": busy_s,
        "utilisation": {device: seconds / done.lasted_s for device, seconds in busy_s.items()},
    }


def _record(outcome: Outcome) -> RequestRecord:
    times = tuple(at_s - outcome.at_s for at_s in outcome.token_s)
    ok = outcome.reason in ("stop", "length")
    return RequestRecord(ok, outcome.prompt_tokens, len(times), outcome.at_s, 0.0, times, (1,) * len(times), error=outcome.why)
