"""The sampler of a GPU chooses the tokens that the CPU's does. On the CPU its operations are the same ones, so the tokens are too, every one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hetserve import _C
from hetserve.control.messages import Sampling
from hetserve.engine import device_sampler, logprobs
from hetserve.engine.accelerator import sent
from hetserve.engine.device_sampler import CANDIDATES, sample_on_device
from hetserve.engine.sampler import GREEDY_BELOW, sample, uniforms

INF = float("inf")
ROUNDED = 1e-3  # the share of a GPU's tokens that its exp may change: a boundary moves by 1e-7, and there are thousands of boundaries


@pytest.fixture(params=["cuda-emulated", "cuda"], autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        if not (_C.info()["cuda"] and torch.cuda.is_available()):
            if os.environ.get("HETSERVE_TEST_GPU") == "required":
                pytest.fail("no GPU, or a build without CUDA kernels")
            pytest.skip("no GPU, or a build without CUDA kernels")
        yield "cuda"
        return
    before = _C.info()["isa"]
    _C.use_isa("cuda-emulated")  # for the greedy tokens
    yield "cpu"
    _C.use_isa(before)


def both(logits: torch.Tensor, sampling: Sequence[Sampling], device: str) -> tuple[list[int], list[int]]:
    """The CPU's tokens and the device's; row i is choice i % 3 at position i."""
    choices, positions = np.arange(len(logits)) % 3, np.arange(len(logits))
    expected, _ = sample(logits, sampling, choices, positions)
    drawing = [i for i, row in enumerate(sampling) if row.temperature >= GREEDY_BELOW]
    seeds = np.array([sampling[i].seed for i in drawing], np.uint64)
    before = logits.clone()
    found, _ = sample_on_device(logits.to(device), sampling, drawing, uniforms(seeds, choices[drawing], positions[drawing]))
    assert logits.equal(before) or logits.isnan().any()
    assert found.dtype == torch.int32 and found.device.type == device
    return expected.tolist(), found.tolist()


def alike(found: tuple[list[int], list[int]], device: str) -> None:
    """The same tokens, on the CPU every one."""
    wrong = sum(mine != other for mine, other in zip(*found, strict=True))
    assert wrong == 0 or (device != "cpu" and wrong <= max(1, ROUNDED * len(found[0]))), f"{wrong} of {len(found[0])}"


FILTERS = tuple(
    Sampling(temperature, top_p, top_k, min_p)
    for temperature, top_p, top_k, min_p in product((0.0, 0.7, 2.0), (1.0, 0.0, 0.6, 0.98), (0, 1, 40, 3000), (0.0, 0.02))
)


def rows_of(kind: str, vocab: int, generator: torch.Generator) -> torch.Tensor:
    """[FILTERS, vocab] logits of one kind."""
    logits = torch.randn(len(FILTERS), vocab, generator=generator)
    if kind == "sharp":
        return logits * 6
    if kind == "flat":  # top-p needs more than the first candidates
        return logits * 0.05
    if kind == "all alike":
        return torch.zeros_like(logits)
    if kind == "ties":  # also at every cut
        return logits.mul(2).round()
    if kind == "peaked":
        logits.scatter_(1, torch.randint(vocab, (len(logits), 1), generator=generator), 40.0)
        return logits
    if kind == "cut off":  # most tokens are impossible
        return logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.9, -INF)
    return logits * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "sharp", "flat", "all alike", "ties", "peaked", "cut off"])
@pytest.mark.parametrize("vocab", [1, 5, 257, 2 * CANDIDATES + 3])
def test_tokens_are_those_of_the_cpu(device: str, vocab: int, kind: str, dtype: torch.dtype) -> None:
    for seed in range(1 if vocab > 1000 else 4):
        generator = torch.Generator().manual_seed(seed)
        logits = rows_of(kind, vocab, generator).to(dtype)
        sampling = [Sampling(row.temperature, row.top_p, row.top_k, row.min_p, seed) for row in FILTERS]
        alike(both(logits, sampling, device), device)


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_broken_logits_give_what_they_give_on_the_cpu(device: str, bad: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = rows_of("plain", 600, generator)
    logits[::2, 17] = bad
    logits[::5] = bad
    expected, found = both(logits, FILTERS, device)
    assert all(0 <= token < 600 for token in found)
    alike((expected, found), device)


def test_the_random_number_alone_decides(device: str) -> None:
    """Over many numbers the tokens are spread as the probabilities are, the ends of the range included."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(200, 4).contiguous()
    u = np.concatenate([[0.0, 1 - 2.0**-53], np.linspace(0, 1, 198, endpoint=False)])
    for sampling in (Sampling(1.0), Sampling(1.0, top_p=0.999999)):
        found = sample_on_device(logits.to(device), [sampling] * 200, list(range(200)), u)[0].cpu().numpy()
        expected = np.searchsorted([0.5, 0.75, 0.875], u, side="right")
        assert (found != expected).sum() <= 3, "those on a boundary"
        assert (found[0], found[1]) == (0, 3)


