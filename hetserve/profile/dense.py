"""The dense part of a layer and the output matrix, with the engine's own blocks and random weights, by rows and by the dtype of the weights.

As in a model, a layer's weights come from memory each time: as many layers as the caches cannot hold take turns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from hetserve.engine.model.blocks import Block, build_block
from hetserve.engine.model.linear import Linear
from hetserve.engine.model.rope import cos_sin_table
from hetserve.profile.rounds import Clock, Measure, interleaved, own_clock
from hetserve.profile.tasks import DeviceTask
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import DensePoint, DenseTimes
from hetserve.spec.tensors import tensor_shapes

FEW_TOKENS = 64  # fewer are timed after a layer that is not: in a step, too, code and activations come warm from the layer before
SPREAD = 0.02  # of the random weights: small enough that nothing overflows however often a layer is run


def measure_dense(task: DeviceTask, weights: str, flush_bytes: int, tick: Callable[[], None]) -> DenseTimes:
    """Times with weights (and activations) of dtype `weights`.

    Args:
        flush_bytes: how much has to be read for the caches to forget a layer.
    """
    effort = task.effort
    layer = interleaved(layer_points(task, weights, flush_bytes), effort.rounds, tick)
    head = interleaved(_head_points(task, weights, flush_bytes), effort.rounds, tick)
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


def layer_points(task: DeviceTask, weights: str, flush_bytes: int) -> list[Measure]:
    """The dense part of a layer at each of the task's row counts."""
    model, dtype = task.model, getattr(torch, weights)
    size_bytes = layer_flops(model) // 2 * DTYPE_BYTES[weights]
    copies = min(model.layers, 1 + flush_bytes // size_bytes)
    cos_sin = cos_sin_table(model.rope, model.head_dim, max(task.effort.tokens)) if model.rope else None
    blocks = itertools.cycle([_random_block(model, layer, dtype, cos_sin) for layer in range(copies)])
    clock = own_clock(task.cores)
    return [_layer_point(model, blocks, tokens, dtype, clock) for tokens in task.effort.tokens]


def _random_block(model: ModelSpec, layer: int, dtype: torch.dtype, cos_sin: torch.Tensor | None) -> Block:
    shapes = tensor_shapes(model, layer, layer + 1)
    return build_block(model, layer, lambda name: torch.randn(shapes[name], dtype=torch.float32).mul_(SPREAD).to(dtype), cos_sin)


def _layer_point(model: ModelSpec, blocks: itertools.cycle[Block], tokens: int, dtype: torch.dtype, clock: Clock) -> Measure:
    x, residual = (torch.randn(tokens, model.hidden).to(dtype) for _ in range(2))
    attended = torch.randn(tokens, model.q_dim).to(dtype)
    positions = torch.arange(tokens, dtype=torch.int32)

    def layer() -> None:
        block = next(blocks)
        block.project(x, positions)
        inner = block.mlp_norm.add(block.output(attended), residual)
        block.attention_norm.add(block.mlp(inner), residual)

    def run() -> float:
        if tokens < FEW_TOKENS:
            layer()
        began_s = clock()
        layer()
        return clock() - began_s

    return run


def _head_points(task: DeviceTask, weights: str, flush_bytes: int) -> list[Measure]:
    model, dtype = task.model, getattr(torch, weights)
    size_bytes = head_flops(model) // 2 * DTYPE_BYTES[weights]
    copies = min(8, 1 + flush_bytes // size_bytes)
    heads = itertools.cycle([Linear(torch.randn(model.vocab, model.embed_dim).mul_(SPREAD).to(dtype)) for _ in range(copies)])
    clock = own_clock(task.cores)
    return [_head_point(heads, torch.randn(rows, model.embed_dim).to(dtype), clock) for rows in task.effort.head_rows]


def _head_point(heads: itertools.cycle[Linear], x: torch.Tensor, clock: Clock) -> Measure:
    def run() -> float:
        linear = next(heads)
        began_s = clock()
        linear(x)
        return clock() - began_s

    return run
