"""What every planner works on: a cluster, a model, a load, and what they cost; which memory a stage leaves for KV."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from hetserve.cost.costs import Costs, HeadCost
from hetserve.cost.roofline import StepCost
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.options import TYPICAL, Options
from hetserve.planner.sound import require_sound
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import HEADS, Stage
from hetserve.spec.profile import require
from hetserve.spec.workload import Workload

KV_BYTES = 4 * 2**30  # a CPU device's memory is the machine's: unless told otherwise, KV takes no more of it than this; of a GPU's, all that is left
MIB = 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    cluster: Cluster
    model: ModelSpec
    dtype: str
    workload: Workload
    options: Options
    costs: Costs
    _known: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def whole(self) -> tuple[int, int]:
        return (0, self.model.layers)

    @property
    def names(self) -> list[str]:
        """All devices, in the order of the file."""
        return [device.name for device in self.cluster.devices]

    @property
    def contended(self) -> bool:
        """Whether some devices are known to slow each other."""
        return self.costs.profile is not None and bool(self.costs.profile.contention)

    def weights(self, device: str) -> tuple[str, ...]:
        """What weights may be stored in: float32 is slower to read and, on CPUs without bfloat16 products, faster to multiply."""
        return (self.dtype,) if self.dtype == "float32" or self.device(device).is_gpu else (self.dtype, "float32")

    def device(self, name: str) -> Device:
        return self._devices[name]

    def like(self, name: str) -> str:
        """The first device that costs as much as this one; what was measured, or declared of a link, is of each. Memory is not looked at."""
        return self._like[name]

    def step(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> StepCost:
        """As Costs.stage_cost: a stage's cost is told by how many layers it has and whether the last is among them."""
        key = ("step", self.like(device), layers[1] - layers[0], layers[1] == self.model.layers, weights, ranks)
        return self.remembered(key, lambda: self.costs.stage_cost(device, layers, weights, ranks))

    def heads(self, device: str, stage: Stage) -> HeadCost:
        """As Costs.head_cost, of a stage's pool."""
        primary, ranks = stage.primary[0], len(stage.primary)
        sender = None if device in stage.primary else primary
        if self.costs.profile is not None:
            others = [pool.device for pool in stage.pools if pool.device != device]
            return self.costs.head_cost(device, stage.layers, sender, others, ranks)
        wire = self.cluster.link(primary, device) if sender else None
        kind = (stage.layers[1] - stage.layers[0], self.like(device), ranks, wire and (self.like(primary), wire.latency_s, wire.bytes_per_s))
        return self.remembered(("heads", *kind), lambda: self.costs.head_cost(device, stage.layers, sender, ranks=ranks))

    def primary_room(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Bytes that weights and workspace of a stage leave for KV on each rank; may be negative."""
        key = ("primary", self.like(device), layers[1] - layers[0], layers[0] == 0, layers[1] == self.model.layers, weights, ranks)
        used = self.remembered(key, lambda: self.weight_bytes(device, layers, weights, ranks) + self.workspace_bytes(device, layers, weights, ranks))
        return self.device(device).memory_bytes - used

    def weight_bytes(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Of a stage, on each rank. Layers are alike: of many only what two of them need more than one is asked."""
        (first, last), total = layers, self.model.layers
        if last - first <= 2 or total < 4 or layers == self.whole:
            key = ("weights", self.device(device).kind, layers, weights, ranks)
            return self.remembered(key, lambda: self.costs.weight_bytes(device, layers, weights, ranks))
        two = (0, 2) if first == 0 else (total - 2, total) if last == total else (1, 3)
        known, more, less = (self.weight_bytes(device, some, weights, ranks) for some in (two, (1, 3), (1, 2)))
        return known + (last - first - 2) * (more - less)

    def workspace_bytes(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Of a stage's primaries, each, for the largest step that the options allow."""
        options = self.options
        return self.costs.workspace_bytes(device, layers, weights, options.max_step_tokens, options.max_seqs, options.max_model_len, ranks)

    def attention_room(self, device: str) -> int:
        """Bytes an attention worker has for KV."""
        options = self.options
        used = self.remembered(("worker", self.like(device)), lambda: self.costs.attention_bytes(device, options.max_seqs, options.max_model_len))
        return self.device(device).memory_bytes - used

    def remembered(self, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """What `make` says, asked once."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def calm(self) -> Case:
        """The same as if devices did not slow each other."""
        known = self.costs.profile
        return replace(self, costs=replace(self.costs, profile=known and replace(known, contention=())), _known={})

    def kv_bytes(self, device: str, room: int) -> int:
        """How much of the room KV pages take."""
        usual = room if self.device(device).is_gpu else KV_BYTES
        return min(room, self.options.kv_memory_bytes or usual)

    @cached_property
    def _devices(self) -> dict[str, Device]:
        return {device.name: device for device in self.cluster.devices}

    @cached_property
    def _like(self) -> dict[str, str]:
        inside, first = {node.name: node.inside for node in self.cluster.nodes}, dict[Hashable, str]()
        joined = {end for link in self.cluster.links for end in (link.source, link.target)}
        alone = {one.name for one in self.cluster.devices if self.options.profile is not None or one.name in joined}
        keys = {one.name: one.name if one.name in alone else (kind_of(one), inside.get(one.node)) for one in self.cluster.devices}
        return {name: first.setdefault(key, name) for name, key in keys.items()}


def kind_of(device: Device) -> tuple[str, str, str, int, str]:
    """What makes two devices of one type. A GPU's cores are its worker's process's, which waits on them."""
    return (device.kind, device.gpu, device.isa, 0 if device.is_gpu else len(device.cores), str(device.stretch))


def open_case(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Case:
    """Checks what the user fixed, and the cluster.

    Raises:
        UsageError: options that contradict each other. ResourceError: sequences longer than the model takes, or too little memory in all.
        SpecError: a profile of another model, dtype or cluster; a cluster whose nodes are apart or whose GPUs nobody knows.
    """
    if options.max_step_tokens < options.max_seqs:
        raise UsageError(f"a step of {options.max_step_tokens} tokens has no room for {options.max_seqs} decoding sequences", "lower --max-num-seqs")
    if options.max_model_len > model.max_positions:
        raise ResourceError(f"{model.name} takes at most {model.max_positions} tokens, not {options.max_model_len}", "lower --max-model-len")
    if options.heads not in ("", *HEADS):
        raise UsageError(f"there is no placement policy {options.heads!r}", f"known: {', '.join(HEADS)}")
    if options.delta < 0 or (options.theta is not None and not options.theta > 0):
        raise UsageError("delta must be at least 0, and theta positive", "--theta off places no running request anew")
    dtype = options.dtype or ("float32" if model.dtype == "float32" else "bfloat16")
    require_sound(cluster, model, dtype, options.profile is not None)
    if options.profile is not None:
        require(options.profile, cluster, model, dtype)
    return Case(cluster, model, dtype, workload or TYPICAL, options, Costs(model, dtype, cluster, options.profile))
