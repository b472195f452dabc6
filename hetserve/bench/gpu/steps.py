"""python -m hetserve.bench.gpu.steps FILE: a decode step of an 8-billion-parameter model with drawn weights, beside the two floors under it.

The floors: the bytes that a step must read (weights without the embedding table, of which it reads a row a request, and KV) at the bandwidth of a
copy measured in the same run, and its operations at the peak of the data sheet. A step is timed as a client sees it: from one token to the next,
with controller, sampler and everything between.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hetserve.bench.gpu.engines import LLAMA_8B, Ask, device, eager, make_plan, serve, step_s
from hetserve.bench.gpu.kernels import DENSE_FLOPS, copying, timed
from hetserve.bench.gpu.report import report
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
    """One row a batch, captured and eager.

    Args:
        bandwidth: bytes read and written a second; None: measured on the GPU before each engine starts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_drawn(Path(scratch, "drawn"), config)
        spec = load_model(folder)
        for launched in ("graphs", "eager"):
            rate = bandwidth or copy_bandwidth()
            for batch in batches:
                row = {"launched": launched, "batch": batch, "context": context, "copy_gbs": rate * 1e-9}
                with eager(launched == "eager"):
                    yield row | measured(spec, folder, kind, batch, context, steps, rate)


def measured(spec: ModelSpec, folder: Path, kind: str, batch: int, context: int, steps: int, bandwidth: float) -> dict[str, Any]:
    """One batch, served twice: the first time captures graphs and warms up."""
    step_tokens = max(min(STEP_TOKENS, batch * context), batch)
    output = steps + 2 * -(-batch * context // step_tokens) + 4  # those that begin first have tokens left when the last one begins
    longest = context + output
    plan = make_plan(spec, [device("gpu", kind)], [(spec.layers, "gpu")], batch * (longest + 16), Limits(longest, batch, step_tokens, 2, batch))
    asks = [Ask([(7 * i + 3 * j) % (spec.vocab - 5) + 5 for j in range(context)], output) for i in range(batch)]
    try:
        (_, served), _ = serve(plan, folder, [asks, asks])
        found_s = step_s(served.answers)
    except HetserveError as error:
        return {"right": False, "fault": error.message}
    length = context + output / 2
    weight_bytes, kv_bytes = read_bytes(spec), int(batch * length * spec.kv_bytes_per_token("bfloat16"))
    attention = 4 * spec.layers * spec.q_dim * length
    flops = batch * (weight_bytes + attention)  # 2 a weight of 2 bytes
    floor_s = (weight_bytes + kv_bytes) / bandwidth
    return {
        "step_s": found_s,
        "tokens_per_s": batch / found_s,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "floor_bytes_s": floor_s,
        "flops": flops,
        "floor_flops_s": flops / DENSE_FLOPS,
        "times_the_floor": found_s / floor_s,
        **{f"worker_{part}": seconds for part, seconds in served.decoding.items() if part != "controller_s"},
        "controller_s": served.decoding.get("controller_s", 0.0),
    }


def read_bytes(spec: ModelSpec) -> int:
    """Bytes of the weights that every step reads, in bfloat16; a tied table is read as the output matrix."""
    table = 0 if spec.tie_embeddings else spec.vocab * spec.embed_dim * 2
    return spec.weight_bytes("bfloat16") - table


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy on the GPU."""
    copy, copy_bytes = copying()
    found = copy_bytes / timed({"copy": copy})["copy"]
    del copy
    torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    sys.exit(report("step", rows(), Path(sys.argv[1])))
