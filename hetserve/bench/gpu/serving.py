"""python -m hetserve.bench.gpu.serving FILE: a 1-billion-parameter model with drawn weights, azure-conv's lengths, beside transformers' `generate`.

Both get the same prompts and give each request exactly its number of tokens, on one GPU. One request at a time, and many at once: transformers has
them as one padded batch, and goes on until the longest answer is done; a request's tokens count only up to its own length. Between them the cluster
gpu-plus-cpu by Hetis, with half of the KV that is wanted at once on the GPU and as much on the CPU, beside that half alone. Its placement is "dealt":
the exact one needs scipy, which such a machine may lack.

Floors: every step reads the weights once and every sequence its KV; prompts take no bytes. Every token takes two operations a weight.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hetserve.bench.gpu.engines import LLAMA_1B, Answer, Ask, device, make_plan, serve
from hetserve.bench.gpu.report import report
from hetserve.bench.gpu.steps import read_bytes
from hetserve.bench.gpu.timing import copy_bandwidth, floors
from hetserve.engine.accelerator import make_accelerator
from hetserve.engine.model.drawn import write_drawn
from hetserve.errors import HetserveError, in_short
from hetserve.spec.cluster import CPU, CUDA
from hetserve.spec.load import load_model
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import PAGE_TOKENS, Limits, Online
from hetserve.trace import vocab
from hetserve.trace.arrivals import Arrivals
from hetserve.trace.datasets import DatasetSpec, build

TABLES = Path(__file__).resolve().parents[3] / "workloads" / "lengths"
ALONE, TOGETHER, MANY = 4, 48, 256  # requests
LONGEST = 2048  # prompt and answer together, tokens
STEP_TOKENS = 4096
MIXED, WARM_UP = 32, 4  # requests
ALONE_ASKED, PADDED = "one at a time", "one padded batch"
Told = tuple[Sequence[Ask], dict[str, Any]]
System = Callable[[Path, str, Sequence[Ask], int, int], Iterator[Told]]  # (model, kind of device, requests, so many alone, so many together)


def rows(
    system: System,
    kind: str = CUDA,
    config: Mapping[str, Any] = LLAMA_1B,
    alone: int = ALONE,
    together: int = TOGETHER,
    many: int = MANY,
    longest: int = LONGEST,
    bandwidth: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One row a way of asking.

    Args:
        system: `ours` or `theirs`.
        bandwidth: bytes read and written a second; None: measured on the GPU.
    """
    rate = bandwidth or copy_bandwidth(make_accelerator(kind))
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_drawn(Path(scratch, "drawn"), config)
        spec, asks = load_model(folder), requests(folder, many, longest)
        for asked, row in system(folder, kind, asks, alone, together):
            yield row | (under(spec, asked, rate, row["asked"] == ALONE_ASKED) if asked else {})


