"""What every planner works on: a cluster, a model, a load, and what they cost; which memory a stage leaves for KV."""

from __future__ import annotations

from dataclasses import dataclass, field

from hetserve.cost.costs import Costs
from hetserve.cost.roofline import StepCost
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.options import TYPICAL, Options
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import HEADS
from hetserve.spec.profile import require
from hetserve.spec.workload import Workload

KV_BYTES = 4 * 2**30  # a CPU device's memory is the machine's: unless told otherwise, KV takes no more of it than this; of a GPU's, all that is left
MIB = 2**20


@dataclass(frozen=True)
class Case:
    cluster: Cluster
    model: ModelSpec
    dtype: str
    workload: Workload
    options: Options
    costs: Costs
    _steps: dict[tuple[str, int, bool, str, int], StepCost] = field(default_factory=dict, repr=False, compare=False)
    _bytes: dict[tuple[str, int, bool, bool, str, int], int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def whole(self) -> tuple[int, int]:
        return (0, self.model.layers)

    def weights(self, device: str) -> tuple[str, ...]:
        """What weights may be stored in: float32 is slower to read and, on CPUs without bfloat16 products, faster to multiply."""
        return (self.dtype,) if self.dtype == "float32" or self.device(device).is_gpu else (self.dtype, "float32")

    def device(self, name: str) -> Device:
        return self.cluster.device(name)

    def step(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> StepCost:
        """As Costs.stage_cost, remembered: a stage's cost is told by how many layers it has and whether the last is among them."""
        key = (device, layers[1] - layers[0], layers[1] == self.model.layers, weights, ranks)
        if key not in self._steps:
            self._steps[key] = self.costs.stage_cost(device, layers, weights, ranks)
        return self._steps[key]

    def primary_room(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Bytes that weights and workspace of a stage leave for KV on each of its primaries; may be negative."""
        key = (self.device(device).kind, layers[1] - layers[0], layers[0] == 0, layers[1] == self.model.layers, weights, ranks)
        if key not in self._bytes:
            self._bytes[key] = self.costs.weight_bytes(device, layers, weights, ranks) + self.workspace_bytes(device, layers, weights, ranks)
        return self.device(device).memory_bytes - self._bytes[key]

    def workspace_bytes(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Of each of a stage's primaries, for the largest step that the options allow."""
        options = self.options
        return self.costs.workspace_bytes(device, layers, weights, options.max_step_tokens, options.max_seqs, options.max_model_len, ranks)

    def attention_room(self, device: str) -> int:
        """Bytes an attention worker has for KV."""
        return self.device(device).memory_bytes - self.costs.attention_bytes(device, self.options.max_seqs, self.options.max_model_len)

    def kv_bytes(self, device: str, room: int) -> int:
        """How much of the room KV pages take."""
        usual = room if self.device(device).is_gpu else KV_BYTES
        return min(room, self.options.kv_memory_bytes or usual)


def open_case(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Case:
    """Checks what the user fixed.

    Raises:
        UsageError: options that contradict each other. ResourceError: sequences longer than the model takes.
        SpecError: a profile of another model, dtype or cluster.
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
    if options.profile is not None:
        require(options.profile, cluster, model, dtype)
    return Case(cluster, model, dtype, workload or TYPICAL, options, Costs(model, dtype, cluster, options.profile))
