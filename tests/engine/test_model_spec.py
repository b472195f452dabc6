"""ModelSpec.from_hf against transformers' own configuration classes, and against damaged configs."""

from __future__ import annotations

import pytest

from hetserve.errors import ModelError, UnsupportedError
from hetserve.spec.model import ModelSpec

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 8, "intermediate_size": 2816, "vocab_size": 32000, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def small(family: str, **changes: object) -> dict[str, object]:
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "opt": "OPT"}
    base: dict[str, object] = {
        "architectures": [names[family] + "ForCausalLM"], "model_type": family, "hidden_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 256,
    }  # fmt: skip
    base.update({"ffn_dim": 256} if family == "opt" else {"num_key_value_heads": 2, "intermediate_size": 256, "head_dim": 32})
    return {**base, **changes}


VARIANTS = [
    small("llama"), small("llama", attention_bias=True, mlp_bias=True), small("llama", tie_word_embeddings=True), small("mistral"),
    small("qwen2"), small("qwen3"), small("qwen3", attention_bias=True), small("opt"), small("opt", enable_bias=False),
    small("opt", do_layer_norm_before=False, word_embed_proj_dim=64), small("opt", tie_word_embeddings=False),
]  # fmt: skip


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: c["model_type"])
def test_tensor_names_and_shapes_are_those_of_transformers(config: dict[str, object]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hetserve.spec.tensors import tensor_shapes

    spec = ModelSpec.from_hf(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    theirs = {name: tuple(value.shape) for name, value in model.named_parameters()}  # tied parameters appear once
    assert tensor_shapes(spec) == theirs
    assert spec.parameters == sum(value.numel() for value in model.parameters())


def test_llama_250m_counts() -> None:
    spec = ModelSpec.from_hf(LLAMA)
    assert (spec.head_dim, spec.group, spec.dtype, spec.eos_token_ids) == (64, 2, "bfloat16", (2,))
    assert spec.kv_bytes_per_token("bfloat16") == 2 * 16 * 8 * 64 * 2
    assert spec.weight_bytes() == 2 * spec.parameters == 2 * 254_313_472


def test_defaults_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    for family in ("llama", "mistral", "qwen2", "qwen3", "opt"):
        config = {key: value for key, value in small(family).items() if key not in ("max_position_embeddings", "head_dim", "num_key_value_heads")}
        config.update(num_attention_heads=8)
        spec, theirs = ModelSpec.from_hf(config), AutoConfig.for_model(**config)
        assert spec.max_positions == theirs.max_position_embeddings
        assert spec.bos_token_id == theirs.bos_token_id
        assert spec.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
        assert spec.tie_embeddings == theirs.tie_word_embeddings
        assert spec.sliding_window == getattr(theirs, "sliding_window", None)
        if family != "opt":
            assert spec.kv_heads == ({"mistral": 8}.get(family, theirs.num_attention_heads))
            assert spec.rope is not None and spec.rope.theta == theirs.rope_parameters["rope_theta"]
            assert spec.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)


def test_rope_is_read_in_both_of_transformers_spellings() -> None:
    old = ModelSpec.from_hf({**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE})
    new = ModelSpec.from_hf({**LLAMA, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_ROPE}})
    assert old == new and old.rope is not None
    assert (old.rope.kind, old.rope.theta, old.rope.factor, old.rope.original_positions) == ("llama3", 500000.0, 8.0, 8192)


def test_generation_config_decides_the_end_tokens() -> None:
    assert ModelSpec.from_hf(LLAMA, {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
    assert ModelSpec.from_hf({**LLAMA, "eos_token_id": [7, 99999999]}, {}).eos_token_ids == (7,)


def test_windows() -> None:
    mistral = ModelSpec.from_hf(small("mistral", sliding_window=64))
    assert [mistral.window(layer) for layer in range(3)] == [64, 64, 64]
    assert ModelSpec.from_hf(small("mistral", sliding_window=None)).window(0) == 0
    assert ModelSpec.from_hf(small("qwen2", sliding_window=64)).window(2) == 0  # use_sliding_window is false unless stated
    qwen = ModelSpec.from_hf(small("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=2))
    assert [qwen.window(layer) for layer in range(3)] == [0, 0, 64]
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    listed = ModelSpec.from_hf(small("qwen3", sliding_window=64, use_sliding_window=True, layer_types=kinds))
    assert [listed.window(layer) for layer in range(3)] == [0, 64, 64]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None}, {"hidden_size": "1024"}, {"hidden_size": -1}, {"hidden_size": True}, {"num_hidden_layers": 0}, {"vocab_size": 1 << 40},
        {"num_key_value_heads": 3}, {"rms_norm_eps": 0}, {"rms_norm_eps": float("nan")}, {"rope_scaling": "llama3"}, {"eos_token_id": "two"},
        {"architectures": []}, {"architectures": "LlamaForCausalLM"}, {"model_type": "qwen2"}, {"tie_word_embeddings": "yes"},
        {"rope_scaling": {"rope_type": "linear"}}, {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}, {"hidden_size": 1025},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_config_is_a_model_error(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_hf({**LLAMA, **changes})
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MixtralForCausalLM"]}, {"quantization_config": {"quant_method": "gptq"}}, {"num_local_experts": 8}, {"vision_config": {}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"partial_rotary_factor": 0.5}, {"hidden_act": "gelu"}, {"torch_dtype": "int8"},
        {"head_dim": 60},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_supported_says_so(changes: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ModelSpec.from_hf({**LLAMA, **changes})
    assert "not supported" in caught.value.message


def test_not_a_config_at_all() -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_hf({"hello": 1})
    with pytest.raises(ModelError):
        ModelSpec.from_hf([1])  # type: ignore[arg-type]