def mixed(
    kind: str = CUDA, config: Mapping[str, Any] = LLAMA_1B, together: int = MIXED, longest: int = LONGEST, bandwidth: float | None = None
) -> Iterator[dict[str, Any]]:
    """A GPU with memory for half of the requests, alone and with as much on the CPU."""
    rate = bandwidth or copy_bandwidth(make_accelerator(kind))
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_drawn(Path(scratch, "drawn"), config)
        spec, asks = load_model(folder), requests(folder, together, longest)
        half = max(room(asks) // 2, 2 * max(room([ask]) for ask in asks))
        limits = Limits(longest, len(asks), max(STEP_TOKENS, len(asks)), 2, len(asks))
        devices = [device("gpu", kind), device("cpu", CPU)]
        for name, used, system, online in (
            ("hetserve, half the KV on the GPU", devices[:1], "uniform", Online()),
            ("hetserve by Hetis, gpu-plus-cpu", devices, "hetis", Online("dealt", 0.5)),
        ):
            plan = make_plan(spec, used, [(spec.layers, *(one.name for one in used))], half, limits, online=online, system=system)
            row: dict[str, Any] = {"system": name, "asked": "all at once"}
            try:
                (_, found), stats = serve(plan, folder, [asks[:WARM_UP], asks])
            except HetserveError as error:
                yield row | {"right": False, "fault": error.message}
                continue
            row |= told(asks, found.answers, found.took_s) | {"moves": stats["moves_total"], "steps": stats["steps_total"], "step_s": stats["step_s"]}
            yield row | ({"remote_s": stats["remote_s"]} if len(used) > 1 else {}) | under(spec, asks, rate)


def under(spec: ModelSpec, asks: Sequence[Ask], bandwidth: float, alone: bool = False) -> dict[str, float]:
    """The floors; alone: each request's steps are its own."""
    outputs = [ask.output_tokens for ask in asks]
    read = sum(sum(len(ask.prompt) + step for step in range(1, ask.output_tokens)) for ask in asks)  # tokens whose KV is read, over all steps
    seen = sum(len(ask.prompt) * (len(ask.prompt) + 1) / 2 for ask in asks)
    weights, count = read_bytes(spec), sum(outputs) if alone else max(outputs)
    flops = weights * sum(len(ask.prompt) + ask.output_tokens for ask in asks) + 4 * spec.layers * spec.q_dim * (read + seen)
    return floors(weights * count + spec.kv_bytes_per_token("bfloat16") * read, flops, bandwidth)


def room(asks: Sequence[Ask]) -> int:
    """Tokens that pools must hold to have all of them at once."""
    return sum(-(-(len(ask.prompt) + ask.output_tokens) // PAGE_TOKENS) * PAGE_TOKENS + PAGE_TOKENS for ask in asks)


def requests(folder: Path, count: int, longest: int) -> list[Ask]:
    """The first so many requests: lengths of the committed table, prompts of drawn tokens."""
    dataset = DatasetSpec("azure-conv", count, tables_dir=TABLES, most_tokens=longest)
    workload = build(dataset, Arrivals(), vocab.load(folder), longest)
    return [Ask(one.prompt, one.output_tokens) for one in workload.requests()]


def ours(folder: Path, kind: str, asks: Sequence[Ask], alone: int, together: int) -> Iterator[Told]:
    spec, longest = load_model(folder), max(len(ask.prompt) + ask.output_tokens for ask in asks)
    limits = Limits(longest, len(asks), max(STEP_TOKENS, len(asks)), 2, len(asks))
    plan = make_plan(spec, [device("gpu", kind)], [(spec.layers, "gpu")], max(room(asks), 2 * longest), limits)
    rounds = [asks, *([ask] for ask in asks[:alone]), asks[:together], asks]  # the first, unmeasured, captures graphs
    try:
        (_, *served), _ = serve(plan, folder, rounds)
    except HetserveError as error:
        yield (), {"system": "hetserve", "asked": "all at once", "right": False, "fault": error.message}
        return
    ones = [one.answers[0] for one in served[:alone]]
    yield asks[:alone], {"system": "hetserve", "asked": ALONE_ASKED} | told(asks[:alone], ones, sum(one.at_s[-1] for one in ones))
    for found in served[alone:]:
        asked = asks[: len(found.answers)]
        yield asked, {"system": "hetserve", "asked": "all at once"} | told(asked, found.answers, found.took_s)


def theirs(folder: Path, kind: str, asks: Sequence[Ask], alone: int, together: int) -> Iterator[Told]:
    """Whatever goes wrong there is a row that says so."""
    asked = ALONE_ASKED
    try:
        for found, row in generated(folder, kind, asks, alone, together):
            yield found, row
            asked = PADDED
    except Exception as error:
        yield (), {"system": "transformers", "asked": asked, "right": False, "fault": in_short(error)}


def generated(folder: Path, kind: str, asks: Sequence[Ask], alone: int, together: int) -> Iterator[Told]:
    from transformers import AutoConfig, AutoModelForCausalLM  # late: seconds of imports

    with torch.device("cuda" if kind == CUDA else "cpu"), torch.inference_mode():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()
        generate(model, [Ask(ask.prompt, 4) for ask in asks[:together]])  # unmeasured
        ones = [generate(model, [ask])[0] for ask in asks[:alone]]
        yield asks[:alone], {"system": "transformers", "asked": ALONE_ASKED} | told(asks[:alone], ones, sum(one.at_s[-1] for one in ones))
        began_s = time.monotonic()
        found = generate(model, asks[:together])
        took_s = time.monotonic() - began_s
        yield asks[:together], {"system": "transformers", "asked": PADDED} | told(asks[:together], found, took_s)


def generate(model: Any, asks: Sequence[Ask]) -> list[Answer]:
    """One batch, padded on the left, until its longest answer is done."""
    width, most = max(len(ask.prompt) for ask in asks), max(ask.output_tokens for ask in asks)
    ids = torch.tensor([[0] * (width - len(ask.prompt)) + list(ask.prompt) for ask in asks])
    mask = torch.tensor([[0] * (width - len(ask.prompt)) + [1] * len(ask.prompt) for ask in asks])
    watch = Watch()
    lengths = {"max_new_tokens": most, "min_new_tokens": most}
    model.generate(ids, attention_mask=mask, **lengths, do_sample=False, eos_token_id=None, pad_token_id=0, streamer=watch)
    tokens = [list(column) for column in zip(*watch.tokens, strict=True)]
    return [Answer(mine[: ask.output_tokens], watch.at_s[: ask.output_tokens]) for ask, mine in zip(asks, tokens, strict=True)]


class Watch:
    """What transformers calls a streamer: gets the prompts, then every step's tokens on the CPU."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.at_s: list[float] = []
        self._began_s = time.monotonic()
        self._prompts = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompts:
            self.tokens.append(value.flatten().tolist())
            self.at_s.append(time.monotonic() - self._began_s)
        self._prompts = False

    def end(self) -> None:
        return


def told(asks: Sequence[Ask], answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The metrics, as `vllm bench serve` names them; times to the first token include waiting for others."""
    output = sum(ask.output_tokens for ask in asks)
    return {
        "requests": len(asks),
        "total_input_tokens": sum(len(ask.prompt) for ask in asks),
        "total_output_tokens": output,
        "duration": seconds,
        "output_throughput": output / seconds,
        "mean_ttft_ms": statistics.mean(one.ttft_s for one in answers) * 1e3,
        "mean_tpot_ms": statistics.mean(one.tpot_s for one in answers) * 1e3,
        "right": all(len(one.tokens) == ask.output_tokens for ask, one in zip(asks, answers, strict=True)),
    }


if __name__ == "__main__":
    sys.exit(report("serving", itertools.chain(rows(ours), mixed(), rows(theirs)), Path(sys.argv[1])))
