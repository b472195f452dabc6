"""Checkpoints of every family, and what transformers says about them: made and computed once for all parity tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hetserve.engine.model.make import make_checkpoint
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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products lose more to two threads' waiting for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(name: str) -> Case:
        from transformers import AutoModelForCausalLM

        folder = make_checkpoint(name, tmp_path_factory.mktemp("models") / name)
        spec = ModelSpec.from_hf(json.loads((folder / "config.json").read_text()), json.loads((folder / "generation_config.json").read_text()))
        theirs = {dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
        ids = torch.randint(5, spec.vocab, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(1))
        return Case(name, folder, spec, theirs, ids, *(reference_logits(theirs[dtype], ids) for dtype in theirs))

    return make


def reference_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [n, tokens, vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(ids).logits
    return logits.float()
