"""How fast the simulator is with the whole controller: the hour of Azure's conversation trace, whole and in parts, on one core."""

from __future__ import annotations

import math
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from hetserve.bench.simulated import Simulation, assemble
from hetserve.catalog import rows
from hetserve.errors import BenchError
from hetserve.planner.options import Options
from hetserve.reproduce.report import Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.sim.executor import Arrival
from hetserve.spec.load import load_cluster
from hetserve.spec.workload import Workload
from hetserve.systems import system
from hetserve.trace import files, tables

TRACE = "azure-conv"
REQUESTS, HOUR_S = 19366, 3600.0
PARTS = (8, 4, 2, 1)  # of the hour's requests: an eighth, ...
WINDOW = 4096  # tokens


@dataclass(frozen=True)
class Case:
    system: str
    model: str
    cluster: str


HEXGEN2 = Case("hexgen2", "Llama-2-70B", "hexgen2-het1")
HETIS = Case("hetis", "Llama-2-13B", "hetis-testbed")


@dataclass(frozen=True)
class Timed:
    """One simulation."""

    requests: int
    tokens: int
    events: int
    simulated_s: float
    cpu_s: float
    peak_bytes: int


def hexgen2(setup: Setup) -> Report:
    return run(HEXGEN2, setup)


def hetis(setup: Setup) -> Report:
    return run(HETIS, setup)


def run(case: Case, setup: Setup, parts: tuple[int, ...] = PARTS) -> Report:
    """Each part in a process of its own, one after the other: memory is the process's, and nothing of ours disturbs the clock."""
    found: list[Timed] = []
    for part in parts:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(time_part, case, setup.data, part).result())
        setup.advance(len(found), len(parts))
    return told(case, found, setup)


def told(case: Case, found: list[Timed], setup: Setup) -> Report:
    """Speed and memory of the whole, and how cost grows with the parts."""
    whole = found[-1]
    power = growth([one.requests for one in found], [one.cpu_s for one in found])
    numbers = {
        f"speed-{case.system}": Found(whole.simulated_s / whole.cpu_s, f"{whole.simulated_s:,.0f} simulated seconds / CPU seconds"),
        f"speed-{case.system}-memory": Found(whole.peak_bytes / 2**30, "of the process, with all its libraries"),
        f"speed-{case.system}-growth": Found(power, f"fitted over {', '.join(f'{one.requests:,}' for one in found)} requests"),
    }
    said = tuple(
        {
            "requests": one.requests,
            "output tokens": one.tokens,
            "events": one.events,
            "simulated s": one.simulated_s,
            "CPU s": one.cpu_s,
            "times real time": one.simulated_s / one.cpu_s,
            "microseconds an event": one.cpu_s / one.events * 1e6,
            "peak MiB": one.peak_bytes / 2**20,
        }
        for one in found
    )
    how = "arrivals as the trace has them" if setup.data is not None else "arrivals evenly at random over the hour, which are ours"
    title = f"{case.system}, {case.model} on {case.cluster}"
    return Report(numbers, (Table(title, "measured: the simulator's own time", said, ({"dataset": TRACE, "arrivals": how},)),))


def growth(requests: list[int], seconds: list[float]) -> float:
    """The power of the number of requests that CPU time grows with: the slope through all points, both axes in logarithms."""
    return float(np.polyfit(np.log(requests), np.log(seconds), 1)[0])


def time_part(case: Case, data: Path | None, part: int) -> Timed:
    """Simulates the first REQUESTS / part of the hour; planning is not counted."""
    done = ready(case, hour(data)[: REQUESTS // part])
    began_s = time.process_time()
    done.run()
    cpu_s = time.process_time() - began_s
    told = [one for choices in done.executor.outcomes for one in choices]
    lost = sum(not one.token_s for one in told)
    if lost:
        raise BenchError(f"{lost} of {len(told)} requests were not served")
    tokens = sum(len(one.token_s) for one in told)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Timed(len(told), tokens, done.executor.events_seen, done.lasted_s, cpu_s, peak_bytes)


def ready(case: Case, arrivals: list[Arrival]) -> Simulation:
    """A plan for their mean lengths, on simulated devices."""
    load = Workload(*(math.fsum(getattr(one, name) for one in arrivals) / len(arrivals) for name in ("prompt_tokens", "output_tokens")))
    options = Options(max_model_len=WINDOW, max_waiting=len(arrivals))
    return assemble(system(case.system).planner(load_cluster(case.cluster), rows.model(case.model), load, options), arrivals)


def hour(data: Path | None) -> list[Arrival]:
    """The requests of the hour; prompts are cut so that they fit the models' window with their answers."""
    path = files.find(data, TRACE) if data is not None else None
    if path is not None:
        raw = files.read_bytes(path)
        lengths, times_s = files.parse(raw, path), files.times(raw, path)
    else:
        rng = np.random.default_rng(0)
        table = files.read_table(Path(str(resources.files("hetserve.workloads") / "lengths" / f"{TRACE}.toml")))
        lengths, times_s = tables.sample(table, REQUESTS, rng), np.sort(rng.random(REQUESTS)) * HOUR_S
    answers = np.clip(lengths[:, 1], 1, WINDOW // 2)
    prompts = np.clip(lengths[:, 0], 1, WINDOW - answers)
    return [Arrival(float(at_s), int(prompt), int(answer)) for at_s, prompt, answer in zip(times_s, prompts, answers, strict=True)]
