"""Many systems in one benchmark: which were asked for, a plan and a launch for each, on one cluster at one or more memory budgets. Starts nothing.

Our own systems run on `hetserve serve` with a plan made here; the real vLLM runs on the cluster's first device, on every device that fits, or on
all cores. What cannot be had is noted and left out; only the system measured itself must be possible.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetserve.errors import BaselineError, HetserveError, UsageError

from .baseline import baselines_folder

if TYPE_CHECKING:
    from hetserve.bench.launches import Setup
    from hetserve.bench.session import Target
    from hetserve.bench.vllm_install import VllmInstall
    from hetserve.spec.cluster import Cluster
    from hetserve.spec.model import ModelSpec
    from hetserve.spec.plan import Plan
    from hetserve.spec.profile import Profile
    from hetserve.spec.workload import Workload

DEFAULT_SYSTEM, ON_ONE_DEVICE = "hetis", "uniform"
VLLM_KINDS = ("vllm", "vllm-replicas", "vllm-all")
VLLM_BLOCK_TOKENS = 128  # windows are cut to whole blocks of vLLM, so that equal memory holds the same longest request everywhere


@dataclass(frozen=True)
class Asked:
    """One item of --system or --baseline: `hetis heads=paper` is the system hetis, planned with that option.

    Attributes:
        label: what results call it; our own systems as baselines end in -policy.
        planning: fields of `hetserve.planner.options.Options`, and their values.
    """

    label: str
    name: str
    planning: tuple[tuple[str, Any], ...] = ()

    @property
    def own(self) -> bool:
        return self.name not in VLLM_KINDS


@dataclass(frozen=True)
class Resolved:
    """One system ready to be started: how, and what its result says beside the numbers."""

    target: Target
    facts: dict[str, Any]


def asked_for(text: str, baseline: bool) -> list[Asked]:
    """The systems in a comma list.

    Raises:
        UsageError: a name nobody knows, or one given twice.
    """
    from hetserve.systems import SYSTEMS, system, unknown

    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *planning = shlex.split(item)
        if baseline and name not in (*VLLM_KINDS, *SYSTEMS):
            raise unknown("baseline", name, (*VLLM_KINDS, *SYSTEMS))
        if name not in VLLM_KINDS:
            system(name)
        elif not baseline:
            raise UsageError(f"--system takes a system of this engine, not {name!r}.", hint="the real vLLM is a --baseline")
        elif planning:
            raise UsageError(f"{name} is not planned here and takes no options, got {' '.join(planning)!r}.", hint="--baseline-args is for vLLM")
        own = baseline and name not in VLLM_KINDS
        label = " ".join([f"{name}-policy" if own else name, *planning])
        found.append(Asked(label, name, tuple(planning_option(word, name) for word in planning)))
    labels = [one.label for one in found]
    if len(set(labels)) < len(labels):
        raise UsageError(f"'{text}' names a system twice.")
    return found


def default_system(cluster: Cluster) -> str:
    """What is measured where no --system is named."""
    return DEFAULT_SYSTEM if len(cluster.devices) > 1 else ON_ONE_DEVICE


def planning_option(word: str, of: str) -> tuple[str, Any]:
    """A planner's option and its value, from `heads=paper`, `theta=none` or `profile=FILE`.

    Raises:
        UsageError: no such option, or not such a value. SpecError: no such profile.
    """
    from hetserve.planner.options import Options
    from hetserve.spec.load import load_profile

    key, _, text = word.partition("=")
    if key == "profile" and text:
        return key, load_profile(text)
    known = {name: getattr(Options(), name) for name in ("heads", "theta", "delta", "max_seqs", "max_step_tokens", "steps_in_flight", "max_waiting")}
    if key not in known or not text:
        raise UsageError(f"'{word}' after {of} is no option of its planner.", hint=f"KEY=VALUE, with KEY one of {', '.join(known)}, profile")
    if key == "theta" and text == "none":
        return key, None
    try:
        return key, type(known[key])(text)
    except ValueError:
        raise UsageError(f"'{word}' after {of} has no {type(known[key]).__name__}.") from None


def scales(text: str) -> tuple[float, ...]:
    """The factors in `1,2,4`.

    Raises:
        UsageError: not positive numbers.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0:
        raise UsageError(f"--memory-scale got '{text}', expected positive numbers with commas: 1,2,4")
    return found


Planner = Callable[[Asked, "Cluster", int], "Plan"]  # (who, on what, max_model_len or 0) -> plan


