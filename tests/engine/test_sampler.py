"""The sampler against a brute-force definition, against the distribution it claims, and for what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from hetserve.control.messages import Sampling
from hetserve.engine.sampler import _mix, greedy, kept, sample, uniforms


def draws(logits: torch.Tensor, sampling: Sampling, count: int, seed: int = 0) -> np.ndarray:
    """`count` tokens of one distribution, at positions 0, 1, ..."""
    rows = [Sampling(**{**sampling.__dict__, "seed": seed})] * count
    return sample(logits.expand(count, -1).contiguous(), rows, np.zeros(count, np.int64), np.arange(count))[0]


def allowed(logits: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    """The definition, slowly and in float64: which tokens may come, and how likely each is."""
    p = torch.softmax(logits.double() / sampling.temperature, 0).tolist()
    tokens = [t for t in range(len(p)) if p[t] >= sampling.min_p * max(p)]
    tokens.sort(key=lambda t: (-p[t], t))
    if sampling.top_k > 0:
        tokens = [t for t in tokens if p[t] >= p[tokens[min(sampling.top_k, len(tokens)) - 1]]]
    if sampling.top_p < 1:
        total, mass, first = sum(p[t] for t in tokens), 0.0, []
        for t in tokens:
            if not first or mass < sampling.top_p * total:
                first.append(t)
            mass += p[t]
        tokens = first
    total = sum(p[t] for t in tokens)
    return {t: p[t] / total for t in tokens}


def test_greedy_is_argmax_and_the_lowest_id_of_ties() -> None:
    for vocab in (1, 7, 96, 257, 4096, 50257):
        logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(vocab))
        assert (greedy(logits) == logits.argmax(-1).numpy()).all()
        coarse = logits.round()  # many ties
        for dtype in (torch.float32, torch.bfloat16):
            expected = [int((row == row.max()).nonzero()[0]) for row in coarse]
            assert greedy(coarse.to(dtype)).tolist() == expected


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0), Sampling(0.5), Sampling(2.0), Sampling(1.0, top_k=5), Sampling(1.0, top_p=0.8), Sampling(1.0, min_p=0.1),
        Sampling(1.5, top_p=0.9, top_k=20, min_p=0.02), Sampling(1.0, top_p=0.999), Sampling(5.0, top_p=0.95),
    ],
    ids=str,
)  # fmt: skip
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3)) * 2
    expected = allowed(logits, sampling)
    count = 20_000
    found = np.bincount(draws(logits, sampling, count), minlength=300)
    assert set(np.flatnonzero(found)) <= set(expected)
    common = [t for t in expected if expected[t] * count >= 8]
    statistic = sum((found[t] - expected[t] * count) ** 2 / (expected[t] * count) for t in common)
    assert statistic < chi2.ppf(0.999, max(len(common) - 1, 1))
    rest = sum(expected[t] for t in expected if t not in common) * count
    assert abs(found.sum() - sum(found[t] for t in common) - rest) < 5 * rest**0.5 + 1


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-30.0, -8.0, -3.0, -1.0, 0.0, 0.5, 0.75, 1.0, 2.0, 4.0]), min_size=1, max_size=60),
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.0, 0.05, 0.31, 0.5, 0.77, 0.93, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.013, 0.21, 0.93]),
)
def test_filters_keep_exactly_what_the_definition_keeps(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    row = torch.tensor(logits)
    sampling = Sampling(temperature, top_p, top_k, min_p)
    weights = ((row - row.max()) / temperature).exp().numpy()
    assert kept(weights, sampling).tolist() == sorted(allowed(row, sampling))


def test_flat_distributions_look_past_the_first_candidates() -> None:
    logits = torch.zeros(4000)
    logits[7] = 9.0  # all others are below the first floor
    weights = (logits - 9.0).exp().numpy()
    assert len(kept(weights, Sampling(1.0, top_k=100))) == 4000  # ties with the 100th stay
    assert kept(weights, Sampling(1.0, top_p=0.5)).tolist() == [7]
    assert kept(weights, Sampling(1.0, top_p=0.9)).tolist() == sorted(allowed(logits, Sampling(1.0, top_p=0.9)))


def test_a_token_depends_on_seed_choice_and_position_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(32, 1000, generator=generator)
    random = np.random.default_rng(0)
    rows = [
        Sampling(float(random.choice([0.0, 0.7, 1.3])), float(random.choice([0.9, 1.0])), int(random.choice([0, 40])), 0.0, int(random.integers(9)))
        for _ in range(32)
    ]
    choices, positions = random.integers(0, 4, 32), random.integers(0, 999, 32)
    whole, _ = sample(logits, rows, choices, positions)
    order = random.permutation(32)
    shuffled, _ = sample(logits[order].contiguous(), [rows[i] for i in order], choices[order], positions[order])
    assert (shuffled == whole[order]).all()
    for i in range(32):
        assert sample(logits[i : i + 1], rows[i : i + 1], choices[i : i + 1], positions[i : i + 1])[0][0] == whole[i]


def test_random_numbers_are_fixed_even_and_independent() -> None:
    assert _mix(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF  # splitmix64's published first output
    seeds, choices, positions = np.array([0, 1, 2**64 - 1], np.uint64), np.array([0, 1, 5]), np.array([0, 7, 10**6])
    promised = [0.13870941014555427, 0.38630104042438296, 0.36029445800589377]  # the same in every version, or a seed means nothing
    assert uniforms(seeds, choices, positions) == pytest.approx(promised, abs=1e-15)
    grid = np.array(np.meshgrid(range(20), range(20), range(50))).reshape(3, -1)
    u = uniforms(grid[0].astype(np.uint64), grid[1], grid[2])
    assert len(np.unique(u)) == 20_000
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < chi2.ppf(0.999, 49)
    for axis in range(3):  # neighbours in any one of the three
        u3 = u.reshape(20, 20, 50).swapaxes(0, axis)
        assert abs(np.corrcoef(u3[:-1].ravel(), u3[1:].ravel())[0, 1]) < 0.03


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 3
    rows = [Sampling(0.0, logprobs=3), Sampling(0.3, top_k=1, logprobs=0), Sampling()]
    tokens, found = sample(logits, rows, np.zeros(3, np.int64), np.zeros(3, np.int64))
    reference = torch.log_softmax(logits.double(), -1)
    assert found[2] is None and found[0] is not None and found[1] is not None
    assert [t for t, _ in found[0].top] == reference[0].topk(3).indices.tolist()
    assert [p for _, p in found[0].top] == pytest.approx(reference[0].topk(3).values.tolist(), abs=1e-5)
    assert found[1].top == () and found[1].token == tokens[1] == logits[1].argmax()
    assert found[1].logprob == pytest.approx(float(reference[1].max()), abs=1e-5)  # temperature and top-k do not show
    assert sample(logits, [Sampling()] * 3, np.zeros(3, np.int64), np.zeros(3, np.int64))[1] == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_still_give_tokens_of_the_vocabulary(bad: float) -> None:
    logits = torch.zeros(4, 64)
    logits[0] = bad
    logits[1, 5] = bad
    rows = [Sampling(1.0), Sampling(1.0, top_p=0.5), Sampling(1.0, min_p=0.5), Sampling()]
    tokens, _ = sample(logits, rows, np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert ((tokens >= 0) & (tokens < 64)).all()
    if bad == float("-inf"):
        assert tokens[1] != 5


def test_extreme_settings() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1e30]])
    for sampling in (Sampling(1e-4), Sampling(1.0, top_p=0.0), Sampling(1.0, top_k=1), Sampling(1.0, min_p=1.0), Sampling(1e-9, top_p=0.1)):
        assert set(draws(logits[0], sampling, 50)) == {1}
    assert 3 not in draws(logits[0], Sampling(100.0), 2000)
    negative = [Sampling(1.0, seed=-1)]
    assert sample(logits, negative, np.zeros(1, np.int64), np.zeros(1, np.int64))[0].shape == (1,)
