"""The made-up models that `make` can write: one Hugging Face config each, and how large its random weights are.

Every model is random: it serves tests and benchmarks, never meaning. Adding one is a row in RECIPES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAD, BOS, EOS = 0, 1, 2
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


@dataclass(frozen=True)
class Recipe:
    """One made-up model.

    The scales are standard deviations, chosen so that a wrong position, page or head changes the greedy text, that text does not loop, and the
    mean top-1 probability is between 0.3 and 0.9 (tests/parity measures all three).
    """

    config: dict[str, Any]  # what config.json will hold
    logits: float = 8.0  # of the logits
    scores: float = 2.0  # of q.k / sqrt(head_dim): large enough that attention picks tokens instead of averaging them
    branch: float = 1.0  # of what each attention and MLP block adds to the residual stream, roughly; an untied embedding is 1.0
    adds_bos: bool = True  # the tokenizer puts <s> in front


def _llama_like(family: str, **changes: Any) -> dict[str, Any]:
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config = {
        "architectures": [names[family]],
        "model_type": family,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "vocab_size": 4096,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "bfloat16",
    }
    return {**config, **changes}


def _opt(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 512,
        "word_embed_proj_dim": 256,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float16",
    }
    return {**config, **changes}


LLAMA_250M = {
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 2816,
    "vocab_size": 32000,
    "max_position_embeddings": 16384,
}

RECIPES: dict[str, Recipe] = {
    "tiny": Recipe(_llama_like("llama")),
    "tiny-mha": Recipe(_llama_like("llama", hidden_size=320, num_key_value_heads=4, head_dim=80, tie_word_embeddings=True), branch=5.0),
    "tiny-llama3": Recipe(_llama_like("llama", rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, attention_bias=True, mlp_bias=True)),
    "tiny-mistral": Recipe(_llama_like("mistral", num_key_value_heads=1, head_dim=128, sliding_window=48)),
    "tiny-qwen2": Recipe(_llama_like("qwen2", tie_word_embeddings=True), branch=5.0, adds_bos=False),
    "tiny-qwen3": Recipe(_llama_like("qwen3", hidden_size=192, head_dim=96, torch_dtype="float32"), adds_bos=False),
    "tiny-opt": Recipe(_opt(), scores=3.0, branch=8.0),
    "tiny-opt-post": Recipe(_opt(do_layer_norm_before=False, word_embed_proj_dim=128, activation_function="gelu"), branch=0.7),
    "llama-250m": Recipe(_llama_like("llama", **LLAMA_250M), branch=0.5),
    "llama-250m-mha": Recipe(_llama_like("llama", **(LLAMA_250M | {"num_key_value_heads": 16, "intermediate_size": 2560})), branch=0.5),
}
