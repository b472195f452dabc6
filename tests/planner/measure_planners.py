"""How long every system's planner takes, and what it predicts, by the number of GPUs. Not a test: `python
tests/planner/measure_planners.py [-o FILE]`.

Clusters as `hetserve cluster make --devices N` draws them (seed 0, all kinds of the catalog), the clusters of workloads/clusters by name, and 5 types
of 32 GPUs ("hetis"). Costs of the catalog. Each plan is made in a process of its own; CPU seconds of that process, imports not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

from large_cases import large

from hetserve.catalog import rows
from hetserve.catalog.drawn import cluster_toml, draw
from hetserve.errors import HetserveError
from hetserve.machine import describe
from hetserve.planner.options import Options
from hetserve.planner.price import bill
from hetserve.spec.cluster import Cluster, Host
from hetserve.spec.load import load_cluster, parse_cluster
from hetserve.spec.workload import Workload
from hetserve.systems import system

SYSTEMS = ("hexgen2", "hexgen", "helix", "hexgen2+hetis", "hetis", "distserve", "splitwise", "uniform")
HOST = Host((0, 1), 2**33, "avx2")  # not this machine: the devices are on other nodes anyway
ONE_CORE = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
LIMIT_S = 300  # CPU seconds after which a planner is stopped


def cluster_named(name: str) -> Cluster:
    """A number: so many GPUs drawn; "5x32": Hetis' large one; else a file of workloads/clusters."""
    if name == "5x32":
        return large()
    if not name.isdecimal():
        return load_cluster(name, HOST)
    return parse_cluster(tomllib.loads(cluster_toml(f"drawn-{name}-0", draw(int(name), 0), "measure_planners.py")), HOST, name)


def plan_one(name: str, cluster: str, model: str, load: Workload) -> dict[str, Any]:
    """One plan: what it took and what it says of itself."""
    over, spec, planner = cluster_named(cluster), rows.model(model), system(name).planner
    began_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        made = planner(over, spec, load, Options())
    except HetserveError as error:
        return {"error": str(error), "cpu_s": time.process_time() - cpu_s}
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began_s
    told = next((float(found[1]) for note in made.notes if (found := re.search(r"upper bound: ([\d.e+-]+)", note))), None)
    used = {pool.device for group in made.groups for stage in group.stages for pool in stage.pools}
    came_from = next((note for note in made.notes if note.startswith("candidate")), None)
    served = {"requests_per_s": bill(made, load).requests_per_s, "upper_bound": told, "groups": len(made.groups), "devices": len(used)}
    return {"cpu_s": cpu_s, "wall_s": wall_s, **served, "candidate": came_from}


def measure(systems: list[str], clusters: list[str], model: str, load: Workload) -> dict[str, Any]:
    """Of each cluster and system, one after the other."""
    found: dict[str, Any] = {}
    for cluster in clusters:
        found[cluster] = {}
        for name in systems:
            asked = json.dumps([name, cluster, model, load.input_tokens, load.output_tokens])
            limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))}
            done = subprocess.run([sys.executable, __file__, "--one", asked], capture_output=True, text=True, env=ONE_CORE, **limits)
            found[cluster][name] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-300:] or f"over {LIMIT_S} CPU s"}
            shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found[cluster][name].items()}
            print(cluster, name, shown, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--clusters", nargs="+", default=["20", "64", "160", "320", "1024"])
    parser.add_argument("--model", default="Llama-2-70B")
    parser.add_argument("--lengths", nargs=2, type=float, default=[1155.0, 211.0], help="of prompts and answers in the mean: azure-conv's")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.one:
        name, cluster, model, *lengths = json.loads(given.one)
        print(json.dumps(plan_one(name, cluster, model, Workload(*lengths))))
        return
    load = Workload(*given.lengths)
    found = measure(given.systems, given.clusters, given.model, load)
    result = {"label": "computed", "what": "planning time", "costs": "catalog", "model": given.model, "load": given.lengths, "cpu_limit_s": LIMIT_S}
    result |= {"clusters": found, "date": date.today().isoformat(), "machine": describe()}
    text = json.dumps(result, indent=2) + "\n"
    if given.output:
        given.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
