"""What this version's engine runs of what planners plan and the simulator simulates."""

from __future__ import annotations

from hetserve.errors import UnsupportedError
from hetserve.spec.plan import Plan

SIMULATE = "`hetserve simulate --plan FILE` runs it without the devices"


def require_runnable(plan: Plan) -> None:
    """Nothing, if the engine can run the plan: one primary device a stage, at most one prefill and one decode group, cut alike.

    Raises:
        UnsupportedError: it cannot.
    """
    most = max(len(stage.primary) for group in plan.groups for stage in group.stages)
    if most > 1:
        what = f"tensor parallelism over {most} devices"
        raise UnsupportedError(f"the plan needs {what}; this version's engine has one primary device a stage", SIMULATE)
    prefill, decode = ([group for group in plan.groups if group.role == role] for role in ("prefill", "decode"))
    if len(prefill) > 1 or len(decode) > 1:
        what = f"{len(prefill)} prefill and {len(decode)} decode groups"
        raise UnsupportedError(f"the plan has {what}; this version's engine runs one of each", f"{SIMULATE}; --system splitwise plans one of each")
    if [stage.layers for one in prefill for stage in one.stages] != [stage.layers for one in decode for stage in one.stages]:
        what = "the plan's prefill and decode groups have unlike stages"
        raise UnsupportedError(f"{what}, which this version's engine cannot hand over between", SIMULATE)
