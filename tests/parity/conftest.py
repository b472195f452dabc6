"""Checkpoints of every family, and what transformers says about them: made and computed once for all parity tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from parity_cases import PROMPTS, TOKENS, Case, reference_logits

from hetserve.engine.model.make import make_checkpoint
from hetserve.spec.model import ModelSpec


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
