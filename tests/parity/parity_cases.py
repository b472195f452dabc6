"""What the parity tests compare over: the families, one checkpoint's reference, and how the reference is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hetserve.engine.model.recipes import RECIPES
from hetserve.spec.model import ModelSpec

FAMILIES = [name for name in RECIPES if name.startswith("tiny")]
PROMPTS, TOKENS = 2, 150  # long enough for two windows of tiny-mistral and ten pages


@dataclass(frozen=True)
class Case:
    """One checkpoint and the reference's logits on some random texts."""

    name: str
    folder: Path
    spec: ModelSpec
    theirs: dict[torch.dtype, Any]  # transformers' models, by dtype
    ids: torch.Tensor  # int64 [PROMPTS, TOKENS]
    float32: torch.Tensor  # [PROMPTS, TOKENS, vocab], transformers in float32
    bfloat16: torch.Tensor  # transformers in bfloat16, as float32


def reference_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [n, tokens, vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(ids).logits
    return logits.float()
