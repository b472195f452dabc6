"""The plan: which device computes which layers in which role, and how many KV pages it has. One JSON file for every command.

The same plan is always the same bytes. Nothing here reads a file or decides anything: planners make plans, `spec.load` reads them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from hetserve.errors import SpecError, UnsupportedError
from hetserve.spec.cluster import Cluster
from hetserve.spec.fingerprint import fingerprint, model_fingerprint
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import Profile
from hetserve.spec.strict import build

FORMAT = 1
PAGE_TOKENS = 16
MOST_PAGES = 2**31 // PAGE_TOKENS - 1  # of one pool: page id * page_tokens + offset is an int32
ROLES = ("mixed", "prefill", "decode")
HEADS = ("on_group", "exact", "dealt", "paper", "even")  # see policy/heads.py


@dataclass(frozen=True)
class PlanModel:
    """Which model a plan is for: its whole shape, so that a plan can be simulated without the model's folder."""

    shape: ModelSpec
    dtype: str  # of weights and KV


@dataclass(frozen=True)
class Pool:
    """The KV pages of one device for one stage. A page is PAGE_TOKENS tokens of one KV head in all layers of the stage."""

    device: str
    pages: int
    page_bytes: int


@dataclass(frozen=True)
class Stage:
    """A contiguous range of layers."""

    layers: tuple[int, int]  # [first, last)
    primary: tuple[str, ...]  # devices that hold weights, one per tensor-parallel rank
    attention: tuple[str, ...]  # devices that hold KV heads only
    pools: tuple[Pool, ...]  # one per device above, in that order
    weights: str  # dtype the weights are stored and multiplied in; activations and KV have the plan's


@dataclass(frozen=True)
class Group:
    """One replica of the model."""

    role: str  # one of ROLES
    stages: tuple[Stage, ...]
    requests_per_s: float = 0.0  # what the planner expects of it under its workload; routing by speed compares them. 0: not said


@dataclass(frozen=True)
class Flow:
    """The share of a prefill group's requests that decode on a decode group."""

    source: int
    target: int
    share: float


@dataclass(frozen=True)
class Limits:
    """How much a group may take on at once."""

    max_model_len: int  # prompt and answer together, tokens
    max_seqs: int  # sequences running at once
    max_step_tokens: int  # tokens of one step, decode and prefill chunks together
    steps_in_flight: int  # 1 or 2
    max_waiting: int  # waiting requests; more are turned away


@dataclass(frozen=True)
class Online:
    """Which of a system's online policies run the plan, where there is a choice."""

    heads: str = "on_group"  # one of HEADS
    theta: float | None = None  # drift from the best balance at which a request is placed anew; None: never


@dataclass(frozen=True)
class Plan:
    system: str  # the row of hetserve.systems that made it, and whose policies run it
    model: PlanModel
    cluster: Cluster
    limits: Limits
    groups: tuple[Group, ...]
    flow: tuple[Flow, ...] = ()
    page_tokens: int = PAGE_TOKENS
    profile: Profile | None = None  # what the plan was made from, and every cost is computed from; None: rates of the kind of device
    online: Online = Online()
    notes: tuple[str, ...] = ()  # why the devices got their roles, for people

    @property
    def hash(self) -> str:
        """Names this plan in journals and results."""
        return fingerprint(self)

    def require_model(self, model: ModelSpec) -> None:
        """Raises SpecError unless the plan was made for a model of this shape."""
        planned = self.model.shape
        if model_fingerprint(planned) != model_fingerprint(model):
            raise SpecError(f"the plan was made for the model {planned.name!r}, which has another shape than {model.name!r}", "make a new plan")


def page_bytes(model: ModelSpec, layers: tuple[int, int], dtype: str, page_tokens: int = PAGE_TOKENS) -> int:
    """Bytes of one page: keys and values of `page_tokens` tokens of one KV head in layers [first, last)."""
    return 2 * page_tokens * model.head_dim * DTYPE_BYTES[dtype] * (layers[1] - layers[0])


def encode_plan(plan: Plan) -> str:
    """The plan as the text of its file. Numbers that follow from others (tp, pp, fingerprints) are written too, for people and other tools."""
    body = asdict(plan)
    body["model"]["fingerprint"] = model_fingerprint(plan.model.shape)
    for group in body["groups"]:
        for stage in group["stages"]:
            stage["tp"] = len(stage["primary"])
        group["pp"] = len(group["stages"])
    return json.dumps({"format": FORMAT, **body, "cluster_fingerprint": fingerprint(plan.cluster)}, indent=2) + "\n"


