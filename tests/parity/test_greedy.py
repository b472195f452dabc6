"""Greedy text in float32 equals transformers' where the reference is sure; a broken position, page or head shows; the made-up models can show it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from parity_cases import FAMILIES, Case, reference_logits
from parity_paged import Paged

from hetserve.engine.model.decoder import Model

MARGIN = 1e-3
PROMPT, NEW = 70, 24  # the prompt fills four pages and a part of a fifth


def greedy(model: Model, prompts: list[list[int]], new: int, dtype: str, fault: str = "") -> list[list[int]]:
    """All prompts in one pass, then decode steps of all."""
    paged = Paged(model, len(prompts), max(map(len, prompts)) + new, dtype, fault=fault)
    texts: list[list[int]] = [[] for _ in prompts]
    logits = paged.step(list(enumerate(prompts)))
    for _ in range(new - 1):
        for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
            text.append(token)
        logits = paged.step([(i, text[-1:]) for i, text in enumerate(texts)])
    for text, token in zip(texts, logits.argmax(-1).tolist(), strict=True):
        text.append(token)
    return texts


def reference(at: Case, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' greedy tokens [n, NEW] in float32, and the smallest top-1 margin of each text's steps [n]."""
    ids = torch.tensor(prompts)
    out = at.theirs[torch.float32].generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=0, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    top = torch.stack(out.logits, 1).topk(2, -1).values
    return out.sequences[:, ids.shape[1] :], (top[..., 0] - top[..., 1]).amin(1)


def prompts_of(at: Case, count: int) -> list[list[int]]:
    return torch.randint(5, at.spec.vocab, (count, PROMPT), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_text_is_that_of_transformers(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    prompts = prompts_of(at, 6)
    expected, margins = reference(at, prompts)
    sure = [i for i in range(len(prompts)) if margins[i] > MARGIN]
    assert len(sure) >= 4  # or the test says nothing
    found = greedy(Model(at.spec, at.folder, "float32"), prompts, NEW, "float32")
    assert [found[i] for i in sure] == [expected[i].tolist() for i in sure]


def break_rope(model: Model) -> None:
    """Frequencies off by a factor of 1.5: right at position 0, ever more wrong after it."""
    for block in model._blocks:
        table = block.project._cos_sin
        assert table is not None
        block.project._cos_sin = table[torch.arange(len(table)) * 3 // 2 % len(table)].contiguous()


def break_positions(model: Model) -> None:
    """OPT's offset forgotten."""
    assert model._positions is not None
    model._positions = model._positions.roll(2, 0)


def wrong_texts(at: Case, model: Model, fault: str) -> int:
    """How many bfloat16 texts leave the float32 reference by more than bfloat16 can explain (DESIGN 8's near-tie rule)."""
    prompts = prompts_of(at, 4)
    expected, _ = reference(at, prompts)
    wrong = 0
    for prompt, true, text in zip(prompts, expected.tolist(), greedy(model, prompts, NEW, "bfloat16", fault), strict=True):
        parting = next((i for i in range(NEW) if text[i] != true[i]), None)
        if parting is not None:
            ids = torch.tensor([prompt + true[:parting]])
            exact, coarse = (reference_logits(at.theirs[dtype], ids)[0, -1] for dtype in (torch.float32, torch.bfloat16))
            wrong += bool(exact[true[parting]] - exact[text[parting]] > 2 * (coarse - exact).abs().max())
    return wrong


@pytest.mark.parametrize("name", ["tiny", "tiny-mha", "tiny-mistral", "tiny-qwen3", "tiny-opt"])
def test_a_planted_fault_is_no_near_tie_and_no_fault_is(case: Callable[[str], Case], name: str) -> None:
    at = case(name)
    model = Model(at.spec, at.folder, "bfloat16")
    assert wrong_texts(at, model, "") == 0
    assert wrong_texts(at, model, "page") > 0
    if at.spec.kv_heads > 1:
        assert wrong_texts(at, model, "head") > 0
    (break_rope if at.spec.rope else break_positions)(model)
    assert wrong_texts(at, model, "") > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_made_up_models_can_show_a_fault(case: Callable[[str], Case], name: str) -> None:
    """DESIGN 8: neither certain nor clueless (mean top-1 probability 0.3 to 0.9), and text that does not loop (over 100 distinct of 1,000)."""
    at = case(name)
    likeliest = torch.softmax(at.float32, -1).amax(-1).mean()
    assert 0.3 < likeliest < 0.9
    for text in greedy(Model(at.spec, at.folder, "bfloat16"), [row[:8] for row in prompts_of(at, 2)], 1000, "bfloat16"):
        assert len(set(text)) > 100
