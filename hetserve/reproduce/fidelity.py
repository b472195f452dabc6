"""The simulator beside the engine: the same plans, requests and arrivals, the profile fixed before the first run. The runs are declared here, and all
are reported, whatever they say; the worst is judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hetserve.bench.simulated import arrivals_of, assemble, summary
from hetserve.errors import BenchError
from hetserve.planner.options import Options
from hetserve.reproduce.engine_runs import bench, checkpoint, cluster_here, profile_of
from hetserve.reproduce.report import Cell, Found, Report, Table
from hetserve.reproduce.setup import Requests, Setup
from hetserve.spec.fingerprint import fingerprint
from hetserve.spec.load import load_model, load_profile, save_plan
from hetserve.spec.workload import Workload
from hetserve.systems import system

SYSTEM = "hetis"
MOST_TOKENS, WINDOW = 3500, 3584
METRICS = {"output_throughput": "output tokens/s", "mean_tpot_ms": "mean TPOT, ms", "mean_ttft_ms": "mean TTFT, ms"}
CLAIMS = {"fidelity-throughput": "output_throughput", "fidelity-tpot": "mean_tpot_ms", "fidelity-ttft": "mean_ttft_ms"}


@dataclass(frozen=True)
class Declared:
    """One run."""

    cluster: str
    only: str  # class of azure-conv; empty: the whole mix
    rate_per_s: float
    count: int

    @property
    def name(self) -> str:
        rate = "all at once" if math.isinf(self.rate_per_s) else f"{self.rate_per_s:g}/s"
        return f"{self.only or 'azure-conv'}, {self.count} requests, {rate}, {self.cluster}"


DECLARED = (
    Declared("cpu-hetero", "", 0.1, 12),
    Declared("cpu-hetero", "", 0.2, 12),
    Declared("cpu-hetero", "", math.inf, 12),
    Declared("cpu-hetero-wide", "HPHD", 0.1, 10),
    Declared("cpu-hetero-wide", "HPHD", math.inf, 16),
)


def run(setup: Setup) -> Report:
    """Every declared run on the engine and in the simulator."""
    rows: list[Mapping[str, Cell]] = []
    inputs: list[Mapping[str, Any]] = []
    off: dict[str, list[float]] = {metric: [] for metric in METRICS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = checkpoint(folder)
        profiles = {one: profile_of(setup, cluster_here(one), model, folder) for one in dict.fromkeys(run.cluster for run in DECLARED)}
        for number, one in enumerate(DECLARED):
            measured, simulated, said = beside(one, model, profiles[one.cluster], setup.data, folder)
            inputs.append(said)
            for metric, title in METRICS.items():
                engine, simulator = measured[metric], simulated[metric]
                off[metric].append(abs(simulator / engine - 1))
                numbers = {"measured": engine, "simulated": simulator, "off by": f"{simulator / engine - 1:+.1%}"}
                rows.append({"run": one.name, "metric": title, **numbers})
            setup.advance(number + 1, len(DECLARED))
        told = [f"profile of {cluster}: {fingerprint(load_profile(path))}" for cluster, path in profiles.items()]
    found = {claim: Found(max(off[metric]), f"the worst of {len(DECLARED)} runs, {METRICS[metric]}") for claim, metric in CLAIMS.items()}
    return Report(found, (Table("Every declared run", "measured, and simulated beside it", tuple(rows), tuple(inputs)),), notes=tuple(told))


def beside(one: Declared, model: Path, profile: Path, data: Path | None, folder: Path) -> tuple[dict[str, Any], dict[str, Any], Mapping[str, Any]]:
    """What the engine did with a run and what the simulator says of it, under bench's keys, and which requests it was."""
    workload = Requests("azure-conv", one.count, MOST_TOKENS, data, one.only).arriving(one.rate_per_s)
    lengths = workload.lengths
    means = Workload(sum(lengths.input_tokens) / one.count, sum(lengths.output_tokens) / one.count, one.rate_per_s, one.count)
    options = Options(max_model_len=WINDOW, profile=load_profile(profile))
    plan = system(SYSTEM).planner(cluster_here(one.cluster), load_model(model), means, options)
    save_plan(plan, folder / "plan.json")
    flags = ["--plan", folder / "plan.json", "--model", model, "--dataset-name", "azure-conv", "--max-request-len", MOST_TOKENS]
    flags += ["--num-prompts", one.count, "--seed", 0, "--request-rate", one.rate_per_s, "--pairs", 1, "--check", 1]
    flags += ["--class", one.only] if one.only else []
    flags += ["--data-dir", data] if data is not None else []
    (measured,) = bench([str(flag) for flag in flags], folder)["systems"].values()
    done = assemble(plan, arrivals_of(workload))
    done.run()
    simulated = summary(done, one.rate_per_s)
    for key in ("completed", "total_input_tokens", "total_output_tokens"):
        if measured[key] != simulated[key]:
            both = f"the engine's {key} is {measured[key]:g}, the simulator's {simulated[key]:g}"
            raise BenchError(f"{one.name}: {both}: these are not the same requests")
    return measured, simulated, lengths.inputs
