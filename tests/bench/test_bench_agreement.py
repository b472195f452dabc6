"""Agreement: the near-tie rule by hand, and on a real (made-up) checkpoint, where every planted fault must count as wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hetserve.bench.agreement import Agreement, Answers, Divergence, HfReference, agree, judge, spread, texts

Floats = NDArray[np.float32]


class Given:
    """A reference with the same logits everywhere; notes the prefixes it was asked about."""

    def __init__(self, exact: Sequence[float], rounded: Sequence[float]) -> None:
        self.exact, self.rounded = np.array(exact, np.float32), np.array(rounded, np.float32)
        self.asked: list[tuple[int, ...]] = []

    def logits(self, text: Sequence[int], lengths: Sequence[int]) -> tuple[Floats, Floats]:
        self.asked += [tuple(text[:length]) for length in lengths]
        return np.tile(self.exact, (len(lengths), 1)), np.tile(self.rounded, (len(lengths), 1))


def test_the_rule_by_hand() -> None:
    exact, rounded = np.array([5.0, 4.0, 3.0, 0.0]), np.array([5.25, 3.5, 3.0, 0.0])  # largest difference 0.5: a gap up to 1.0 is a tie
    assert judge(Divergence((1,), 0, 1), exact, rounded).near_tie
    verdict = judge(Divergence((1,), 0, 2), exact, rounded)
    assert not verdict.near_tie and (verdict.gap, verdict.bound) == (2.0, 1.0)
    assert not judge(Divergence((1,), 0, 99), exact, rounded).near_tie  # a token outside the vocabulary is no tie with anything


def test_every_answer_is_counted_once() -> None:
    reference = Given([1.0, 1.0, 9.0], [1.5, 1.0, 9.0])
    pairs = [
        Answers((7,), (0, 1, 2), (0, 1, 2)),  # identical
        Answers((8,), (0, 0, 2), (0, 1, 2)),  # a tie at the second token; what follows is another text and is not looked at
        Answers((9,), (0, 0), (0, 2)),  # wrong at the second
        Answers((9,), (0, 1), (0, 1, 1)),  # ends early: wrong, without asking anybody
        Answers((9,), None, (0, 1)),  # failed: not compared
    ]
    got = agree(pairs, lambda: reference)
    assert (got.compared, got.identical, got.near_tie, got.wrong, got.unchecked) == (4, 1, 1, 2, 0)
    assert sorted(reference.asked) == [(8, 0), (9, 0)]


def test_nothing_differs_and_no_reference_is_loaded() -> None:
    def never() -> Given:
        raise AssertionError("the reference was opened")

    got = agree([Answers((1,), (2, 3), (2, 3))], never)
    assert got == Agreement(1, 1, 0, 0, 0, ())


def test_the_cap_is_stated_and_spreads_over_context_lengths() -> None:
    reference = Given([1.0, 1.0], [1.5, 1.0])
    pairs = [Answers((1000 + length, *range(1, length)), (0,), (1,)) for length in range(1, 101)]
    got = agree(pairs[::-1], lambda: reference, most_checked=4)
    assert (got.near_tie, got.unchecked, got.compared) == (4, 96, 100)
    assert [len(prefix) for prefix in reference.asked] == [13, 38, 63, 88]
    everything = agree(pairs, lambda: Given([1.0, 1.0], [1.5, 1.0]), most_checked=0)
    assert (everything.near_tie, everything.unchecked) == (100, 0)


def test_equal_divergences_are_judged_once_and_counted_each() -> None:
    reference = Given([0.0, 9.0], [0.0, 9.0])
    got = agree([Answers((1,), (0,), (1,))] * 5, lambda: reference)
    assert got.wrong == 5 and len(reference.asked) == len(got.verdicts) == 1


def test_divergences_on_one_text_share_a_pass() -> None:
    long, short, other = Divergence((1, 2, 3, 4), 5, 6), Divergence((1, 2), 7, 8), Divergence((1, 2, 9), 5, 6)
    twin = Divergence((1, 2), 3, 9)
    assert texts([long, short, other, twin]) == [[other], [twin, short, long]] or texts([long, short, other, twin]) == [[other], [short, twin, long]]
    assert texts([]) == []


def test_spread_keeps_order_and_number() -> None:
    rows = [[Divergence((index,), 0, 1)] for index in range(17)]
    for most in range(1, 20):
        chosen = spread(rows, most)
        assert len(chosen) == min(most, 17) and chosen == sorted(chosen, key=lambda text: text[0].prefix)
    assert spread(rows, 0) == rows


# ------------------------------------------------------------------------------------------------ on a checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hetserve.engine.model.make import make_checkpoint

    return make_checkpoint("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> HfReference:
    return HfReference(checkpoint, threads=1)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(5)
    return [tuple(rng.integers(3, 4000, size=length).tolist()) for length in (5, 17, 33, 64, 100)]


def greedy(model: Any, prompt: tuple[int, ...], count: int, position_ids: Callable[[int], Any] | None = None) -> tuple[int, ...]:
    """Greedy text of a transformers model, one whole forward pass a token; `position_ids` plants a fault."""
    import torch

    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            planted = {} if position_ids is None else {"position_ids": position_ids(len(ids))}
            ids.append(int(model(torch.tensor([ids]), use_cache=False, **planted).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def model_of(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()


@pytest.fixture(scope="module")
def right(checkpoint: Path, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    model = model_of(checkpoint, "float32")
    return [greedy(model, prompt, 16) for prompt in prompts]


def test_logits_along_a_text_are_those_after_its_prefixes(reference: HfReference, prompts: list[tuple[int, ...]]) -> None:
    text = prompts[3]
    both = reference.logits(text, [10, 40, 64])
    for row, length in enumerate((10, 40, 64)):
        for along, alone, room in zip(both, reference.logits(text[:length], [length]), (1e-3, 0.5), strict=True):
            assert np.abs(along[row] - alone[0]).max() < room


def test_rounding_alone_is_never_wrong(
    checkpoint: Path, reference: HfReference, prompts: list[tuple[int, ...]], right: list[tuple[int, ...]]
) -> None:
    model = model_of(checkpoint, "bfloat16")
    other = [greedy(model, prompt, 16) for prompt in prompts]
    got = agree([Answers(*row) for row in zip(prompts, right, other, strict=True)], lambda: reference)
    assert got.wrong == 0 and got.compared == len(prompts)


def test_a_wrong_token_is_wrong(reference: HfReference, prompts: list[tuple[int, ...]], right: list[tuple[int, ...]]) -> None:
    planted = [(*tokens[:4], (tokens[4] + 1) % 4000, *tokens[5:]) for tokens in right]
    got = agree([Answers(*row) for row in zip(prompts, planted, right, strict=True)], lambda: reference)
    assert got.wrong >= len(prompts) - 1 and got.identical == 0


def shifted(length: int) -> Any:
    """Positions as a RoPE with an off-by-one after the first 4 tokens would have them."""
    import torch

    positions = torch.arange(length)[None]
    return positions + (positions >= 4)


def stuck(length: int) -> Any:
    """Positions as an engine that forgets to advance would have them."""
    import torch

    return torch.clamp(torch.arange(length), max=length - 2)[None]


@pytest.mark.parametrize("fault", [shifted, stuck])
def test_a_broken_position_is_wrong(
    checkpoint: Path, reference: HfReference, prompts: list[tuple[int, ...]], right: list[tuple[int, ...]], fault: Callable[[int], Any]
) -> None:
    model = model_of(checkpoint, "float32")
    other = [greedy(model, prompt, 16, fault) for prompt in prompts]
    got = agree([Answers(*row) for row in zip(prompts, other, right, strict=True)], lambda: reference)
    assert got.wrong > 0


def test_a_head_read_from_another_is_wrong(
    checkpoint: Path, reference: HfReference, prompts: list[tuple[int, ...]], right: list[tuple[int, ...]]
) -> None:
    import torch

    model = model_of(checkpoint, "float32")
    with torch.no_grad():
        weight = model.model.layers[1].self_attn.v_proj.weight
        half = weight.shape[0] // 2
        weight.copy_(torch.cat([weight[half:], weight[:half]]))  # the two KV heads' values swapped
    other = [greedy(model, prompt, 16) for prompt in prompts]
    got = agree([Answers(*row) for row in zip(prompts, other, right, strict=True)], lambda: reference)
    assert got.wrong > 0