def plans_of(asked: Sequence[Asked], cluster: Cluster, longest: int, planner: Planner) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plans by label, and by label why there is none. The first one must have a plan.

    Raises:
        HetserveError: the first system cannot be planned.
    """
    made: dict[str, Plan] = {}
    without: dict[str, str] = {}
    for number, one in enumerate(asked):
        try:
            if one.own:
                made[one.label] = planner(one, cluster, longest)
        except HetserveError as error:
            if number == 0:
                raise
            without[one.label] = error.message
    return made, without


def window(held: Sequence[int], needed: int) -> int:
    """The longest request, in tokens, that every system can take which can take the workload at all: nobody gets requests that another is spared.

    Args:
        held: what each system can take.
        needed: what the workload asks for; 0 when none can.
    """
    enough = min((tokens for tokens in held if tokens >= needed), default=max(held))
    whole_blocks = enough // VLLM_BLOCK_TOKENS * VLLM_BLOCK_TOKENS
    return whole_blocks if whole_blocks >= needed and whole_blocks else enough


def needed_tokens(totals: Sequence[int]) -> int:
    """The window that drops as many requests of these lengths as may be dropped, and no more."""
    from hetserve.trace.requests import MAX_DROPPED_SHARE

    return sorted(totals)[len(totals) - 1 - int(MAX_DROPPED_SHARE * len(totals))]


def own_system(one: Asked, plan: Plan, setup: Setup, folder: Path, extra: str) -> Resolved:
    """`hetserve serve` with this plan, written into `folder`."""
    from hetserve.bench.launches import hetserve_launch
    from hetserve.spec.load import save_plan

    path = folder / f"plan-{''.join(char if char.isalnum() else '-' for char in one.label)}-{plan.hash[:8]}.json"
    save_plan(plan, path)
    launch = hetserve_launch(setup, ("--plan", str(path)), extra, one.label)
    facts = {
        "server_command": shlex.join(launch.command),
        "system": one.name,
        "planning": one.label.partition(" ")[2],
        "plan": plan.hash,
        "kv_bytes": sum(pool.pages * pool.page_bytes for group in plan.groups for stage in group.stages for pool in stage.pools),
        "layout": layout(plan),
    }
    return Resolved(launch, facts)


def layout(plan: Plan) -> list[dict[str, Any]]:
    """Who does what, short enough to be read in a result."""
    return [
        {
            "role": group.role,
            "stages": [
                {
                    "layers": list(stage.layers),
                    "primary": list(stage.primary),
                    "attention": list(stage.attention),
                    "weights": stage.weights,
                    "pages": {pool.device: pool.pages for pool in stage.pools},
                }
                for stage in group.stages
            ],
        }
        for group in plan.groups
    ]


def vllm_system(one: Asked, setup: Setup, spec: ModelSpec, install: VllmInstall, extra: str) -> Resolved:
    """The real vLLM, where its kind says.

    Raises:
        ResourceError: a budget does not hold it; UnsupportedError: a device it cannot be given.
    """
    from hetserve.bench import launches

    makers: dict[str, Callable[..., Any]] = {
        "vllm": launches.vllm_first_launch,
        "vllm-replicas": launches.vllm_replicas_launch,
        "vllm-all": launches.vllm_all_launch,
    }
    target = makers[one.name](setup, install, spec, extra)
    facts: dict[str, Any] = {"server_command": shlex.join(target.command), "version": install.version, "tcmalloc": bool(install.tcmalloc)}
    capped = [device.isa for device in setup.cluster.devices if device.isa]
    if one.name == "vllm-replicas" and capped:
        facts["note"] = f"capped to {', '.join(capped)} through its libraries; kernels of its own choose instructions by themselves"
    if one.name == "vllm-all":
        facts["other_hardware"] = True
    return Resolved(target, facts)


def vllm_kv_tokens(asked: Sequence[Asked], setup: Setup, spec: ModelSpec) -> list[int]:
    """What each vLLM that was asked for can hold on each of its devices, tokens; 0 where it does not fit."""
    from hetserve.bench.launches import on_device

    names = {one.name for one in asked}
    devices = setup.cluster.devices if "vllm-replicas" in names else setup.cluster.devices[:1] if "vllm" in names else ()
    found = []
    for device in devices:
        try:
            found.append(on_device(setup, device, spec).kv_bytes // setup.kv_bytes_per_token)
        except HetserveError:
            found.append(0)
    return found


def vllm_install(asked: Sequence[Asked], kind: str, folder: Path | None) -> tuple[VllmInstall | None, str]:
    """The installation for a kind of device, if any kind of vLLM was asked for, and why there is none.

    Raises:
        BaselineError: there is none, and nothing else to compare with.
    """
    from hetserve.bench import vllm_install

    if all(one.own for one in asked):
        return None, ""
    try:
        return vllm_install.require(baselines_folder(folder), kind), ""
    except BaselineError as error:
        if not any(one.own for one in asked[1:]):
            raise
        return None, f"{error.message} ({error.hint})"


def resolve_systems(
    asked: Sequence[Asked],
    setup: Setup,
    spec: ModelSpec,
    plans: dict[str, Plan],
    without: dict[str, str],
    serve_args: dict[str, str],
    baseline_dir: Path | None,
    baseline_args: str,
) -> tuple[dict[str, Resolved], dict[str, str]]:
    """Every system that can be started on the setup's cluster, by label and in order, and by label why another cannot."""
    install, why = vllm_install(asked, setup.cluster.devices[0].kind, baseline_dir)
    found: dict[str, Resolved] = {}
    missing = dict(without)
    for one in asked:
        if one.label in missing:
            continue
        try:
            if one.own:
                found[one.label] = own_system(one, plans[one.label], setup, setup.log_dir, serve_args[one.label])
            elif install is None:
                missing[one.label] = why
            else:
                found[one.label] = vllm_system(one, setup, spec, install, baseline_args)
        except HetserveError as error:
            missing[one.label] = error.message
    return found, missing


def planner_of(spec: ModelSpec, dtype: str, workload: Workload | None = None, profile: Profile | None = None) -> Planner:
    """Makes plans for one model and load, with everything but the window left to each system's planner.

    Raises (when called):
        HetserveError: whatever the planner says cannot be.
    """
    from hetserve.planner.options import Options
    from hetserve.systems import system

    def make(one: Asked, cluster: Cluster, longest: int) -> Plan:
        options = Options(dtype=dtype, max_model_len=longest, profile=profile)
        return system(one.name).planner(cluster, spec, workload, replace(options, **dict(one.planning)))

    return make
