"""What the stages with an engine share: plans made in Python, an engine on threads of this process, and what became of each request.

Nothing here needs msgspec or ZeroMQ: a machine with a GPU and no network may have neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hetserve.bench.gpu.timing import give_back
from hetserve.control.messages import Sampling
from hetserve.engine.accelerator import CudaGpu, Run
from hetserve.engine.api import Output
from hetserve.engine.engine import Engine
from hetserve.engine.graphs import DecodeGraphs
from hetserve.engine.heads import DispatchedAttention
from hetserve.errors import BenchError, HetserveError
from hetserve.spec.cluster import CPU, CUDA, Cluster, Device, resolve_cores
from hetserve.spec.host import this_host
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import PAGE_TOKENS, Group, Limits, Online, Plan, PlanModel, Pool, Stage, page_bytes

LONGEST_S = 120.0  # no round takes so long
GPU_SHARE = 0.8  # of the GPU's memory, as workloads/clusters/gpu.toml has it
EMULATED_BYTES = 1 << 34
GRAPHS, PIECES, EAGER = "graphs", "pieces", "eager"  # how decode steps are launched
PARTS = ("step_s", "prepare_s", "model_s", "sample_s", "controller_s")  # of a step, in the engine's numbers

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
LLAMA_8B = LLAMA | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "tie_word_embeddings": False,
}
LLAMA_1B = LLAMA | {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Ask:
    """One request; it gets exactly so many tokens."""

    prompt: Sequence[int]
    output_tokens: int
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Answer:
    """What it got, and when, in seconds after it was asked."""

    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)  # one for each token

    @property
    def ttft_s(self) -> float:
        return self.at_s[0]

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first; 0 of a single one."""
        return (self.at_s[-1] - self.at_s[0]) / max(1, len(self.at_s) - 1)


@dataclass
class Round:
    """What became of requests asked at once.

    Attributes:
        decoding: seconds a step, on average over those in which all requests had their first token and none its last: one for each of PARTS.
    """

    answers: list[Answer]
    decoding: dict[str, float] = field(default_factory=dict)

    @property
    def took_s(self) -> float:
        return max(answer.at_s[-1] for answer in self.answers)


def device(name: str, kind: str) -> Device:
    """A device of this machine; of GPUs the first. Those called "gpu" and "cpu" are the devices of the clusters gpu and gpu-plus-cpu."""
    host = this_host()
    memory_bytes = int(GPU_SHARE * host.gpus[0]) if kind == CUDA and host.gpus else EMULATED_BYTES
    cores = "second-half" if kind == CPU and name == "cpu" and len(host.cores) > 1 else "first-half"
    return Device(name, kind, resolve_cores(cores, host, name), "", memory_bytes)


def make_plan(
    spec: ModelSpec,
    devices: Sequence[Device],
    stages: Sequence[tuple[Any, ...]],
    tokens: int | Mapping[str, int],
    limits: Limits,
    dtype: str = "bfloat16",
    online: Online | None = None,
    system: str = "uniform",
) -> Plan:
    """One group of stages, each (last layer, primary, *attention workers), whose pools hold so many tokens with all their head groups: all as many,
    or each device its own number."""
    first, built = 0, []
    for last, *names in stages:
        held = {name: tokens if isinstance(tokens, int) else tokens[name] for name in names}
        pages = {name: math.ceil(count / PAGE_TOKENS) * spec.kv_heads for name, count in held.items()}
        pools = tuple(Pool(name, pages[name], page_bytes(spec, (first, last), dtype)) for name in names)
        built.append(Stage((first, last), (names[0],), tuple(names[1:]), pools, dtype))
        first = last
    cluster = Cluster("gpu-check", (0,), tuple(devices))
    return Plan(system, PlanModel(spec, dtype), cluster, limits, (Group("mixed", tuple(built)),), online=online or Online())


def serve(plan: Plan, folder: Path, rounds: Sequence[Sequence[Ask]]) -> tuple[list[Round], dict[str, float]]:
    """The rounds one after another, the requests of each at once; and the engine's numbers at the end. Leaves no memory taken: the next one needs it.

    Raises:
        HetserveError: the engine did not start. BenchError: a request did not get its tokens, or whatever else went wrong.
    """
    fault: HetserveError
    try:
        return asyncio.run(_serve(plan, folder, rounds))
    except HetserveError as error:  # a new one: the frames of this one hold the engine
        fault = type(error)(error.message, error.hint)
    except Exception as error:
        fault = BenchError(f"the engine failed: {type(error).__name__}: {error}")
    finally:
        gc.collect()
        give_back()
    raise fault


