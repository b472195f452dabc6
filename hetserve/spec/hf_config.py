"""Reads a Hugging Face `config.json` dictionary into a ModelSpec. Untrusted input: every field's type and range is checked.

Defaults for absent fields are those of the transformers configuration class of the same family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetserve.errors import ModelError, UnsupportedError
from hetserve.spec.model import DTYPE_BYTES, FAMILIES, ModelSpec, RopeSpec

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "OPTForCausalLM": "opt",
}
SUPPORTED = "supported: " + ", ".join(ARCHITECTURES)
MOST = 1 << 22  # no count in a real config is larger; keeps products far from overflow

# transformers' own defaults where families differ (configuration_<family>.py, transformers 4 and 5 agree on these)
_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "opt": 2048}
_EOS = {"llama": 2, "mistral": 2, "qwen2": None, "qwen3": None, "opt": 2}
_BOS = {"llama": 1, "mistral": 1, "qwen2": None, "qwen3": None, "opt": 2}


@dataclass(frozen=True)
class _Fields:
    """Typed access to an untrusted dictionary."""

    values: Mapping[str, Any]
    where: str = "config.json"

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ModelError(f"{self.where} needs a whole number from 1 to {most} for '{key}', got {_short(value)}.")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ModelError(f"{self.where} needs a positive number for '{key}', got {_short(value)}.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.where} needs true or false for '{key}', got {_short(value)}.")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ModelError(f"{self.where} needs a string for '{key}', got {_short(value)}.")
        return value


def parse(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None, name: str) -> ModelSpec:
    """See ModelSpec.from_hf."""
    if not isinstance(config, Mapping) or not isinstance(generation_config, Mapping | None):
        raise ModelError("config.json must hold one JSON object.")
    family = _family(config)
    _refuse_unsupported(config)
    fields = _Fields(config)
    shape = _opt(fields) if family == "opt" else _llama_like(fields, family)
    vocab = fields.count("vocab_size", 50272 if family == "opt" else 151936 if family.startswith("qwen") else 32000)
    spec = ModelSpec(
        name=name or family,
        family=family,
        vocab=vocab,
        layers=fields.count("num_hidden_layers", most=4096),
        hidden=fields.count("hidden_size"),
        max_positions=fields.count("max_position_embeddings", _POSITIONS[family], most=1 << 31),
        bos_token_id=_bos(config, family, vocab),
        eos_token_ids=_eos(config, generation_config or {}, family, vocab),
        dtype=_dtype(fields),
        **shape,
    )
    _check(spec)
    return spec


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    kind = config.get("model_type")
    if names is None and kind is None:
        raise ModelError("config.json names neither 'architectures' nor 'model_type'.", "Is this the folder of a Hugging Face language model?")
    if names is None:
        if kind not in FAMILIES:
            raise UnsupportedError(f"The model type {_short(kind)} is not supported.", SUPPORTED + ".")
        return str(kind)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"config.json needs a list of one name for 'architectures', got {_short(names)}.", SUPPORTED + ".")
    family = ARCHITECTURES.get(names[0])
    if family is None:
        raise UnsupportedError(f"The architecture {_short(names[0])} is not supported.", SUPPORTED + ".")
    if kind is not None and kind != family:
        raise ModelError(f"config.json contradicts itself: architecture {names[0]}, model_type {_short(kind)}.")
    return family


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None or config.get("compression_config") is not None:
        raise UnsupportedError("Quantised checkpoints are not supported.", "Use the bfloat16, float16 or float32 checkpoint of the model.")
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise UnsupportedError("Mixture-of-experts models are not supported.", SUPPORTED + ", each without experts.")
    for key in ("vision_config", "audio_config"):
        if config.get(key) is not None:
            raise UnsupportedError("Models that take images or sound are not supported.", SUPPORTED + ".")


def _llama_like(fields: _Fields, family: str) -> dict[str, Any]:
    hidden, q_heads = fields.count("hidden_size"), fields.count("num_attention_heads", most=4096)
    kv_default = 8 if family == "mistral" and "num_key_value_heads" not in fields.values else q_heads
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(f"The activation {_short(activation)} is not supported in {family} models.", "supported: silu.")
    bias = fields.flag("attention_bias", False) if family in ("llama", "qwen3") else False
    window, full_layers = _windows(fields, family)
    return {
        "q_heads": q_heads,
        "kv_heads": fields.count("num_key_value_heads", kv_default, most=4096),
        "head_dim": _head_dim(fields, family, hidden, q_heads),
        "intermediate": fields.count("intermediate_size"),
        "norm": "rms",
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "rope": _rope(fields),
        "qkv_bias": bias or family == "qwen2",
        "o_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False) if family == "llama" else False,
        "qk_norm": family == "qwen3",
        "activation": "silu",
        "gated": True,
        "norm_before": True,
        "final_norm": True,
        "tie_embeddings": fields.flag("tie_word_embeddings", False),
        "embed_dim": hidden,
        "position_offset": 0,
        "sliding_window": window,
        "full_layers": full_layers,
    }


def _opt(fields: _Fields) -> dict[str, Any]:
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads", most=4096)
    activation = fields.text("activation_function", "relu")
    if activation not in ("relu", "gelu"):
        raise UnsupportedError(f"The activation {_short(activation)} is not supported in OPT models.", "supported: relu, gelu.")
    if not fields.flag("layer_norm_elementwise_affine", True):
        raise UnsupportedError("OPT models whose layer norms have no weights are not supported.")
    if hidden % heads:
        raise ModelError(f"config.json has hidden_size {hidden}, which is not a multiple of num_attention_heads {heads}.")
    bias, before = fields.flag("enable_bias", True), fields.flag("do_layer_norm_before", True)
    return {
        "q_heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "intermediate": fields.count("ffn_dim", 3072),
        "norm": "layer",
        "norm_eps": 1e-5,  # torch.nn.LayerNorm's default: OPT's config has no field for it
        "rope": None,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bias,
        "qk_norm": False,
        "activation": activation,
        "gated": False,
        "norm_before": before,
        "final_norm": before and not fields.flag("_remove_final_layer_norm", False),
        "tie_embeddings": fields.flag("tie_word_embeddings", True),
        "embed_dim": fields.count("word_embed_proj_dim", hidden),
        "position_offset": 2,
        "sliding_window": None,
        "full_layers": 0,
    }


def _head_dim(fields: _Fields, family: str, hidden: int, q_heads: int) -> int:
    if fields.values.get("head_dim") is not None:
        return fields.count("head_dim", most=4096)
    if family == "qwen3":
        return 128
    if hidden % q_heads:
        raise ModelError(f"config.json has hidden_size {hidden}, which is not a multiple of num_attention_heads {q_heads}, and no head_dim.")
    return hidden // q_heads


def _rope(fields: _Fields) -> RopeSpec:
    """transformers 4 wrote `rope_theta` and `rope_scaling`, transformers 5 writes both in `rope_parameters`."""
    merged: dict[str, Any] = {"rope_theta": fields.values.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        part = fields.values.get(key)
        if part is not None and not isinstance(part, Mapping):
            raise ModelError(f"config.json needs an object for '{key}', got {_short(part)}.")
        merged.update(part or {})
    rope = _Fields(merged, "config.json's rope parameters")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedError(f"Rope scaling of kind {_short(kind)} is not supported.", "supported: default, linear, llama3.")
    for owner in (fields, rope):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedError("Rotary embedding over a part of each head is not supported.")
    theta = rope.number("rope_theta", 10000.0)
    if kind == "default":
        return RopeSpec(theta)
    if merged.get("factor") is None:
        raise ModelError(f"config.json has rope scaling of kind {kind} without a 'factor'.")
    if kind == "linear":
        return RopeSpec(theta, kind, rope.number("factor", 1.0))
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    if low >= high:
        raise ModelError(f"config.json's llama3 rope scaling needs low_freq_factor < high_freq_factor, got {low} and {high}.")
    original = rope.count("original_max_position_embeddings", fields.count("max_position_embeddings", 2048, 1 << 31), 1 << 31)
    return RopeSpec(theta, kind, rope.number("factor", 1.0), low, high, original)


def _windows(fields: _Fields, family: str) -> tuple[int | None, int]:
    """(sliding window, how many leading layers ignore it)."""
    if family == "llama":
        return None, 0
    if family == "mistral":
        if "sliding_window" in fields.values and fields.values["sliding_window"] is None:
            return None, 0
        return fields.count("sliding_window", 4096, most=1 << 31), 0
    if not fields.flag("use_sliding_window", False) or fields.values.get("sliding_window", 4096) is None:
        return None, 0
    window, layers = fields.count("sliding_window", 4096, most=1 << 31), fields.count("num_hidden_layers", most=4096)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        full = fields.values.get("max_window_layers", 28)
        return window, 0 if full == 0 else fields.count("max_window_layers", 28, most=1 << 31)
    if not isinstance(kinds, list) or len(kinds) != layers or set(map(str, kinds)) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"config.json needs {layers} of full_attention or sliding_attention in 'layer_types'.")
    if kinds != sorted(kinds):  # "full..." sorts before "sliding..."
        raise UnsupportedError("Full attention layers after sliding-window ones are not supported.", "supported: full attention first, then sliding.")
    return window, kinds.count("full_attention")


def _token_ids(value: Any, key: str, vocab: int) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
        raise ModelError(f"config.json needs token ids for '{key}', got {_short(value)}.")
    return tuple(dict.fromkeys(one for one in ids if 0 <= one < vocab))  # some real configs carry ids past the table or -1


def _eos(config: Mapping[str, Any], generation: Mapping[str, Any], family: str, vocab: int) -> tuple[int, ...]:
    """As transformers generates: generation_config.json's ids where it has some, else config.json's."""
    value = generation.get("eos_token_id")
    if value is None:
        value = config.get("eos_token_id", _EOS[family])
    return () if value is None else _token_ids(value, "eos_token_id", vocab)


def _bos(config: Mapping[str, Any], family: str, vocab: int) -> int | None:
    value = config.get("bos_token_id", _BOS[family])
    ids = () if value is None else _token_ids(value, "bos_token_id", vocab)
    return ids[0] if ids else None


def _dtype(fields: _Fields) -> str:
    dtype = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise UnsupportedError(f"Checkpoints of dtype {_short(dtype)} are not supported.", "supported: " + ", ".join(DTYPE_BYTES) + ".")
    return dtype


def _check(spec: ModelSpec) -> None:
    if spec.q_heads % spec.kv_heads:
        raise ModelError(f"config.json has {spec.q_heads} attention heads, which is not a multiple of its {spec.kv_heads} key-value heads.")
    if spec.head_dim % 8 or spec.head_dim > 512:
        raise UnsupportedError(f"A head dimension of {spec.head_dim} is not supported.", "supported: multiples of 8 up to 512 (64 to 128 are fast).")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
