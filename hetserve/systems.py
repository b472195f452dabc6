"""The table of systems: a planner (offline) and a row of online policies. A new system is a line here, a planner and a test.

Baselines are these systems' policies on our engine, and called so ("hexgen-policy") wherever results are shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hetserve.errors import UsageError
from hetserve.planner.distserve import plan_distserve
from hetserve.planner.helix import plan_helix
from hetserve.planner.hetis import plan_hetis
from hetserve.planner.hexgen import plan_hexgen
from hetserve.planner.hexgen2.plan import plan_hexgen2
from hetserve.planner.hexgen2_hetis import plan_hexgen2_hetis
from hetserve.planner.options import Options
from hetserve.planner.replicas import plan_replicas
from hetserve.planner.splitwise import plan_splitwise
from hetserve.planner.uniform import plan_uniform
from hetserve.policy import batch, evict, heads, rebalance, route
from hetserve.policy.row import Heads, Policies
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Online, Plan
from hetserve.spec.workload import Workload

Planner = Callable[[Cluster, ModelSpec, Workload | None, Options], Plan]


@dataclass(frozen=True)
class System:
    name: str
    planner: Planner
    policies: Policies


UNIFORM = Policies(route.least_loaded, batch.in_order, heads.on_group, rebalance.none, evict.latest)
BY_SPEED = replace(UNIFORM, route=route.fastest)

SYSTEMS = {
    row.name: row
    for row in (
        System("uniform", plan_uniform, UNIFORM),
        System("hetis", plan_hetis, UNIFORM),  # its placement and re-dispatch are the plan's choice: see policies_for
        System("replicas", plan_replicas, BY_SPEED),
        System("hexgen", plan_hexgen, BY_SPEED),
        System("helix", plan_helix, BY_SPEED),
        System("splitwise", plan_splitwise, BY_SPEED),
        System("distserve", plan_distserve, BY_SPEED),
        System("hexgen2", plan_hexgen2, BY_SPEED),
        System("hexgen2+hetis", plan_hexgen2_hetis, BY_SPEED),  # of its groups HexGen-2's, of their heads Hetis'
    )
}
HEADS: dict[str, Heads] = {
    "on_group": heads.on_group,
    "exact": heads.exact,
    "dealt": heads.dealt,
    "paper": heads.paper,
    "even": heads.even,
}


def system(name: str) -> System:
    """The row called `name`.

    Raises:
        UsageError: there is none; the hint lists those there are.
    """
    if name not in SYSTEMS:
        raise unknown("system", name, tuple(SYSTEMS))
    return SYSTEMS[name]


def unknown(what: str, name: str, known: Sequence[str]) -> UsageError:
    """The error of a name that is none of the known ones; its hint names the nearest and lists them all."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"there is no {what} called {name!r}", f"{hint}known: {', '.join(known)}")


def policies_for(name: str, online: Online) -> Policies:
    """A system's policies with what its plan chose of placement and re-dispatch."""
    moving = rebalance.none if online.theta is None else rebalance.drift(online.theta, sharing=online.heads not in ("paper", "even"))
    return replace(system(name).policies, heads=HEADS[online.heads], rebalance=moving)
