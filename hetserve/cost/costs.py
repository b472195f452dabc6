"""One object that answers for a whole cluster: a stage's step, decode attention of a head group, a move, memory. Planner and dispatcher ask it.

Sources, in order: the measured profile of a device or link, what the cluster file declares of a link, the catalog's fits where it says which GPU a
device is, rates of the kind; every answer names its own. A link that is to be emulated is never better than declared. The catalog knows times in 16
bits only: float32 is told by rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import prod

from hetserve.catalog import rows as catalog
from hetserve.cost.curve import NOTHING
from hetserve.cost.device_memory import attention_worker_bytes, primary_bytes
from hetserve.cost.gpu import GpuCosts
from hetserve.cost.library import across
from hetserve.cost.measured import measured_step
from hetserve.cost.ranks import shared
from hetserve.cost.rates import device_rates
from hetserve.cost.roofline import Roofline, StepCost, token_pages, workspace_bytes
from hetserve.cost.step import Rank, Wire
from hetserve.errors import SpecError
from hetserve.spec.cluster import CPU, CUDA, Cluster, Device
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import WORKS, Contention, DeviceProfile, Profile
from hetserve.spec.tensors import tensor_shapes

LINK_BYTES = 2e9  # per second between worker processes of one machine
LINK_S = 5e-5  # a message there
PEER_LEAST, PEER_MOST = 0.7, 1.1  # a link whose kind nobody said is the GPU's own if so much of its bandwidth is declared


@dataclass(frozen=True)
class HeadCost:
    """Decode attention of a stage's layers on one pool, per step: head_s * head groups + token_s * (head groups * tokens) + fixed_s.

    Transfers to and from the primary are in it where the pool is another device's (Hetis, Eq. 3, 4 and 7, per head group instead of per head).
    `fixed_s` is due only when the pool holds something. As soon as two pools of the stage hold something, head_s and token_s count `shared`
    times, also what the link adds to head_s: its copies go through the same memory.
    """

    head_s: float
    token_s: float
    fixed_s: float
    source: str
    shared: float = 1.0  # times slower while the stage's other pools attend too


@dataclass(frozen=True)
class LinkCost:
    """One direction between two devices: a message takes beta_s and gamma_s for each of its vectors (head_dim numbers)."""

    gamma_s: float
    beta_s: float
    bytes_per_s: float  # large transfers
    source: str


@dataclass(frozen=True)
class Costs:
    """Answers for the devices of one cluster and one model.

    Args:
        dtype: of activations and KV.
        profile: what was measured; None: nothing was.
    """

    model: ModelSpec
    dtype: str
    cluster: Cluster
    profile: Profile | None = None

    def stage_cost(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> StepCost:
        """The step-time formula of layers [first, last) on a device whose weights are stored as `weights`.

        Args:
            ranks: tensor-parallel devices that share the stage, all like this one and on its node, which stands for any of them. They are joined as
                it is with those it reaches fastest.

        Raises:
            SpecError: a device or link that is in no source, too few like it on its node, a model that cannot be cut into so many parts.
        """
        gpu = self._catalog(device, weights, ranks)
        if gpu is not None:
            return gpu.stage(layers[1] - layers[0], layers[1] == self.model.layers)
        if self.profile is not None:
            whole = measured_step(self.model, self.profile, self._measured(self.profile, device), layers, weights)
        else:
            whole = self._roofline(device, layers, weights)
        if ranks == 1:
            return whole
        link, rank = self.link_cost(device, self._mate(device, ranks)), Rank(self.model, ranks)
        return shared(whole, rank, layers[1] - layers[0], self.model.hidden * DTYPE_BYTES[self.dtype], link.beta_s, link.bytes_per_s)

    def head_cost(self, device: str, layers: tuple[int, int], primary: str | None = None, others: Iterable[str] = (), ranks: int = 1) -> HeadCost:
        """Decode attention on a device; `primary` is the device that sends it q, k and v, None: it is that device itself.

        Args:
            others: the other devices with pools of the same stage.
            ranks: tensor-parallel primaries of the stage: each attends to its own heads, and sends others' of these to attention workers.
        """
        n_layers, group = layers[1] - layers[0], self.model.group
        gpu = self._catalog(device, self.dtype, 1)
        if gpu is not None:
            told = gpu_costs(gpu.device, self.model, ranks).attention_line
            head_s, token_s, fixed_s, source = told.head_s, told.token_s, told.fixed_s, gpu.told(["decode"])
        elif self.profile is not None:
            line, source = self._measured(self.profile, device).attention, f"profile of {self.profile.date}, {device}"
            head_s, token_s, fixed_s = group * line.a_s, 2 * line.b_s, line.c_s
        else:
            rates = device_rates(self.cluster.device(device), self.dtype)
            head_s, token_s, fixed_s, source = 0.0, 2 * self._vector_bytes / rates.read_bytes, 0.0, rates.source
        if primary is not None:
            there, back = self.link_cost(primary, device), self.link_cost(device, primary)
            head_s += (group + 2) * there.gamma_s + group * back.gamma_s  # q, k and v of a group there, its outputs back: 2r + 2 vectors
            fixed_s += there.beta_s + back.beta_s
            source += f"; {there.source}"
        shared = 1 + sum(self.contention(device, other).attention.attention - 1 for other in others)
        return HeadCost(n_layers * head_s, n_layers * token_s, n_layers * fixed_s, source, shared)

    def contention(self, device: str, other: str) -> Contention:
        """How much slower the other device makes this one while both work; not at all where nobody has measured it.

        Of several others the slowdowns add up: together they make it 1 + sum(factor - 1) times slower. Only pairs are measured.
        """
        known = self.profile.beside(device, other) if self.profile is not None else None
        return known or Contention(device, other)

    def excess(self) -> dict[tuple[str, str], tuple[tuple[float, ...], ...]]:
        """(device, other) -> [what it does][what the other does] times slower, less 1, by WORKS; of devices that slow each other."""
        known = self.profile.contention if self.profile is not None else ()
        return {(one.device, one.other): tuple(tuple(one.factor(mine, others) - 1 for others in WORKS) for mine in WORKS) for one in known}

    def link_cost(self, source: str, target: str) -> LinkCost:
        """One direction between two devices."""
        declared = self.cluster.link(source, target)
        told = None
        if declared is not None:
            told = LinkCost(self._vector_bytes / declared.bytes_per_s, declared.latency_s, declared.bytes_per_s, "link: declared")
        if self.profile is None:
            return told or self._undeclared(source, target)
        known = self.profile.link(source, target)
        if known is None:
            raise SpecError(f"the profile knows no link from {source!r} to {target!r}", "`hetserve profile` measures it")
        found = LinkCost(known.gamma_s, known.beta_s, known.bytes_per_s, f"link: profile of {self.profile.date}")
        if told is None or declared is None or not declared.emulate:
            return found
        slower = max(found.gamma_s, told.gamma_s), max(found.beta_s, told.beta_s), min(found.bytes_per_s, told.bytes_per_s)
        return LinkCost(*slower, "link: emulated as declared")

    def move_s(self, source: str, target: str, size_bytes: int) -> float:
        """Seconds to move KV pages or activations from one device to another."""
        if source == target:
            return 0.0
        link = self.link_cost(source, target)
        return link.beta_s + size_bytes / link.bytes_per_s

    def weight_bytes(self, device: str, layers: tuple[int, int], weights: str, ranks: int = 1) -> int:
        """Bytes of a stage's weights as its worker stores them. In a CPU's memory, so in an emulated GPU's, a tied output matrix is packed a second
        time beside the embedding.

        Args:
            ranks: that share all matrices but keys' and values' of which there are too few; each has all norms, biases and positions.
        """
        model, rank = self.model, Rank(self.model, ranks)
        numbers = sum(rank.kept(name, prod(shape)) for name, shape in tensor_shapes(model, *layers).items())
        if model.tie_embeddings and layers == (0, model.layers) and self.cluster.device(device).kind != CUDA:
            numbers += -(-model.vocab * model.embed_dim // ranks)
        rope = model.max_positions * model.head_dim * 4 if model.rope else 0
        return numbers * DTYPE_BYTES[weights] + rope

    def workspace_bytes(
        self, device: str, layers: tuple[int, int], weights: str, step_tokens: int, seqs: int, longest: int = 0, ranks: int = 1
    ) -> int:
        """Bytes a primary needs beside weights and KV; a pass has the weights' dtype throughout. Logits only with the last layer.

        Args:
            step_tokens, seqs: rows of the largest step, and sequences in it.
            longest: tokens of the longest sequence; 0: the most the model takes.
            ranks: that share heads and the MLP's columns; hidden states and logits are whole on each.
        """
        kind, last = self.cluster.device(device).kind, layers[1] == self.model.layers
        everywhere = workspace_bytes(self.model, weights, step_tokens, seqs if last else 0, ranks)
        if kind == CPU:
            return everywhere
        return everywhere + primary_bytes(kind, self.model, layers[1] - layers[0], weights, step_tokens, seqs, self._pages(longest), last, ranks)

    def attention_bytes(self, device: str, seqs: int, longest: int = 0) -> int:
        """Bytes an attention worker needs beside KV: q, k, v and outputs of a step, twice. From however many ranks: it may hold all heads."""
        kind, messages = self.cluster.device(device).kind, 4 * seqs * (self.model.q_dim + self.model.kv_dim) * 4
        return messages if kind == CPU else messages + attention_worker_bytes(kind, self.model, seqs, self._pages(longest))

    def _pages(self, longest: int) -> int:
        """Of one head group of the longest sequence."""
        return token_pages(longest or self.model.max_positions)

    def _catalog(self, device: str, dtype: str, ranks: int) -> GpuCosts | None:
        """What the catalog says of it; None: it was measured, nobody said which GPU it is, or it is to compute in float32."""
        known = self.cluster.device(device)
        if not known.gpu or DTYPE_BYTES[dtype] != 2 or (self.profile is not None and self.profile.device(device) is not None):
            return None
        link = self.cluster.link(device, self._mate(device, ranks)) if ranks > 1 else None
        if link is None:
            return gpu_costs(known.gpu, self.model, ranks)
        own = catalog.link(catalog.device(known.gpu).peer)
        if link.kind or PEER_LEAST <= link.bytes_per_s / own.bytes_per_s <= PEER_MOST:
            return gpu_costs(known.gpu, self.model, ranks, link.kind)
        return gpu_costs(known.gpu, self.model, ranks, "", Wire(link.bytes_per_s, False, link.latency_s))

    def _undeclared(self, source: str, target: str) -> LinkCost:
        """Between two GPUs of the catalog on one node: their own link, or the slower of what joins unlike ones to their host."""
        one, other = self.cluster.device(source), self.cluster.device(target)
        if not (one.gpu and other.gpu and one.node == other.node):
            return LinkCost(self._vector_bytes / LINK_BYTES, LINK_S, LINK_BYTES, "link: between processes of one machine")
        here, there = catalog.device(one.gpu), catalog.device(other.gpu)
        names = (here.peer,) if here == there else (here.host, there.host)
        row = min((catalog.link(name) for name in names), key=lambda link: link.bytes_per_s)
        bytes_per_s = row.bytes_per_s * across().share
        return LinkCost(self._vector_bytes / bytes_per_s, row.latency_s, bytes_per_s, f"link: catalog, {row.name}")

    def _roofline(self, device: str, layers: tuple[int, int], weights: str) -> StepCost:
        """By rates of its kind."""
        whole = Roofline(self.model, weights, device_rates(self.cluster.device(device), weights)).step_cost()
        share = (layers[1] - layers[0]) / self.model.layers
        return replace(
            whole,
            fixed_s=whole.fixed_s * share,
            layers=whole.layers * share,
            head=whole.head if layers[1] == self.model.layers else NOTHING,
            context_s=whole.context_s * share * DTYPE_BYTES[self.dtype] / DTYPE_BYTES[weights],
            pair_s=whole.pair_s * share,
        )

    def _mate(self, device: str, ranks: int) -> str:
        """Of the ranks - 1 devices like it that it reaches fastest on its node, the last."""
        own = self.cluster.device(device)
        mates = [other.name for other in self.cluster.devices if other.name != device and alike(own, other)]
        if len(mates) < ranks - 1:
            what = f"{ranks} tensor-parallel devices like {device!r} are needed on one node"
            raise SpecError(f"{what}, but cluster {self.cluster.name!r} has {len(mates) + 1} there", "give the stage fewer primaries")
        return sorted(mates, key=lambda mate: -self.link_cost(device, mate).bytes_per_s)[ranks - 2]

    @property
    def _vector_bytes(self) -> int:
        return self.model.head_dim * DTYPE_BYTES[self.dtype]

    def _measured(self, profile: Profile, device: str) -> DeviceProfile:
        found = profile.device(device)
        if found is None:
            raise SpecError(f"the profile knows nothing of device {device!r}", "`hetserve profile` measures it")
        return found


def alike(one: Device, other: Device) -> bool:
    """Whether two devices are of one kind and on one node, so that they can be ranks of one stage."""
    return (one.node, one.kind, one.gpu) == (other.node, other.kind, other.gpu) and one.is_gpu


@cache
def gpu_costs(device: str, model: ModelSpec, ranks: int, link: str = "", declared: Wire | None = None) -> GpuCosts:
    """GpuCosts, each made once."""
    return GpuCosts(device, model, ranks, link, declared)
