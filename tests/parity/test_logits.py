"""Logits of every family against Hugging Face transformers on the same checkpoint (DESIGN 8), through the paged cache, in chunks and decode steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from parity_cases import FAMILIES, PROMPTS, TOKENS, Case
from parity_paged import Paged

from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Model

FLOAT32_BOUND = 1e-4  # of the largest |logit|
BFLOAT16_BOUND = 1.5  # of transformers' own bfloat16 error


def run(model: Model, case: Case, dtype: str, layout: str = "packed") -> torch.Tensor:
    """Logits [PROMPTS, TOKENS, vocab] of the case's texts: uneven chunks of both in the same passes, then decode steps of both."""
    paged = Paged(model, PROMPTS, TOKENS, dtype, layout)
    first, second = case.ids.tolist()
    found: list[list[torch.Tensor]] = [[], []]
    for pieces in (
        [(0, first[:37])],
        [(1, second[:5]), (0, first[37:38])],  # a decode row beside a chunk, the later sequence first
        [(0, first[38:100]), (1, second[5:100])],
        *([(0, first[i : i + 1]), (1, second[i : i + 1])] for i in range(100, TOKENS)),
    ):
        rows = paged.step(pieces, every_row=True)
        for (sequence, tokens), logits in zip(pieces, rows.split([len(tokens) for _, tokens in pieces]), strict=True):
            assert len(tokens) == len(logits)
            found[sequence].append(logits)
    return torch.stack([torch.cat(parts) for parts in found])


def share(error: torch.Tensor, reference: torch.Tensor) -> float:
    return float(error.abs().max() / reference.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_is_exact_to_rounding(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    assert share(run(Model(at.spec, at.folder, "float32"), at, "float32") - at.float32, at.float32) <= FLOAT32_BOUND


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_errs_as_transformers_does(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    ours = share(run(Model(at.spec, at.folder, "bfloat16"), at, "bfloat16") - at.float32, at.float32)
    assert ours <= BFLOAT16_BOUND * share(at.bfloat16 - at.float32, at.float32)


def test_the_layout_of_pages_changes_nothing(case: Callable[[str], Case]) -> None:
    at = case("tiny")
    bounds = {"float32": FLOAT32_BOUND, "bfloat16": BFLOAT16_BOUND * share(at.bfloat16 - at.float32, at.float32)}
    for dtype, bound in bounds.items():
        assert share(run(Model(at.spec, at.folder, dtype), at, dtype, "plain") - at.float32, at.float32) <= bound


def test_only_sampled_rows_are_computed_and_in_their_order(case: Callable[[str], Case]) -> None:
    at = case("tiny-qwen2")
    model, tokens = Model(at.spec, at.folder, "float32"), at.ids[0, :20]
    rows = torch.tensor([19, 3, 3, 11])

    def logits(sample_rows: torch.Tensor) -> torch.Tensor:
        batch = StepBatch(tokens, torch.arange(20, dtype=torch.int32), sample_rows)
        return model.forward(batch, lambda layer, q, k, v: q.clone())

    every = logits(torch.arange(20))
    assert logits(rows).allclose(every[rows], rtol=0, atol=1e-4)
    assert logits(torch.arange(20).flip(0)).allclose(every.flip(0), rtol=0, atol=1e-4)
    assert logits(torch.zeros(0, dtype=torch.int64)).shape == (0, at.spec.vocab)


@pytest.mark.parametrize("name", ["tiny", "tiny-mha", "tiny-opt", "tiny-opt-post"])
def test_stages_in_a_row_are_the_whole_model(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    batch = StepBatch(at.ids[0, :30], torch.arange(30, dtype=torch.int32), torch.tensor([29, 7]))
    layers: list[int] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layers.append(layer)
        return q * (layer + 1)  # any function of layer and q will do

    whole = Model(at.spec, at.folder, "float32").forward(batch, attend)
    stages = [Model(at.spec, at.folder, "float32", cut) for cut in ((0, 1), (1, 3), (3, 4))]
    hidden = stages[1].forward(batch, attend, stages[0].forward(batch, attend))
    assert stages[2].forward(batch, attend, hidden).equal(whole)
    assert layers == [0, 1, 2, 3] * 2
    assert sum(stage.weight_bytes for stage in stages) >= Model(at.spec, at.folder, "float32").weight_bytes


def test_linear_rope_scaling(case: Callable[[str], Case]) -> None:
    """No made-up model has it, so the table itself is compared."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from hetserve.engine.model.rope import cos_sin_table, frequencies
    from hetserve.spec.model import RopeSpec

    theirs = ROPE_INIT_FUNCTIONS["linear"](LlamaConfig(hidden_size=64, num_attention_heads=1, rope_scaling={"rope_type": "linear", "factor": 4.0}))[0]
    assert frequencies(RopeSpec(10000.0, "linear", 4.0), 64).equal(theirs)
    table = cos_sin_table(RopeSpec(10000.0, "linear", 4.0), 64, 100)
    assert table.shape == (100, 2, 32) and table[99, 1, 3] == pytest.approx(float(torch.sin(99 * theirs[3])), abs=1e-6)
