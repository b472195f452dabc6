"""HexGen-2's search: what guiding it by the maximum flow is worth beside changes at random and a genetic search, and how long planning takes."""

from __future__ import annotations

import math
import time
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from hetserve.catalog import rows
from hetserve.catalog.drawn import cluster_toml, draw
from hetserve.planner.case import Case, open_case
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.genetic import evolve
from hetserve.planner.hexgen2.network import Network
from hetserve.planner.hexgen2.plan import plan_hexgen2
from hetserve.planner.hexgen2.search import METHODS, Search, improve
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.options import TYPICAL, Options
from hetserve.reproduce.hetis_case import mean_load
from hetserve.reproduce.hexgen2_case import CLASSES, HETEROGENEOUS, Cell, drawn_for, longest
from hetserve.reproduce.hexgen2_throughput import mean
from hetserve.reproduce.report import Bars, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.spec.cluster import Cluster, parse_cluster
from hetserve.spec.load import load_cluster, this_host

MODEL = "Llama-2-70B"
SETTING = HETEROGENEOUS[0]
SEEDS = 2
WHOLE = 0  # of the effort that the planner has by default
EFFORTS = (300, 1500, WHOLE)
GPUS = ("H100-SXM-80GB", "A100-SXM-80GB", "L40-48GB", "RTX-A6000-48GB")
SIZES = (20, 64, 160, 320)  # the first is setting 1's
PAPER_S = {20: 120.0, 64: 4.03 * 60, 320: 47.77 * 60}


@dataclass(frozen=True)
class Look:
    """One search."""

    only: str
    method: str
    effort: int
    seed: int
    data: Path | None


@dataclass(frozen=True)
class Looked:
    requests_per_s: float
    cpu_s: float


def convergence(setup: Setup) -> Report:
    """Equal effort for each method, two seeds, four classes of requests, setting 1."""
    looks = [Look(only, method, effort, seed, setup.data) for only, effort, method, seed in product(CLASSES, EFFORTS, METHODS, range(SEEDS))]
    return compared(dict(zip(looks, setup.each(look, looks), strict=True)))


def compared(found: dict[Look, Looked]) -> Report:
    """The three methods class by class and effort by effort."""

    def of(only: str, method: str, effort: int) -> list[Looked]:
        return [one for key, one in found.items() if (key.only, key.method, key.effort) == (only, method, effort)]

    def rate(only: str, method: str, effort: int) -> float:
        return median(one.requests_per_s for one in of(only, method, effort))

    classes, efforts = (list(dict.fromkeys(getattr(key, name) for key in found)) for name in ("only", "effort"))
    gains = {
        (method, effort): mean(rate(only, "guided", effort) / rate(only, method, effort) for only in classes)
        for method, effort in product(METHODS[1:], efforts)
    }
    longest_s = max(one.cpu_s for key, one in found.items() if (key.method, key.effort) == ("guided", WHOLE))
    said = [
        {
            "class": only,
            "effort": effort or "default",
            **{f"{method}, requests/s": rate(only, method, effort) for method in METHODS},
            **{f"{method}, CPU s": median(one.cpu_s for one in of(only, method, effort)) for method in METHODS},
        }
        for only, effort in product(classes, efforts)
    ]
    numbers = {
        f"hexgen2-guided-{method}": Found(
            gains[method, WHOLE], f"geometric mean over {len(classes)} classes of medians: guided / {method}, default effort"
        )
        for method in METHODS[1:]
    }
    numbers["hexgen2-converged"] = Found(longest_s, "CPU seconds of the longest guided search, one process")
    notes = tuple(f"guided / {method} at effort {effort or 'by default'}: {gain:.3f}" for (method, effort), gain in gains.items())
    bars = Bars(
        "requests/s, guided / other",
        tuple(str(effort or "default") for effort in efforts),
        {method: [gains[method, effort] for effort in efforts] for method in METHODS[1:]},
        {"both": 1.8},
    )
    return Report(numbers, (Table(f"Expected requests per second, medians, {MODEL} on {SETTING}", "computed", tuple(said)),), bars, notes)


def look(one: Look) -> Looked:
    """One search by itself: no other system's layouts are among its candidates."""
    load = mean_load(drawn_for(Cell("hexgen2", SETTING, MODEL, one.only, one.data)))
    case = open_case(load_cluster(SETTING), rows.model(MODEL), load, Options(max_model_len=longest(MODEL)))
    began_s = time.process_time()
    network = network_of(case)
    search = Search(one.method, one.seed, one.effort)
    outcome, _ = (evolve if one.method == "genetic" else improve)(network, search)
    return Looked(outcome.total if outcome else 0.0, time.process_time() - began_s)


def network_of(case: Case) -> Network:
    site, demand = site_of(case), demand_of(case)
    return Network(site, Strategies(site, costs_of(case), demand, False))


def scheduling(setup: Setup) -> Report:
    """Whole plans for setting 1 and for larger clusters of its kinds of GPUs."""
    return timed(dict(zip(SIZES, setup.each(plan_s, SIZES), strict=True)))


def timed(seconds: dict[int, float]) -> Report:
    found = {f"hexgen2-schedule-{size}": Found(seconds[size], "CPU seconds of one plan, one process") for size in PAPER_S}
    found |= {f"hexgen2-plan-{size}": Found(seconds[size], "CPU seconds of one plan, one process") for size in (20, 320)}
    sizes = sorted(seconds)
    growth = math.log(seconds[sizes[-1]] / seconds[sizes[0]]) / math.log(sizes[-1] / sizes[0])
    said = tuple({"GPUs": size, "CPU s": seconds[size], "paper, s": PAPER_S.get(size)} for size in sizes)
    notes = (f"from {sizes[0]} to {sizes[-1]} GPUs CPU time grows as their number to the power of {growth:.2f}",)
    return Report(found, (Table(f"Planning {MODEL}", "measured: the planner's time", said),), notes=notes)


def plan_s(size: int) -> float:
    cluster, model, options = cluster_of(size), rows.model(MODEL), Options(max_model_len=longest(MODEL))
    began_s = time.process_time()
    plan_hexgen2(cluster, model, TYPICAL, options)
    return time.process_time() - began_s


def cluster_of(size: int) -> Cluster:
    """Setting 1, or machines drawn of its kinds of GPUs."""
    if size == SIZES[0]:
        return load_cluster(SETTING)
    text = cluster_toml(f"drawn-{size}", draw(size, 0, GPUS), "hetserve reproduce hexgen2-scheduling")
    return parse_cluster(tomllib.loads(text), this_host(), f"drawn-{size}")
