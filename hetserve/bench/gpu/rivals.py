"""What our attention stands beside: torch's own, and FlashInfer's paged decode where that is installed and compiled.

FlashInfer compiles its kernels when they are first used, for a minute and more: `python -m hetserve.bench.gpu.rivals cores|tensor` has it do so, one
of its two ways each, and leaves a file that says so. What is not ready is not waited for. Needs nothing that hetserve builds, so it can run beside
the build.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

READY = Path(__file__).resolve().parents[3] / "build" / "gpu" / "flashinfer-ready"  # a folder with a file for each way that is compiled
WAYS = {"cores": "flashinfer", "tensor": "flashinfer on tensor cores"}
SPACE_BYTES = 256 << 20
Run = Callable[[], object]


def main() -> int:
    (way,) = sys.argv[1:]
    os.nice(19)  # and every compiler it starts
    (READY / way).unlink(missing_ok=True)
    began_s = time.monotonic()
    try:
        q = torch.zeros(1, 8, 128, device="cuda", dtype=torch.bfloat16)
        decode(q, paged(q, 16, 1, 16), way == "tensor")()
        torch.cuda.synchronize()
    except Exception as error:  # whatever is wrong with it is no reason to lose our own figures
        print(f"{WAYS[way]}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    READY.mkdir(parents=True, exist_ok=True)
    (READY / way).touch()
    print(f"{WAYS[way]}: compiled in {time.monotonic() - began_s:.0f} s")
    return 0


def flashinfer(q: torch.Tensor, length: int, kv_heads: int, page_tokens: int, free_bytes: int) -> dict[str, Run]:
    """FlashInfer's decode of these queries, [batch, q_heads, head_dim], in each way that is ready; over KV of its own, if that finds room."""
    ways = [way for way in WAYS if (READY / way).exists()]
    kv_bytes = 4 * len(q) * length * kv_heads * q.shape[2]
    if not ways or length % page_tokens or kv_bytes + 2 * len(ways) * SPACE_BYTES > free_bytes:
        return {}
    kv = paged(q, length, kv_heads, page_tokens)
    found: dict[str, Run] = {}
    for way in ways:
        try:
            found[WAYS[way]] = decode(q, kv, way == "tensor")
        except Exception as error:  # ours is timed all the same
            print(f"{WAYS[way]}: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def paged(q: torch.Tensor, length: int, kv_heads: int, page_tokens: int) -> torch.Tensor:
    """KV of `length` tokens for each query, in pages that hold all heads: [pages, 2, page_tokens, kv_heads, head_dim]."""
    shape = (len(q) * (length // page_tokens), 2, page_tokens, kv_heads, q.shape[2])
    return torch.empty(shape, device=q.device, dtype=torch.bfloat16).normal_()


def decode(q: torch.Tensor, kv: torch.Tensor, tensor_cores: bool) -> Run:
    """FlashInfer's paged decode, ready to run; the pages of a sequence follow one another."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper  # not installed here, nor on most machines

    batch, q_heads, head_dim = q.shape
    count, _, page_tokens, kv_heads, _ = kv.shape
    space = torch.empty(SPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper: Any = BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=tensor_cores)
    ends = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * (count // batch)
    last = torch.full((batch,), page_tokens, dtype=torch.int32, device=q.device)
    ids = torch.arange(count, dtype=torch.int32, device=q.device)
    types = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
    wrapper.plan(ends, ids, last, q_heads, kv_heads, head_dim, page_tokens, **types)
    return lambda: wrapper.run(q, kv)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Run:
    """torch's own attention. q: [batch, q_heads, rows, head_dim]; k, v: [batch, kv_heads, length, head_dim]."""
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


if __name__ == "__main__":
    sys.exit(main())
