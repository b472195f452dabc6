"""How good HexGen-2's planner is and how long it takes, on made-up costs. Not a test: `python tests/planner/measure_hexgen2.py quality|speed [-o
FILE]`.

quality: random clusters of up to six devices against every layout there is (all partitions of all subsets, roles, ranks, orders and cuts of layers),
with the same costs; without any baseline's plan among the candidates, and with those of all. ablations: the three searches with equal effort, on the
catalog's costs.
speed: one core, wall clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from datetime import date
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
from hexgen2_cases import DEMAND, Sheets, best_of_all, het1, large_site, random_case, random_site

from hetserve.catalog import rows
from hetserve.machine import describe
from hetserve.planner.case import open_case
from hetserve.planner.helix import Placement
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.genetic import evolve
from hetserve.planner.hexgen2.limit import upper_bound
from hetserve.planner.hexgen2.network import Mixed, Network
from hetserve.planner.hexgen2.others import others
from hetserve.planner.hexgen2.search import METHODS, Search, improve
from hetserve.planner.hexgen2.site import MIXED, Demand, Site, StageCosts
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.options import Options
from hetserve.spec.cluster import Host
from hetserve.spec.load import load_cluster
from hetserve.spec.workload import Workload

EFFORTS = (300, 1500, 15_000)  # the last is the default of 20 devices
SIZES = {
    "20": het1,
    "64": lambda: large_site(64),
    "320": lambda: large_site(320),
    "1024": lambda: large_site(1024),
    "20 irregular": lambda: random_site(0, 20),
    "64 irregular": lambda: random_site(0, 64),
    "320 irregular": lambda: random_site(0, 320),
}


def run(over: Site, costs: StageCosts, demand: Demand, search: Search) -> dict[str, Any]:
    """One search, from nothing."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    network = Network(over, Strategies(over, costs, demand, search.fastest_prefill))
    outcome, progress = (evolve if search.method == "genetic" else improve)(network, search)
    taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    found = {
        "requests_per_s": outcome.total if outcome else 0.0,
        "groups": len(outcome.layout.groups) if outcome else 0,
        "taken_s": taken_s,
        "cpu_s": cpu_s,
    }
    return {**found, "first": progress.first, "tried": progress.tried, "strategies": network.strategies.searched, "flows": network.solved}


def baselines(over: Site, costs: Sheets, demand: Demand) -> dict[str, float]:
    """Requests per second of what other systems would plan; of systems whose groups do both kinds of work, too."""
    apart, mixed = Network(over, Strategies(over, costs, demand)), Mixed(over, Strategies(over, costs, demand))
    layouts = [(network, name, layout) for network in (apart, mixed) for name, layout in others(network).items()]
    found = {name: network.total(layout, network.rates(layout)) for network, name, layout in layouts}
    by_search, _ = improve(mixed, Search())
    found["hexgen"] = by_search.total if by_search else 0.0
    placed = [Placement(mixed, ranks).best().groups for ranks in (1, 2, 4)]
    found["helix"] = max(sum(mixed.strategies.rate(group, MIXED) for group in groups) for groups in placed)
    return found


def quality(clusters: int, devices: int) -> dict[str, Any]:
    """Ratios to the best layout, by rule for prefill strategies and by layouts looked at; on so many clusters that hold two groups."""
    kinds = {"default": Search(), "an eighth of the effort": Search(effort=500), "fastest prefill": Search(fastest_prefill=True)}
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    against, gaps, empty = [], [], 0
    apart, all_of_them = "with splitwise's and distserve's plans", "with all baselines' plans"  # the rest have groups for both kinds of work
    won = {apart: Counter[str](), all_of_them: Counter[str]()}
    ratios.update({name: [] for name in won})
    for seed in count():
        if len(gaps) == clusters:
            break
        case = random_case(seed, devices - seed % 3)
        best, freest = best_of_all(*case), best_of_all(*case, fastest_prefill=True)
        ours = 0.0
        for name, search in kinds.items():
            found = run(*case, search)["requests_per_s"]
            ours = found if name == "default" else ours
            wanted = freest if search.fastest_prefill else best
            if wanted:
                ratios[name].append(found / wanted)
            elif name == "default":
                empty += 1
                assert not found
        if best:
            against.append(best / freest)
            gaps.append(1 - best / upper_bound(*case))
            every = baselines(*case)
            for name, counted in won.items():
                known = every if name == all_of_them else {one: every[one] for one in ("splitwise", "distserve") if one in every}
                first = max(known, key=lambda one: known[one], default="")
                winner = first if known and known[first] > ours * (1 + 1e-6) else "hexgen2"
                ratios[name].append(max(ours, known.get(winner, 0.0)) / best)
                counted[winner] += 1
        print(f"{len(gaps)} of {clusters}", end="\r", flush=True)
    told = {
        name: {**spread(of), "below_0.99": len([one for one in of if one < 0.99]), "below_0.95": len([one for one in of if one < 0.95])}
        for name, of in ratios.items()
    }
    extra = {
        "least_latency_against_fastest_prefill": spread(against),
        "gap_of_the_best_to_the_bound": spread(gaps),
        "nothing_fits": empty,
        "whose_plan_won": {name: dict(counted) for name, counted in won.items()},
    }
    return {"clusters": clusters, "devices": f"{devices - 2} to {devices}", "ratio_to_the_best_layout": told, **extra}


def spread(values: list[float]) -> dict[str, float]:
    """Of ratios: the worst is the smallest."""
    return {
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "least": float(min(values)),
        "most": float(max(values)),
        "count": len(values),
    }


def ablations(seeds: int) -> dict[str, Any]:
    """On the paper's setting 1 with the catalog's costs, each search several times, with as much effort as the others."""
    load = Workload(1155.0, 211.0)  # azure-conv's means
    case = open_case(load_cluster("hexgen2-het1", Host((0, 1), 2**33, "avx2")), rows.model("Llama-2-70B"), load, Options())
    over, costs, demand = site_of(case), costs_of(case), demand_of(case)
    found: dict[str, Any] = {}
    for effort, method in product(EFFORTS, METHODS):
        runs = [run(over, costs, demand, Search(method, seed=seed, effort=effort)) for seed in range(seeds)]
        told = {what: spread([one[what] for one in runs]) for what in ("requests_per_s", "first", "tried", "strategies", "cpu_s")}
        found.setdefault(str(effort), {})[method] = told
        print(effort, method, {what: round(each["median"], 3) for what, each in told.items()}, flush=True)
    return {"cluster": "hexgen2-het1", "costs": "catalog", "seeds": seeds, "bound": upper_bound(over, costs, demand), "by_effort": found}


def speed(sizes: list[str]) -> dict[str, Any]:
    """One search at each size."""
    found = {}
    for size in sizes:
        over = SIZES[size]()
        found[size] = {**run(over, Sheets(), DEMAND, Search()), "bound": upper_bound(over, Sheets(), DEMAND)}
        print(size, found[size])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["quality", "ablations", "speed"])
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    made = {
        "quality": lambda: quality(given.clusters, given.devices),
        "ablations": lambda: ablations(given.seeds),
        "speed": lambda: speed(given.sizes),
    }
    result = {
        "label": "computed",
        "what": given.what,
        "costs": "made up: tests/planner/hexgen2_cases.py",
        "date": date.today().isoformat(),
        **made[given.what](),
        "machine": describe(),
    }
    text = json.dumps(result, indent=2) + "\n"
    if given.output:
        given.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