async def _serve(plan: Plan, folder: Path, rounds: Sequence[Sequence[Ask]]) -> tuple[list[Round], dict[str, float]]:
    engine = Engine(plan, folder, in_process=True)
    await engine.start()
    try:
        return [await _round(engine, asks) for asks in rounds], engine.stats()
    finally:
        await engine.close(drain=False)


async def _round(engine: Engine, asks: Sequence[Ask]) -> Round:
    round_ = Round([Answer() for _ in asks])
    heard = _Heard(engine, round_)
    for ask, answer in zip(asks, round_.answers, strict=True):
        engine.submit(list(ask.prompt), ask.output_tokens, 1, (), 0, ask.sampling, partial(heard, answer))
    try:
        await asyncio.wait_for(heard.ended.wait(), LONGEST_S)
    except TimeoutError:
        why = engine.health()[1] or "no fault is known"
        raise BenchError(f"{heard.left} of {len(asks)} requests were not answered within {LONGEST_S:g} s: {why}") from None
    if heard.faults:
        raise BenchError(f"{len(heard.faults)} of {len(asks)} requests ended before their last token, the first so: {heard.faults[0]}")
    return round_


class _Heard:
    """Takes the outputs of one round's requests."""

    def __init__(self, engine: Engine, round_: Round) -> None:
        self._engine, self._round = engine, round_
        self._began_s = time.monotonic()
        self._waiting = self.left = len(round_.answers)  # for their first tokens, and for their last ones
        self._before: dict[str, float] = {}
        self.ended = asyncio.Event()
        self.faults: list[str] = []

    def __call__(self, answer: Answer, output: Output) -> None:
        self._waiting -= not answer.tokens and bool(output.tokens)
        answer.tokens += output.tokens
        answer.at_s += [time.monotonic() - self._began_s] * len(output.tokens)
        if not self._waiting and not self._before:
            self._before = self._engine.stats()
        if output.finish is not None:
            self._finish(output)

    def _finish(self, output: Output) -> None:
        after = self._engine.stats()
        if self._before and not self._round.decoding and after["steps_total"] > self._before["steps_total"]:
            steps = after["steps_total"] - self._before["steps_total"]
            self._round.decoding = {part: (after.get(part, 0.0) - self._before.get(part, 0.0)) / steps for part in PARTS}
        if output.finish != "length":
            self.faults.append(f"{output.finish} {output.why}")
        self.left -= 1
        if not self.left:
            self.ended.set()


def step_s(answers: Sequence[Answer]) -> float:
    """Seconds a step while all were decoding, on average over the tokens of the first request: those of two steps may be told together.

    Raises:
        BenchError: they never all were.
    """
    begin_s, end_s = max(answer.at_s[0] for answer in answers), min(answer.at_s[-1] for answer in answers)
    inside = [at_s for at_s in answers[0].at_s if begin_s < at_s <= end_s]
    if len(inside) < 3:
        raise BenchError("the first requests had ended before the last one had its first token: ask for more tokens")
    return (inside[-1] - inside[0]) / (len(inside) - 1)


@contextlib.contextmanager
def launching(how: str) -> Iterator[None]:
    """Inside, decode steps on GPUs are one graph (GRAPHS), as they are while nothing is dispatched; a graph for each piece between two attentions
    (PIECES), as they are while something is; or every kernel is launched from Python (EAGER)."""

    def launch(gpu: CudaGpu, run: Run) -> Run:
        return run

    capture_all = DecodeGraphs.capture_all

    def with_pieces(graphs: DecodeGraphs, dispatched: bool) -> None:
        capture_all(graphs, True)

    patches: dict[str, list[AbstractContextManager[object]]] = {
        PIECES: [patch.object(DispatchedAttention, "dispatched", True), patch.object(DecodeGraphs, "capture_all", with_pieces)],
        EAGER: [patch.object(CudaGpu, "capture", launch)],
    }
    with contextlib.ExitStack() as patched:
        for one in patches.get(how, []):
            patched.enter_context(one)
        yield
