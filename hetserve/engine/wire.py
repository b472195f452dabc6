"""What a worker is told and what it answers, besides steps. Frozen data, sent as msgpack; no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.control.codec import Codec
from hetserve.control.messages import Int32s, RunStep


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker is told once, at its start."""

    device: str  # the device's name in the cluster file
    cores: tuple[int, ...]  # the CPU cores it is pinned to
    isa: str  # caps every library; empty: whatever the cores have
    model_folder: str
    dtype: str  # "bfloat16" or "float32"
    layers: tuple[int, int]  # [first, last)
    pages: int
    page_tokens: int
    max_seqs: int
    max_model_len: int


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its model and waits for steps."""

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
    """What a worker answers to a step."""

    step: int
    group: int
    tokens: Int32s  # [sampled], in the step's sampling order
    logprobs: tuple[TokenLogprobs | None, ...]  # empty, or one entry per sampled row
    step_s: float
    parts_s: dict[str, float]  # where the time went: prepare, model, sample


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on. `kind` names an error class of hetserve.errors, or is empty for a bug of ours (`message` is the traceback)."""

    kind: str
    message: str
    hint: str


TO_WORKER = Codec(RunStep)
FROM_WORKER = Codec(Ready, StepResult, Failed)