def test_a_tokens_neighbours_in_the_batch_do_not_matter(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = rows_of("plain", 2000, generator).to(device)
    drawing = [i for i, row in enumerate(FILTERS) if row.temperature]
    u = np.random.default_rng(0).random(len(drawing))
    whole, _ = sample_on_device(logits, FILTERS, drawing, u)
    for at, i in list(enumerate(drawing))[:: len(drawing) // 20]:
        alone, _ = sample_on_device(logits[i : i + 1], [FILTERS[i]], [0], u[at : at + 1])
        assert alone[0] == whole[i]


def test_a_weight_that_is_rounded_otherwise_moves_only_what_lies_on_a_boundary(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's exp may do: every weight but the likeliest's off by a rounding, up or down."""
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(700, 300, generator=generator) * 3
    sampling = [Sampling(1.0)] * 700
    exact = device_sampler._weights

    def rounded(*arguments: torch.Tensor) -> torch.Tensor:
        weights = exact(*arguments)
        up = torch.rand(weights.shape, generator=generator).to(weights.device) < 0.5
        return torch.where(weights == 1, weights, torch.where(up, weights.nextafter(torch.full_like(weights, 2)), weights.nextafter(weights * 0)))

    monkeypatch.setattr(device_sampler, "_weights", rounded)
    expected, found = both(logits, sampling, device)
    u = uniforms(np.zeros(700, np.uint64), np.arange(700) % 3, np.arange(700))
    mass = logits.double().softmax(-1).cumsum(-1).numpy()
    for row in np.flatnonzero(np.array(expected) != np.array(found)):
        low = min(expected[row], found[row])
        assert abs(mass[row, low] - u[row]) < 1e-6
    assert sum(mine != other for mine, other in zip(expected, found, strict=True)) < 8


WAITS = ("cpu", "item", "tolist", "nonzero", "numpy", "__bool__", "__int__")  # for the device, to have their outcome on the host


def test_the_host_waits_only_for_what_it_decides(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for name in WAITS:
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *rest, name=name, method=method: (waits.append(name), method(tensor, *rest))[1])

    def waited(logits: torch.Tensor, sampling: Sequence[Sampling]) -> list[str]:
        waits.clear()
        drawing = [i for i, row in enumerate(sampling) if row.temperature]
        sample_on_device(logits, sampling, drawing, np.linspace(0, 0.9, len(drawing)))
        return waits

    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(2)).mul(4).to(device)
    assert waited(logits, [Sampling()] * 8) == []
    assert waited(logits, [Sampling(), Sampling(1.0), Sampling(0.7, min_p=0.1), Sampling(2.0)] * 2) == []
    assert waited(logits, [Sampling(), Sampling(1.0), Sampling(0.7, top_p=0.9), Sampling(1.0, top_k=40)] * 2) == ["nonzero"]
    assert waited(logits * 100, [Sampling(0.5, top_k=60)] * 8) == ["nonzero"], "fewer than 60 tokens weigh anything"
    assert waited(logits * 0, [Sampling(1.0, top_p=0.9)] * 8) == ["nonzero"], "more than the first candidates were needed"


def test_what_the_host_sends_is_pinned_first(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory a copy to a GPU waits for all that was put there before. Here on a device that holds no numbers."""
    done: list[str] = []
    values = SimpleNamespace(pin_memory=lambda: done.append("pinned") or values, to=lambda *_, **how: done.append(f"copied {how}") or values)
    assert sent(values, torch.device("cuda")) is values and done == ["pinned", "copied {'non_blocking': True}"]  # type: ignore[arg-type,comparison-overlap]
    assert sent(there := torch.zeros(2), torch.device("cpu")) is there
    count: list[torch.Tensor] = []
    for module in (device_sampler, logprobs):
        monkeypatch.setattr(module, "sent", lambda values, device: count.append(values) or sent(values, device))
    logits = torch.randn(3, 500).to(device)
    sample_on_device(logits, [Sampling(1.0, 0.9, logprobs=2), Sampling(0.0), Sampling(1.0)], [0, 2], np.array([0.3, 0.6]))
    told = [[0, 2], [[0.3, 1.0, 0.0, 0.9, 0.0], [0.6, 1.0, 0.0, 1.0, 0.0]], [0], [0]]
    assert [one.tolist() for one in count] == told, "all of it: rows that draw, how, those with filters, those that want log-probabilities"


def test_logprobs_are_those_of_the_cpu(device: str) -> None:
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(4)) * 3
    rows = [Sampling(logprobs=3), Sampling(1.0, top_k=1, logprobs=0), Sampling(), Sampling(logprobs=1)]
    _, expected = sample(logits, rows, np.zeros(4, np.int64), np.zeros(4, np.int64))
    _, found = sample_on_device(logits.to(device), rows, [1], np.array([0.5]))
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert (mine.token, [token for token, _ in mine.top]) == (other.token, [token for token, _ in other.top])
            assert [mine.logprob, *(value for _, value in mine.top)] == pytest.approx([other.logprob, *(value for _, value in other.top)], abs=1e-5)
    assert sample_on_device(logits.to(device), [Sampling()] * 4, [], np.zeros(0))[1] == ()
