"""What a worker is told and what it answers. Frozen data, sent as msgpack; no behaviour but looking things up."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.control.codec import Codec
from hetserve.control.messages import Int32s, MoveKv, RunStep
from hetserve.spec.cluster import CPU, Stretch
from hetserve.spec.cluster import Link as DeclaredLink

PATIENCE = 10.0  # a peer may take this many times the predicted step time ...
PATIENCE_MIN_S = 5.0  # ... and never less than this, before it counts as frozen (DESIGN section 9)
PEER_S = 20.0  # the least that workers wait for each other in a move


def patience_s(predicted_s: float) -> float:
    """How long one device may be waited for in a step of this length."""
    return max(PATIENCE_MIN_S, PATIENCE * predicted_s)


@dataclass(frozen=True)
class PoolLayout:
    """The KV pages of one device for one stage."""

    device: str
    pages: int


@dataclass(frozen=True)
class StageLayout:
    """A range of layers and who serves it."""

    layers: tuple[int, int]  # [first, last)
    weights: str  # dtype the weights are stored and multiplied in
    pools: tuple[PoolLayout, ...]  # the primary's first, then the attention workers'
    first_pool: int  # number of pools[0] within the group

    @property
    def primary(self) -> str:
        return self.pools[0].device


@dataclass(frozen=True)
class GroupLayout:
    """One replica of the model: its stages, and whether KV is handed to or from other groups."""

    stages: tuple[StageLayout, ...]
    hands_over: bool

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device of the group once, in the order of its pools."""
        return tuple(dict.fromkeys(pool.device for stage in self.stages for pool in stage.pools))

    @property
    def reporter(self) -> str:
        """The device that samples and answers steps: the last stage's primary."""
        return self.stages[-1].primary

    def pool_device(self, pool: int) -> str:
        """The device of a pool, by its number in the group."""
        return [one.device for stage in self.stages for one in stage.pools][pool]


@dataclass(frozen=True)
class Gpu:
    """One of the plan's devices that are GPUs."""

    device: str
    kind: str  # as in the cluster file
    index: int  # which of its node
    node: str = ""  # empty: the node the controller runs on


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told once, at its start: itself, and the whole layout, from which it takes its parts and its peers."""

    device: str  # the device's name in the cluster file
    cores: tuple[int, ...]  # the CPU cores it is pinned to
    isa: str  # caps every library; empty: whatever the cores have
    model_folder: str
    dtype: str  # "bfloat16" or "float32", of activations and KV
    groups: tuple[GroupLayout, ...]
    page_tokens: int
    max_seqs: int
    max_model_len: int
    meeting: str  # where the workers' connections find each other: a folder, or tcp://HOST:PORT of a torch TCPStore
    stretch: Stretch | None = None  # sleeps so much; its results are emulated
    slowed: tuple[DeclaredLink, ...] = ()  # links from and to this device that are to be no better than declared
    address: str = "127.0.0.1"  # of the interface on which this worker's peers reach it
    kind: str = CPU  # as in the cluster file
    index: int = 0  # which GPU
    gpus: tuple[Gpu, ...] = ()  # the plan's devices that are GPUs
    peer_s: float = PEER_S  # how long a peer may leave a chunk of a move waiting: longer than its steps in flight

    def peers(self) -> tuple[str, ...]:
        """The devices this one exchanges data with, in alphabetical order."""
        mine = [group for group in self.groups if self.device in group.devices]
        near = [group for group in self.groups if group in mine or (group.hands_over and any(one.hands_over for one in mine))]
        return tuple(sorted({device for group in near for device in group.devices} - {self.device}))


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its parts, is connected with its peers, and waits for steps."""

    isa: str  # the kernels' instruction set in use
    threads: int
    weight_bytes: int
    kv_bytes: int


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities at one sampled position, before temperature."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, logprob), most likely first


@dataclass(frozen=True)
class StepResult:
    """What the last stage's primary answers to a step."""

    step: int
    group: int
    tokens: Int32s  # [sampled], in the step's sampling order; those of sequences that needed a lost device mean nothing
    logprobs: tuple[TokenLogprobs | None, ...]  # empty, or one entry per sampled row
    step_s: float
    # where the time went: prepare, model (of it waiting for attention workers: remote), sample; on a GPU, model is putting it there, and sample lasts
    # until its tokens are on the host, also while the device does a step before it
    parts_s: dict[str, float]
    lost: tuple[str, ...] = ()  # devices of the group that did not answer, in this step or before


@dataclass(frozen=True)
class MoveResult:
    """A MoveKv was carried out (the target says so) or failed (either side does)."""

    move: int
    ok: bool
    lost: str = ""  # the device at the other end, which did not answer a primary


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on. `kind` names an error class of hetserve.errors, or is empty for a bug of ours (`message` is the traceback)."""

    kind: str
    message: str
    hint: str


TO_WORKER = Codec(RunStep, MoveKv)
FROM_WORKER = Codec(Ready, StepResult, MoveResult, Failed)
