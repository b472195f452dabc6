"""What the engine, the planner and the cost model know of a model: its shape, never its weights.

Made from the dictionaries of `config.json` and `generation_config.json`; reads no file. Refuses what the engine cannot compute exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, rotate-half as in HF Llama. Kinds: "default", "linear" (all frequencies / factor), "llama3" (by wavelength)."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 0  # llama3: context length before scaling


@dataclass(frozen=True)
class ModelSpec:
    """The shape of one decoder-only model. Every count is per model, not per stage."""

    name: str
    family: str  # one of FAMILIES
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    norm: str  # "rms" or "layer"
    norm_eps: float
    rope: RopeSpec | None  # None: learned positions
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each query and key head before rope
    activation: str  # "silu", "relu" or "gelu"
    gated: bool  # act(gate) * up, else act(up)
    norm_before: bool  # norms before attention and MLP (False: after the residual addition, OPT-350m)
    final_norm: bool
    tie_embeddings: bool
    embed_dim: int  # width of the embedding table; differs from hidden in OPT-350m, which then projects in and out
    position_offset: int  # learned positions start at this row of their table (OPT: 2)
    sliding_window: int | None  # tokens seen, own one included; None: all
    full_layers: int  # the first so many layers see everything even with a sliding window
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str  # what the checkpoint was saved in

    @staticmethod
    def from_hf(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None, name: str = "") -> ModelSpec:
        """The spec of a Hugging Face `config.json`.

        Raises:
            ModelError: a field is missing, of a wrong type or contradicts another.
            UnsupportedError: the architecture or one of its options is not supported; the message says what is.
        """
        from hetserve.spec.hf_config import parse  # parse builds ModelSpec: imported late because it imports this module

        return parse(config, generation_config, name)

    @property
    def group(self) -> int:
        """Query heads per KV head (r): the size of a head group."""
        return self.q_heads // self.kv_heads

    @property
    def q_dim(self) -> int:
        return self.q_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        """What q.k is multiplied by before the softmax."""
        return float(self.head_dim) ** -0.5

    def window(self, layer: int) -> int:
        """How many of the latest tokens layer `layer` sees, the token itself included; 0: all of them."""
        if self.sliding_window is None or layer < self.full_layers:
            return 0
        return self.sliding_window

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint stores; a tied output matrix counts once."""
        from hetserve.spec.tensors import tensor_shapes

        return sum(prod(shape) for shape in tensor_shapes(self).values())

    def weight_bytes(self, dtype: str = "") -> int:
        """Bytes of all weights in `dtype` (default: the checkpoint's own)."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]

    def kv_bytes_per_token(self, dtype: str = "") -> int:
        """Bytes of keys and values that one token leaves in the cache, all layers and KV heads."""
        return 2 * self.layers * self.kv_dim * DTYPE_BYTES[dtype or self.dtype]
