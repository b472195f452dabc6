"""The small ops of a step of an 8-billion-parameter model: time beside that of their bytes at the bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from hetserve import _C
from hetserve.bench.gpu.timing import COPY_BYTES, Run, copying, differ, floors, give_back, graphed, timed
from hetserve.engine.accelerator import Accelerator

ROWS = (64, 4096)
HIDDEN, INNER, Q_HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14336, 32, 8, 128, 128256
SAMPLED = 256  # rows of logits at most


@dataclass(frozen=True)
class Op:
    call: Run
    rows: int
    moved_bytes: int
    flops: int
    got: torch.Tensor
    want: torch.Tensor
    tolerance: float = 2**-7


def rows(at: Accelerator, counts: Sequence[int] = ROWS, copy_bytes: int = COPY_BYTES, vocab: int = VOCAB) -> Iterator[dict[str, Any]]:
    """One row an op and number of rows."""
    copy, copied_bytes = copying(at, copy_bytes)
    for count in counts:
        found = ops(at, count, vocab)
        right = {name: judged(op) for name, op in found.items()}
        times = timed(at, {"copy": copy, **{name: graphed(at, op.call) for name, op in found.items() if right[name]}})
        for name, op in found.items():
            row: dict[str, Any] = {"what": name, "rows": op.rows, "right": right[name]}
            if right[name]:
                row |= {"seconds": times[name], "share_of_copy": op.moved_bytes / times[name] / (copied_bytes / times["copy"])}
            yield row | floors(op.moved_bytes, op.flops, copied_bytes / times["copy"])
        give_back()


def judged(op: Op) -> bool:
    op.call()
    return differ(op.got, op.want) <= op.tolerance


def ops(at: Accelerator, n: int, vocab: int) -> dict[str, Op]:
    """The ops on their inputs, what they are to be, and the operations counted generously: all are far below the other floor."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=at.device).bfloat16()

    x, residual, weight, gate_up = random(n, HIDDEN), random(n, HIDDEN), random(HIDDEN), random(n, 2 * INNER)
    q, k = random(n, Q_HEADS * HEAD_DIM), random(n, KV_HEADS * HEAD_DIM)
    out, inner = torch.full_like(x, torch.nan), gate_up.new_full((n, INNER), torch.nan)
    angles, positions = torch.rand(8192, HEAD_DIM // 2, device=at.device) * 6.28, torch.arange(n, device=at.device).int()
    cos_sin = torch.stack([angles.cos(), angles.sin()], 1)
    logits = random(min(n, SAMPLED), vocab)
    tokens = torch.full((len(logits),), -1, dtype=torch.int32, device=at.device)
    normal = functional.rms_norm((x + residual).float(), (HIDDEN,), weight.float(), 1e-5)
    gate, up = gate_up.float().chunk(2, -1)
    turned, (c, s) = q.float().view(n, Q_HEADS, 2, -1), (angles[:n].cos()[:, None], angles[:n].sin()[:, None])
    turned = torch.stack([turned[:, :, 0] * c - turned[:, :, 1] * s, turned[:, :, 1] * c + turned[:, :, 0] * s], 2).view(n, -1)
    return {
        "add_rms_norm": Op(partial(_C.add_rms_norm, x, residual, weight, out, 1e-5), n, 4 * x.nbytes, 5 * x.numel(), out, normal),
        "silu_mul": Op(partial(_C.silu_mul, gate_up, inner), n, gate_up.nbytes + inner.nbytes, 6 * inner.numel(), inner, functional.silu(gate) * up),
        "rope": Op(partial(_C.rope, q, k, positions, cos_sin, HEAD_DIM), n, 2 * (q.nbytes + k.nbytes), 3 * (q.numel() + k.numel()), q, turned),
        "argmax": Op(partial(_C.argmax, logits, tokens), len(logits), logits.nbytes, logits.numel(), tokens, logits.float().argmax(-1), 0.0),
    }
