"""python -m hetserve.bench.gpu.steps FILE: a decode step of an 8-billion-parameter model with drawn weights, beside the two floors under it.

The floors: the bytes that a step must read (weights without the embedding table, of which it reads a row a request, and KV) at the bandwidth of a
copy measured in the same run, and its operations at the peak of the data sheet. A step is timed as a client sees it: from one token to the next,
with controller, sampler and everything between. As one graph, as the pieces that it is while head groups lie elsewhere, and without graphs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetserve.bench.gpu.engines import EAGER, GRAPHS, LLAMA_8B, PIECES, Ask, device, launching, make_plan, serve, step_s
from hetserve.bench.gpu.report import report
from hetserve.bench.gpu.timing import copy_bandwidth, floors
from hetserve.engine.accelerator import make_accelerator
from hetserve.engine.model.drawn import write_drawn
from hetserve.errors import HetserveError
from hetserve.spec.cluster import CUDA
from hetserve.spec.load import load_model
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Limits

BATCHES = (64, 1, 8)  # the one that is judged first
CONTEXT = 1024  # tokens of each prompt
STEPS = 48  # while all decode
STEP_TOKENS = 4096  # of prompts a step


def rows(
    kind: str = CUDA,
    config: Mapping[str, Any] = LLAMA_8B,
    batches: Sequence[int] = BATCHES,
    context: int = CONTEXT,
    steps: int = STEPS,
    bandwidth: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One row a way of launching and batch.

    Args:
        bandwidth: bytes read and written a second; None: measured on the GPU before each engine starts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_drawn(Path(scratch, "drawn"), config)
        spec = load_model(folder)
        for launched in (GRAPHS, PIECES, EAGER):
            rate = bandwidth or copy_bandwidth(make_accelerator(kind))
            try:
                with launching(launched):
                    found = measured(spec, folder, kind, batches, context, steps)
            except HetserveError as error:
                yield {"launched": launched, "right": False, "fault": error.message}
                continue
            for batch, result in found.items():
                yield {"launched": launched, "batch": batch, "context": context, "copy_gbs": rate * 1e-9, **figures(spec, batch, rate, result)}


@dataclass(frozen=True)
class Measured:
    """Seconds a step, of its parts on average, and how long a sequence was on average, in tokens."""

    step_s: float
    parts_s: Mapping[str, float]
    length: float


def measured(spec: ModelSpec, folder: Path, kind: str, batches: Sequence[int], context: int, steps: int) -> dict[int, Measured]:
    """Each batch in turn in one engine, after the first has been served once unmeasured, which warms up and captures what is not yet."""
    step_tokens = max(min(STEP_TOKENS, max(batches) * context), max(batches))
    outputs = {batch: steps + 2 * -(-batch * context // step_tokens) + 4 for batch in batches}  # the first have tokens left when the last one begins
    longest = context + max(outputs.values())
    limits = Limits(longest, max(batches), step_tokens, 2, max(batches))
    plan = make_plan(spec, [device("gpu", kind)], [(spec.layers, "gpu")], max(batches) * (longest + 16), limits)
    asked = [[Ask(prompt(spec, i, context), outputs[batch]) for i in range(batch)] for batch in batches]
    (_, *served), _ = serve(plan, folder, [asked[0], *asked])
    return {
        batch: Measured(step_s(round_.answers), round_.decoding, context + outputs[batch] / 2) for batch, round_ in zip(batches, served, strict=True)
    }


def prompt(spec: ModelSpec, number: int, context: int) -> list[int]:
    return [(7 * number + 3 * j) % (spec.vocab - 5) + 5 for j in range(context)]


def figures(spec: ModelSpec, batch: int, bandwidth: float, found: Measured) -> dict[str, Any]:
    weight_bytes, kv_bytes = read_bytes(spec), int(batch * found.length * spec.kv_bytes_per_token("bfloat16"))
    attention = 4 * spec.layers * spec.q_dim * found.length
    under = floors(weight_bytes + kv_bytes, batch * (weight_bytes + attention), bandwidth)  # 2 operations a weight of 2 bytes
    return {
        "step_s": found.step_s,
        "tokens_per_s": batch / found.step_s,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        **under,
        "times_the_floor": found.step_s / under["floor_bytes_s"],
        **{f"worker_{part}": seconds for part, seconds in found.parts_s.items() if part != "controller_s"},
        "controller_s": found.parts_s.get("controller_s", 0.0),
    }


def read_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that every step reads, in bfloat16; a tied table is read as the output matrix."""
    table = 0 if spec.tie_embeddings else spec.vocab * spec.embed_dim * 2
    return spec.weight_bytes("bfloat16") - table


if __name__ == "__main__":
    sys.exit(report("step", rows(), Path(sys.argv[1])))
