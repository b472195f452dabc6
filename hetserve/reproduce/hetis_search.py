"""Who becomes a primary and who an attention worker on Hetis' testbed, and how long the search takes, there and over five types of 32 GPUs."""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hetserve.catalog import rows
from hetserve.catalog.drawn import NETWORK, Machine, cluster_toml
from hetserve.planner.case import open_case
from hetserve.planner.hetis import exclude, plan_hetis
from hetserve.planner.kinds import named
from hetserve.reproduce.hetis_case import DATASETS, LLAMA_70B, TESTBED, mean_load, options_for, requests
from hetserve.reproduce.report import Cell, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.spec.cluster import Cluster, parse_cluster
from hetserve.spec.load import load_cluster, this_host
from hetserve.spec.plan import Plan

KINDS = ("H100-SXM-80GB", "A100-SXM-80GB", "L40-48GB", "RTX-3090-24GB", "P100-PCIe-12GB")  # ours: the paper does not name its five types
OF_EACH, PER_HOST = 32, 8


@dataclass(frozen=True)
class Case:
    cluster: str  # "testbed" or "large"
    dataset: str
    data: Path | None


@dataclass(frozen=True)
class Answer:
    roles: dict[str, str]  # by device: "primary", "attention worker" or "left out"
    by_rule: dict[str, str]  # the same, by the paper's exclusion rule alone
    seconds: float


def run(setup: Setup) -> Report:
    """Roles on the testbed for each workload; seconds on both clusters."""
    cells = [Case("testbed", name, setup.data) for name in DATASETS] + [Case("large", "sharegpt", setup.data)]
    answers = dict(zip(cells, setup.each(_search, cells), strict=True))
    testbed = {cell.dataset: answer for cell, answer in answers.items() if cell.cluster == "testbed"}
    large = next(answer for cell, answer in answers.items() if cell.cluster == "large")
    rule, chosen = ([_share(getattr(one, what)) for one in testbed.values()] for what in ("by_rule", "roles"))
    slowest_s = max(one.seconds for one in testbed.values())
    said = [{"workload": name, **_by_kind(one)} for name, one in testbed.items()]
    found = {
        "hetis-rule": Found(sum(rule) / len(rule), "mean over three workloads of the share of the 12 GPUs that the rule gives the paper's role"),
        "hetis-roles": Found(sum(chosen) / len(chosen), "the same of the plan that the whole search chooses"),
        "hetis-search-testbed": Found(slowest_s, "the longest of three workloads, seconds of one core"),
        "hetis-search-large": Found(large.seconds, f"{len(KINDS)} types x {OF_EACH}, seconds of one core"),
    }
    inputs = tuple(requests(name, LLAMA_70B, setup.data).drawn().lengths.inputs for name in DATASETS)
    timed: list[dict[str, Cell]] = [
        {"cluster": cell.cluster, "GPUs": len(one.roles), "workload": cell.dataset, "seconds": one.seconds} for cell, one in answers.items()
    ]
    roles = Table("Roles, Llama-2-70B", "computed", tuple(said), inputs)
    return Report(found, (roles, Table("Search", "measured: the planner's time", tuple(timed))))


def large() -> Cluster:
    """Hosts of eight like GPUs, joined by 100 Gbit/s."""
    hosts = [Machine(rows.device(kind), PER_HOST, rows.link(NETWORK)) for kind in KINDS for _ in range(OF_EACH // PER_HOST)]
    return parse_cluster(tomllib.loads(cluster_toml("five-types", hosts, "hetserve reproduce hetis-search")), this_host(), "five-types")


def _search(cell: Case) -> Answer:
    cluster = load_cluster(TESTBED) if cell.cluster == "testbed" else large()
    model, load, options = rows.model(LLAMA_70B), mean_load(requests(cell.dataset, LLAMA_70B, cell.data).drawn()), options_for(LLAMA_70B)
    began_s = time.process_time()
    plan = plan_hetis(cluster, model, load, options)
    seconds = time.process_time() - began_s
    case = open_case(cluster, model, load, options)
    out = {one.device for one in exclude(case, case.names, options.delta)}
    by_rule = {name: "attention worker" if name in out else "primary" for name in case.names}
    return Answer(_roles(plan), by_rule, seconds)


def _roles(plan: Plan) -> dict[str, str]:
    stages = [stage for group in plan.groups for stage in group.stages]
    primary = {name for stage in stages for name in stage.primary}
    helping = {name for stage in stages for name in stage.attention}
    return {one.name: "primary" if one.name in primary else "attention worker" if one.name in helping else "left out" for one in plan.cluster.devices}


def _share(roles: dict[str, str]) -> float:
    """Of devices with the role that the paper's search gives them: P100s attention workers, all others primaries."""
    return sum(role == ("attention worker" if name.startswith("p100") else "primary") for name, role in roles.items()) / len(roles)


def _by_kind(answer: Answer) -> dict[str, str]:
    """Who does what, by the rule alone and chosen."""
    told = {}
    for what, roles in (("by the rule", answer.by_rule), ("chosen", answer.roles)):
        of_role = {role: [name for name in roles if roles[name] == role] for role in ("primary", "attention worker", "left out")}
        told[what] = "; ".join(f"{role}: {named(names)}" for role, names in of_role.items() if names)
    return told
