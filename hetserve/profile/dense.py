"""The dense part of a layer and the output matrix, with the engine's own blocks and random weights, by rows and by the dtype of the weights.

As in a model, a layer's weights come from memory each time: as many layers as the caches cannot hold take turns. On a CPU a run is one of them, on a
GPU all of them in a row, so that launching one hides behind another as it does in a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from hetserve.engine.model.blocks import Block, build_block
from hetserve.engine.model.linear import Linear
from hetserve.engine.model.rope import cos_sin_table
from hetserve.profile.rounds import Measure, interleaved
from hetserve.profile.site import Site
from hetserve.profile.tasks import DeviceTask
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import DensePoint, DenseTimes
from hetserve.spec.tensors import tensor_shapes

FEW_TOKENS = 64  # fewer are timed after a layer that is not: in a step, too, code and activations come warm from the layer before
SPREAD = 0.02  # of the random weights: small enough that nothing overflows however often a layer is run
IN_A_ROW = 4  # layers of a run on a GPU, at least
MOST_HEADS = 8  # output matrices that take turns
Part = TypeVar("Part")


def measure_dense(task: DeviceTask, weights: str, site: Site, tick: Callable[[], None]) -> DenseTimes:
    """Times with weights (and activations) of dtype `weights`."""
    effort = task.effort
    layer = interleaved(layer_points(task, weights, site), effort.rounds, tick)
    head = interleaved(_head_points(task, weights, site), effort.rounds, tick)
    return DenseTimes(
        weights,
        tuple(DensePoint(tokens, took_s) for tokens, took_s in zip(effort.tokens, layer, strict=True)),
        tuple(DensePoint(rows, took_s) for rows, took_s in zip(effort.head_rows, head, strict=True)),
    )


def layer_flops(model: ModelSpec) -> int:
    """Floating-point operations of one layer's matrix products for one token."""
    layer = model.layers - 1
    return sum(2 * math.prod(shape) for name, shape in tensor_shapes(model, layer, layer + 1).items() if ".layers." in name and len(shape) == 2)


def head_flops(model: ModelSpec) -> int:
    """Those of the output matrix for one row."""
    return 2 * model.vocab * model.embed_dim


def layer_points(task: DeviceTask, weights: str, site: Site) -> list[Measure]:
    """The dense part of a layer at each of the task's row counts."""
    model, dtype = task.model, getattr(torch, weights)
    size_bytes = layer_flops(model) // 2 * DTYPE_BYTES[weights]
    copies = min(model.layers, 1 + site.flush_bytes // size_bytes)
    cos_sin = cos_sin_table(model.rope, model.head_dim, max(task.effort.tokens)).to(site.device) if model.rope else None
    blocks = [_random_block(site, model, layer, dtype, cos_sin) for layer in range(copies)]
    return in_turn(site, blocks, {tokens: _layer_work(site, model, tokens, dtype) for tokens in task.effort.tokens}, FEW_TOKENS)


def in_turn(site: Site, parts: Sequence[Part], works: Mapping[int, Callable[[Part], object]], few: int = 0) -> list[Measure]:
    """Seconds that each work takes on one of the parts.

    Args:
        works: by rows.
        few: with fewer rows, a CPU does a part before it, not timed.
    """
    if site.at.is_gpu:
        some = list(itertools.islice(itertools.cycle(parts), max(IN_A_ROW, len(parts))))
        return [_in_a_row(site, some, work, rows) for rows, work in works.items()]
    turn = itertools.cycle(parts)
    return [_alone(site, turn, work, rows < few) for rows, work in works.items()]


def _in_a_row(site: Site, parts: Sequence[Part], work: Callable[[Part], object], rows: int) -> Measure:
    def every() -> None:
        for part in parts:
            work(part)

    run = site.launched(every, rows)
    return lambda: site.timed(run) / len(parts)


def _alone(site: Site, turn: itertools.cycle[Part], work: Callable[[Part], object], warm: bool) -> Measure:
    def one() -> None:
        work(next(turn))

    def run() -> float:
        if warm:
            one()
        return site.timed(one)

    return run


def _random_block(site: Site, model: ModelSpec, layer: int, dtype: torch.dtype, cos_sin: torch.Tensor | None) -> Block:
    shapes = tensor_shapes(model, layer, layer + 1)
    return build_block(model, layer, lambda name: site.random(*shapes[name], dtype=torch.float32).mul_(SPREAD).to(dtype), cos_sin)


def _layer_work(site: Site, model: ModelSpec, tokens: int, dtype: torch.dtype) -> Callable[[Block], None]:
    x, residual = (site.random(tokens, model.hidden, dtype=dtype) for _ in range(2))
    attended = site.random(tokens, model.q_dim, dtype=dtype)
    positions = torch.arange(tokens, dtype=torch.int32, device=site.device)

    def layer(block: Block) -> None:
        block.project(x, positions)
        inner = block.mlp_norm.add(block.output(attended), residual)
        block.attention_norm.add(block.mlp(inner), residual)

    return layer


def _head_points(task: DeviceTask, weights: str, site: Site) -> list[Measure]:
    model, dtype = task.model, getattr(torch, weights)
    size_bytes = head_flops(model) // 2 * DTYPE_BYTES[weights]
    copies = min(MOST_HEADS, 1 + site.flush_bytes // size_bytes)
    heads = [Linear(site.random(model.vocab, model.embed_dim, dtype=torch.float32).mul_(SPREAD).to(dtype)) for _ in range(copies)]
    return in_turn(site, heads, {rows: _head_work(site.random(rows, model.embed_dim, dtype=dtype)) for rows in task.effort.head_rows})


def _head_work(x: torch.Tensor) -> Callable[[Linear], torch.Tensor]:
    return lambda linear: linear(x)
