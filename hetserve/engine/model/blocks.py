"""One decoder layer without its attention: q, k, v before it, the output projection, norms and MLP after it.

Every family is one of these with parts present or absent; what differs is decided when the block is built, not when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hetserve import _C
from hetserve.engine.model.linear import Linear
from hetserve.engine.model.norms import LayerNorm, Norm, RmsNorm
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import layer_prefix

Get = Callable[[str], torch.Tensor]  # a tensor of the checkpoint by name, in the model's dtype and on its device, ours to keep


class Projection:
    """Hidden rows -> q, k, v, after bias, qk-norm and rope."""

    def __init__(self, spec: ModelSpec, qkv: Linear, q_norm: RmsNorm | None, k_norm: RmsNorm | None, cos_sin: torch.Tensor | None) -> None:
        self._qkv, self._q_norm, self._k_norm, self._cos_sin = qkv, q_norm, k_norm, cos_sin
        self._head_dim = spec.head_dim
        self._sizes = [spec.q_dim, spec.kv_dim, spec.kv_dim]

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: [rows, hidden], positions: int32 [rows] -> q [rows, q_heads * head_dim], k, v [rows, kv_heads * head_dim], views of one buffer."""
        q, k, v = self._qkv(x).split(self._sizes, dim=1)
        if self._q_norm is not None and self._k_norm is not None:
            self._q_norm.in_place(q.unflatten(1, (-1, self._head_dim)))
            self._k_norm.in_place(k.unflatten(1, (-1, self._head_dim)))
        if self._cos_sin is not None:
            _C.rope(q, k, positions, self._cos_sin, self._head_dim)
        return q, k, v


class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self._gate_up, self._down = gate_up, down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self._gate_up(x)
        inner = x.new_empty((x.shape[0], self._down.in_features))
        _C.silu_mul(gate_up, inner)
        return self._down(inner)


class PlainMlp:
    """fc2(act(fc1(x))), the activation inside the first product."""

    def __init__(self, fc1: Linear, fc2: Linear) -> None:
        self._fc1, self._fc2 = fc1, fc2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._fc2(self._fc1(x))


@dataclass(frozen=True)
class Block:
    attention_norm: Norm
    project: Projection
    output: Linear
    mlp_norm: Norm
    mlp: GatedMlp | PlainMlp


def build_block(spec: ModelSpec, layer: int, get: Get, cos_sin: torch.Tensor | None) -> Block:
    """The block of one layer, its weights packed; what is packed is no longer held unpacked."""
    return _opt(spec, layer_prefix(spec, layer), get) if spec.family == "opt" else _llama_like(spec, layer_prefix(spec, layer), get, cos_sin)


def _llama_like(spec: ModelSpec, prefix: str, get: Get, cos_sin: torch.Tensor | None) -> Block:
    at, mlp = prefix + "self_attn.", prefix + "mlp."
    q_norm = RmsNorm(get(at + "q_norm.weight"), spec.norm_eps) if spec.qk_norm else None
    k_norm = RmsNorm(get(at + "k_norm.weight"), spec.norm_eps) if spec.qk_norm else None
    return Block(
        RmsNorm(get(prefix + "input_layernorm.weight"), spec.norm_eps),
        Projection(spec, _linear(get, [at + "q_proj", at + "k_proj", at + "v_proj"], spec.qkv_bias), q_norm, k_norm, cos_sin),
        _linear(get, [at + "o_proj"], spec.o_bias),
        RmsNorm(get(prefix + "post_attention_layernorm.weight"), spec.norm_eps),
        GatedMlp(_linear(get, [mlp + "gate_proj", mlp + "up_proj"], spec.mlp_bias), _linear(get, [mlp + "down_proj"], spec.mlp_bias)),
    )


def _opt(spec: ModelSpec, prefix: str, get: Get) -> Block:
    at = prefix + "self_attn."
    return Block(
        layer_norm(spec, prefix + "self_attn_layer_norm", get),
        Projection(spec, _linear(get, [at + "q_proj", at + "k_proj", at + "v_proj"], spec.qkv_bias), None, None, None),
        _linear(get, [at + "out_proj"], spec.o_bias),
        layer_norm(spec, prefix + "final_layer_norm", get),
        PlainMlp(_linear(get, [prefix + "fc1"], spec.mlp_bias, spec.activation), _linear(get, [prefix + "fc2"], spec.mlp_bias)),
    )


def layer_norm(spec: ModelSpec, name: str, get: Get) -> LayerNorm:
    return LayerNorm(get(name + ".weight"), get(name + ".bias"), spec.norm_eps)


def _linear(get: Get, names: list[str], has_bias: bool, activation: str = "none") -> Linear:
    """One product for several matrices that share their input, stacked by output."""
    weight = torch.cat([get(name + ".weight") for name in names])
    bias = torch.cat([get(name + ".bias") for name in names]) if has_bias else None
    return Linear(weight, bias, activation)