def decode_plan(text: str, where: str) -> Plan:
    """The plan in a plan file's text.

    Raises:
        SpecError: not JSON, unknown or missing keys, values of a wrong type or that contradict each other.
        UnsupportedError: a format this version does not know.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{where}: a plan is JSON, and this is not: {error}", "`hetserve plan` writes plans") from None
    if not isinstance(data, dict) or "format" not in data:
        raise SpecError(f"{where}: this is no plan: it has no 'format'", "`hetserve plan` writes plans")
    if data.pop("format") != FORMAT:
        raise UnsupportedError(f"{where}: this version reads plans of format {FORMAT} only", "make the plan again")
    told = _take_derived(data)
    plan = build(Plan, data, where)
    _check(plan, where)
    if told != _derived(plan):
        raise SpecError(f"{where}: tp, pp or a fingerprint contradicts the rest of the plan", "was it edited by hand? make the plan again")
    return plan


def plan_schema() -> dict[str, Any]:
    """JSON schema of a plan file."""
    import msgspec  # here, as everywhere: an engine runs in-process where msgspec is not installed

    schema = msgspec.json.schema(Plan)
    kinds = schema["$defs"]
    kinds["Stage"]["properties"]["tp"] = {"type": "integer", "description": "tensor-parallel ranks: the number of primary devices"}
    kinds["Group"]["properties"]["pp"] = {"type": "integer", "description": "pipeline stages: the number of stages"}
    kinds["PlanModel"]["properties"]["fingerprint"] = {"type": "string"}
    kinds["Plan"]["properties"]["format"] = {"const": FORMAT}
    kinds["Plan"]["properties"]["cluster_fingerprint"] = {"type": "string"}
    kinds["Plan"]["properties"]["price"] = {"type": "object", "description": "what `hetserve plan --json` adds for people; nobody reads it"}
    for kind, key in (("Stage", "tp"), ("Group", "pp"), ("Plan", "format"), ("Plan", "cluster_fingerprint"), ("PlanModel", "fingerprint")):
        kinds[kind]["required"].append(key)
    for kind in kinds.values():
        kind["additionalProperties"] = False
    return schema


def _take_derived(data: dict[str, Any]) -> list[Any]:
    """Removes the numbers that follow from others; returns them in the order of `_derived`. The price is not the plan's: it moves."""
    data.pop("price", None)
    model = data.get("model")
    found = [data.pop("cluster_fingerprint", None), model.pop("fingerprint", None) if isinstance(model, dict) else None]
    groups = data.get("groups")
    for group in groups if isinstance(groups, list) else []:
        if isinstance(group, dict) and isinstance(group.get("stages"), list):
            found.append(group.pop("pp", None))
            found += [stage.pop("tp", None) for stage in group["stages"] if isinstance(stage, dict)]
    return found


def _derived(plan: Plan) -> list[Any]:
    found: list[Any] = [fingerprint(plan.cluster), model_fingerprint(plan.model.shape)]
    for group in plan.groups:
        found += [len(group.stages), *(len(stage.primary) for stage in group.stages)]
    return found


def _check(plan: Plan, where: str) -> None:
    """Everything a plan must satisfy whoever made it."""
    _check_limits(plan.limits, where)
    if plan.model.dtype not in DTYPE_BYTES:
        raise SpecError(f"{where}: dtype {plan.model.dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    if not plan.groups or plan.page_tokens < 1:
        raise SpecError(f"{where}: a plan has at least one group and page_tokens of at least 1")
    if plan.page_tokens != PAGE_TOKENS:
        raise UnsupportedError(f"{where}: pages of {plan.page_tokens} tokens; this version's hold {PAGE_TOKENS}")
    devices = {device.name for device in plan.cluster.devices}
    for index, group in enumerate(plan.groups):
        _check_group(group, devices, plan.model.shape.layers, f"{where}: group {index}")
        if not 0 <= group.requests_per_s < float("inf"):
            raise SpecError(f"{where}: group {index} cannot serve {group.requests_per_s:g} requests per second")
    if plan.online.heads not in HEADS:
        raise SpecError(f"{where}: there is no policy {plan.online.heads!r} for heads", f"known: {', '.join(HEADS)}")
    if plan.online.theta is not None and not 0 < plan.online.theta < float("inf"):
        raise SpecError(f"{where}: theta must be positive, got {plan.online.theta:g}", "leave it out for no re-dispatch")
    for arc in plan.flow:
        if not (0 <= arc.source < len(plan.groups) and 0 <= arc.target < len(plan.groups) and 0 < arc.share <= 1):
            raise SpecError(f"{where}: flow from group {arc.source} to {arc.target} with share {arc.share} makes no sense")


def _check_limits(limits: Limits, where: str) -> None:
    for name, value in asdict(limits).items():
        if value < 1:
            raise SpecError(f"{where}: {name} must be at least 1, got {value}")
    if limits.steps_in_flight > 2:
        raise SpecError(f"{where}: steps_in_flight must be 1 or 2, got {limits.steps_in_flight}")
    if limits.max_step_tokens < limits.max_seqs:
        raise SpecError(f"{where}: max_step_tokens ({limits.max_step_tokens}) must be at least max_seqs ({limits.max_seqs})")


def _check_group(group: Group, devices: set[str], layers: int, where: str) -> None:
    if group.role not in ROLES or not group.stages:
        raise SpecError(f"{where} needs a role ({', '.join(ROLES)}) and at least one stage, has role {group.role!r}, {len(group.stages)} stages")
    edges = [0, *(stage.layers[1] for stage in group.stages)]
    if edges[-1] != layers or any(stage.layers != (a, b) or a >= b for stage, a, b in zip(group.stages, edges, edges[1:], strict=False)):
        raise SpecError(f"{where}: stages must cover layers 0 to {layers} without a gap, got {[stage.layers for stage in group.stages]}")
    for stage in group.stages:
        workers = (*stage.primary, *stage.attention)
        if not stage.primary or not set(workers) <= devices or len(set(workers)) < len(workers):
            raise SpecError(f"{where}: workers must be different devices of the cluster ({', '.join(sorted(devices))}), got {list(workers)}")
        sound = all(0 < pool.pages <= MOST_PAGES and pool.page_bytes > 0 for pool in stage.pools)
        if tuple(pool.device for pool in stage.pools) != workers or not sound:
            raise SpecError(f"{where}: a stage has one pool of 1 to {MOST_PAGES} pages for each of its workers, in their order")
        if stage.weights not in DTYPE_BYTES:
            raise SpecError(f"{where}: weights {stage.weights!r} is none of {', '.join(DTYPE_BYTES)}")
