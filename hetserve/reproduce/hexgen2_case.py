"""What HexGen-2's experiments share: its clusters, models and classes of requests; a plan, and what it serves when it is full or at a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetserve.bench.simulated import Simulation, arrivals_of, assemble, summary
from hetserve.catalog import rows
from hetserve.errors import BenchError
from hetserve.planner.options import Options
from hetserve.reproduce.hetis_case import mean_load
from hetserve.reproduce.setup import Requests
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan
from hetserve.systems import system
from hetserve.trace.datasets import Workload

HETEROGENEOUS = ("hexgen2-het1", "hexgen2-het2", "hexgen2-het3", "hexgen2-het4")  # at the price of HOMOGENEOUS, or a little less
CHEAPER = "hexgen2-het5"  # at 70 % of it
HOMOGENEOUS = "h100x8"
MODELS = ("OPT-30B", "Llama-2-70B")
CLASSES = ("HPLD", "HPHD", "LPHD", "LPLD")
MIX = ""  # requests of all classes: the paper's online workload
LONGEST = 4096  # tokens of a request, or what the model takes
COUNTS = {"HPLD": 500, "HPHD": 1200, "LPHD": 2000, "LPLD": 2000, MIX: 1500}  # enough to fill every plan, and to keep it full for a while
FROM, TO = 0.2, 0.6  # shares of requests that are over: between them a plan is full, as later nothing waits any more


@dataclass(frozen=True)
class Cell:
    """One system on one cluster.

    Attributes:
        only: one of CLASSES, or MIX.
        rate_per_s: of arrivals; infinite: all at once.
    """

    system: str
    cluster: str
    model: str
    only: str
    data: Path | None = None
    rate_per_s: float = math.inf
    fewer: int = 1  # so many times fewer requests

    @property
    def count(self) -> int:
        return COUNTS[self.only] // self.fewer


@dataclass(frozen=True)
class Served:
    """What became of a cell.

    Attributes:
        tokens_per_s: output tokens, while the plan is full or of the whole run at a rate.
        requests_per_s: the same over a request's mean answer.
        predicted: requests per second that the planner expects.
        latency_s: mean over requests, from arrival to the last token.
    """

    tokens_per_s: float
    requests_per_s: float
    predicted: float
    latency_s: float
    first_token_s: float
    dollars_per_hour: float
    groups: str
    inputs: dict[str, Any]


def serve(cell: Cell, plan: Plan | None = None) -> Served:
    """Simulates the cell's requests; without a plan, one for their mean lengths.

    Raises:
        HetserveError: there is no plan. BenchError: some requests were not served.
    """
    drawn = drawn_for(cell)
    plan = plan or plan_for(cell, drawn)
    done = assemble(plan, arrivals_of(drawn))
    done.run()
    result = summary(done)
    if result["failed"]:
        raise BenchError(f"{cell.system} on {cell.cluster} served all but {result['failed']} of {cell.count} {cell.only} requests of {cell.model}")
    full = math.isinf(cell.rate_per_s)
    tokens_per_s = full_tokens_per_s(done) if full else result["output_throughput"]
    predicted = sum(group.requests_per_s for group in plan.groups if group.role != "prefill")
    price = sum(device.price_per_hour or math.nan for device in plan.cluster.devices)
    latency_s, first_s = result["mean_e2el_ms"] / 1e3, result["mean_ttft_ms"] / 1e3
    answer = mean_load(drawn).output_tokens
    return Served(tokens_per_s, tokens_per_s / answer, predicted, latency_s, first_s, price, layout(plan), dict(drawn.lengths.inputs))


def drawn_for(cell: Cell) -> Workload:
    """The cell's requests: the same for every system and cluster."""
    asked = Requests("azure-conv", cell.count, longest(cell.model), cell.data, cell.only)
    return asked.drawn() if math.isinf(cell.rate_per_s) else asked.arriving(cell.rate_per_s)


def plan_for(cell: Cell, drawn: Workload) -> Plan:
    options = Options(max_model_len=longest(cell.model), max_waiting=max(cell.count, Options.max_waiting))
    return system(cell.system).planner(load_cluster(cell.cluster), rows.model(cell.model), mean_load(drawn), options)


def longest(model: str) -> int:
    return min(LONGEST, rows.model(model).max_positions)


def full_tokens_per_s(done: Simulation) -> float:
    """Output tokens per second from when FROM of all requests are over until TO are: neither filling up nor running empty is counted."""
    outcomes = [one for choices in done.executor.outcomes for one in choices]
    ends = np.sort([one.token_s[-1] for one in outcomes if one.token_s])
    since, until = (ends[int(share * (len(ends) - 1))] for share in (FROM, TO))
    times = np.concatenate([one.token_s for one in outcomes])
    if not until > since:
        raise BenchError(f"{len(ends)} requests all end at once: there is no time in which the plan is full", "more requests")
    return float(((times > since) & (times <= until)).sum() / (until - since))


def layout(plan: Plan) -> str:
    """Groups, short: role, then ranks of each stage."""
    told = [f"{group.role} {'+'.join(str(len(stage.primary)) for stage in group.stages)}" for group in plan.groups]
    return ", ".join(f"{told.count(one)} x {one}" if told.count(one) > 1 else one for one in dict.fromkeys(told))
