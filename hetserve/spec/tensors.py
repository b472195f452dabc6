"""Which tensors a checkpoint of a given shape holds: Hugging Face names and shapes. The one place that spells these names.

Linear weights are [out, in]. A tied output matrix has no entry of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetserve.spec.model import ModelSpec

Shapes = dict[str, tuple[int, ...]]
LM_HEAD = "lm_head.weight"


def tensor_shapes(spec: ModelSpec, first: int = 0, last: int | None = None) -> Shapes:
    """Names and shapes of a stage's tensors: layers [first, last), the embedding with the first layer, norm and output matrix with the last."""
    end = spec.layers if last is None else last
    shapes: Shapes = {}
    if first == 0 or (end == spec.layers and spec.tie_embeddings):
        shapes[embedding_name(spec)] = (spec.vocab, spec.embed_dim)
    if first == 0:
        shapes.update(_opt_front(spec) if spec.family == "opt" else {})
    for layer in range(first, end):
        shapes.update(_opt_layer(spec, layer) if spec.family == "opt" else _llama_layer(spec, layer))
    if end == spec.layers:
        shapes.update(_back(spec))
    return shapes


def embedding_name(spec: ModelSpec) -> str:
    return "model.decoder.embed_tokens.weight" if spec.family == "opt" else "model.embed_tokens.weight"


def layer_prefix(spec: ModelSpec, layer: int) -> str:
    return f"model.decoder.layers.{layer}." if spec.family == "opt" else f"model.layers.{layer}."


def _linear(name: str, out: int, width: int, bias: bool) -> Shapes:
    shapes: Shapes = {name + ".weight": (out, width)}
    if bias:
        shapes[name + ".bias"] = (out,)
    return shapes


def _layer_norm(name: str, width: int) -> Shapes:
    return {name + ".weight": (width,), name + ".bias": (width,)}


def _llama_layer(spec: ModelSpec, layer: int) -> Shapes:
    at, mlp = layer_prefix(spec, layer) + "self_attn.", layer_prefix(spec, layer) + "mlp."
    shapes: Shapes = {
        layer_prefix(spec, layer) + "input_layernorm.weight": (spec.hidden,),
        layer_prefix(spec, layer) + "post_attention_layernorm.weight": (spec.hidden,),
    }
    shapes.update(_linear(at + "q_proj", spec.q_dim, spec.hidden, spec.qkv_bias))
    shapes.update(_linear(at + "k_proj", spec.kv_dim, spec.hidden, spec.qkv_bias))
    shapes.update(_linear(at + "v_proj", spec.kv_dim, spec.hidden, spec.qkv_bias))
    shapes.update(_linear(at + "o_proj", spec.hidden, spec.q_dim, spec.o_bias))
    if spec.qk_norm:
        shapes[at + "q_norm.weight"] = (spec.head_dim,)
        shapes[at + "k_norm.weight"] = (spec.head_dim,)
    shapes.update(_linear(mlp + "gate_proj", spec.intermediate, spec.hidden, spec.mlp_bias))
    shapes.update(_linear(mlp + "up_proj", spec.intermediate, spec.hidden, spec.mlp_bias))
    shapes.update(_linear(mlp + "down_proj", spec.hidden, spec.intermediate, spec.mlp_bias))
    return shapes


def _opt_layer(spec: ModelSpec, layer: int) -> Shapes:
    prefix = layer_prefix(spec, layer)
    shapes = _layer_norm(prefix + "self_attn_layer_norm", spec.hidden)
    shapes.update(_layer_norm(prefix + "final_layer_norm", spec.hidden))
    for name in ("q_proj", "k_proj", "v_proj"):
        shapes.update(_linear(prefix + "self_attn." + name, spec.hidden, spec.hidden, spec.qkv_bias))
    shapes.update(_linear(prefix + "self_attn.out_proj", spec.hidden, spec.hidden, spec.o_bias))
    shapes.update(_linear(prefix + "fc1", spec.intermediate, spec.hidden, spec.mlp_bias))
    shapes.update(_linear(prefix + "fc2", spec.hidden, spec.intermediate, spec.mlp_bias))
    return shapes


def _opt_front(spec: ModelSpec) -> Shapes:
    shapes: Shapes = {"model.decoder.embed_positions.weight": (spec.max_positions + spec.position_offset, spec.hidden)}
    if spec.embed_dim != spec.hidden:
        shapes["model.decoder.project_in.weight"] = (spec.hidden, spec.embed_dim)
    return shapes


def _back(spec: ModelSpec) -> Shapes:
    shapes: Shapes = {}
    if spec.family == "opt":
        if spec.final_norm:
            shapes.update(_layer_norm("model.decoder.final_layer_norm", spec.hidden))
        if spec.embed_dim != spec.hidden:
            shapes["model.decoder.project_out.weight"] = (spec.embed_dim, spec.hidden)
    else:
        shapes["model.norm.weight"] = (spec.hidden,)
    if not spec.tie_embeddings:
        shapes[LM_HEAD] = (spec.vocab, spec.embed_dim)
    return shapes
