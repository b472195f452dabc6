"""The table of systems: a planner (offline) and a row of online policies. A new system is a line here, a planner and a test."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from hetserve.errors import UsageError
from hetserve.planner.options import Options
from hetserve.planner.uniform import plan_uniform
from hetserve.policy import batch, evict, heads, rebalance, route
from hetserve.policy.row import Policies
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload

Planner = Callable[[Cluster, ModelSpec, Workload | None, Options], Plan]


@dataclass(frozen=True)
class System:
    name: str
    planner: Planner
    policies: Policies


UNIFORM = Policies(route.least_loaded, batch.in_order, heads.on_group, rebalance.none, evict.latest)

SYSTEMS = {row.name: row for row in (System("uniform", plan_uniform, UNIFORM),)}


def system(name: str) -> System:
    """The row called `name`.

    Raises:
        UsageError: there is none; the hint lists those there are.
    """
    if name not in SYSTEMS:
        near = difflib.get_close_matches(name, SYSTEMS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no system called {name!r}", f"{hint}known: {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
