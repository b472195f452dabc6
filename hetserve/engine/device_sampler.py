"""`sampler.sample` for logits that lie on a GPU: all rows at once, and the tokens stay there. The host waits for the device only where rows ask for
top-k or top-p, of which it decides whether the likeliest tokens were enough to look at, or for log-probabilities.

The rules, their order and the random numbers are `sampler`'s, and so are the tokens, except where rounding decides. Sums are in float64 as there, in
another order: that moves a boundary between two tokens by about 1e-15. The device's exp may round a weight's last bit otherwise than the CPU's: 1e-7.
Greedy tokens never differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hetserve import _C
from hetserve.control.messages import Sampling
from hetserve.engine.accelerator import sent
from hetserve.engine.logprobs import token_logprobs
from hetserve.engine.wire import TokenLogprobs

CANDIDATES = 1024  # likeliest tokens that top-k and top-p look at first; rows that they cannot decide are looked at whole
BLOCK = 256  # tokens summed at a time


@dataclass(frozen=True)
class Draws:
    """What rows that draw a token are told, on the device, [n, 1] each."""

    u: torch.Tensor  # float64, in [0, 1)
    temperature: torch.Tensor  # float32
    min_p: torch.Tensor  # float32
    top_p: torch.Tensor  # float64, 0 to 1; 1: off
    top_k: torch.Tensor  # int64; 0: off

    def of(self, rows: torch.Tensor) -> Draws:
        return Draws(self.u[rows], self.temperature[rows], self.min_p[rows], self.top_p[rows], self.top_k[rows])


def sample_on_device(
    logits: torch.Tensor, sampling: Sequence[Sampling], drawing: list[int], u: NDArray[np.float64]
) -> tuple[torch.Tensor, tuple[TokenLogprobs | None, ...]]:
    """One token for each row, int32 [n] on the device, and log-probabilities, as `sampler.sample` says.

    Args:
        logits: [n, vocab], float32 or bfloat16, on the device; not changed.
        sampling: n of them.
        drawing: the rows that are not greedy; u: float64, their random numbers in [0, 1).
    """
    with torch.inference_mode():
        likeliest = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        _C.argmax(logits.contiguous(), likeliest)
        if drawing:
            _draw(logits, likeliest, sampling, drawing, u)
        return likeliest, token_logprobs(logits, sampling, likeliest)


def _draw(logits: torch.Tensor, tokens: torch.Tensor, sampling: Sequence[Sampling], drawing: list[int], u: NDArray[np.float64]) -> None:
    """Puts what the rows that draw have drawn into `tokens`, the likeliest ones so far."""
    rows = _there(drawing, logits)
    draws = _draws([sampling[i] for i in drawing], u, logits.device)
    top = tokens[rows].long()[:, None]
    weights = _weights(logits[rows], top, draws.temperature)
    picked, sure = _pick_of_all(weights, draws), torch.ones_like(rows, dtype=torch.bool)
    by_value = [at for at, i in enumerate(drawing) if sampling[i].top_k > 0 or sampling[i].top_p < 1.0]
    if by_value:
        at = _there(by_value, logits)
        picked[at], sure[at] = _pick_by_value(weights[at], draws.of(at), CANDIDATES)
    sound = (weights.gather(1, top) == 1)[:, 0]  # else the weights of the model are broken: any token is as good, and no NaN may travel on
    tokens[rows] = torch.where(sound, picked, top[:, 0]).int()
    if not by_value:
        return
    left = (sound & ~sure).nonzero()[:, 0]  # the host waits here
    if len(left):
        tokens[rows[left]] = _pick_by_value(weights[left], draws.of(left), weights.shape[1])[0].int()


def _there(numbers: list[int], like: torch.Tensor) -> torch.Tensor:
    """int64 on the device, without waiting for what it does now."""
    return sent(torch.tensor(numbers), like.device)


def _draws(sampling: Sequence[Sampling], u: NDArray[np.float64], device: torch.device) -> Draws:
    told = [(row.temperature, row.min_p, min(max(row.top_p, 0.0), 1.0), max(row.top_k, 0)) for row in sampling]
    numbers = sent(torch.cat([torch.from_numpy(u)[:, None], torch.tensor(told, dtype=torch.float64)], 1), device)
    return Draws(numbers[:, :1], numbers[:, 1:2].float(), numbers[:, 2:3].float(), numbers[:, 3:4], numbers[:, 4:].long())


def _weights(logits: torch.Tensor, likeliest: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """float32 [n, vocab] proportional to probability; that of the likeliest, int64 [n, 1], is 1."""
    values = logits.float()
    return ((values - values.gather(1, likeliest)) / temperature).exp()


def _pick_of_all(weights: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int64 [n] the tokens at which the cumulated weight, in order of token id, first exceeds u; min-p is the only filter."""
    n, vocab = weights.shape
    blocks = functional.pad(weights * (weights >= draws.min_p), (0, -vocab % BLOCK)).view(n, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)
    mass = sums.cumsum(-1)
    goal = draws.u * mass[:, -1:]
    block = _pick(sums, mass, goal)
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks.gather(1, block[:, :, None].expand(n, 1, BLOCK))[:, 0]
    return (block * BLOCK + _pick(inner, inner.cumsum(-1, dtype=torch.float64), goal - before))[:, 0]


def _pick_by_value(weights: torch.Tensor, draws: Draws, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [n] tokens by all filters, looking at so many of the likeliest; and bool [n] whether these were enough."""
    vocab = weights.shape[1]
    count = min(candidates, vocab)
    values, ids = weights.topk(count)  # equal ones in any order
    kth = values.gather(1, (draws.top_k - 1).clamp(0, count - 1))
    least = torch.where((draws.top_k > 0) & (draws.top_k <= count), kth, 0.0).maximum(draws.min_p)  # min-p and top-k leave what weighs so much
    last = values[:, -1:]
    whole = (last < least) | (last == 0) | (count == vocab)  # all of which is among the candidates; what weighs nothing is never drawn
    left = (values >= least) & (values > 0)
    mass = (values * left).cumsum(-1, dtype=torch.float64)
    total = torch.where(whole, mass[:, -1:], (weights * (weights >= draws.min_p)).sum(-1, keepdim=True, dtype=torch.float64))
    reached = (mass < draws.top_p * total).sum(-1, keepdim=True) + 1  # the first that reach it, at least one
    kept = left.sum(-1, keepdim=True)
    kept = torch.where(draws.top_p < 1.0, reached.minimum(kept), kept)
    cut = values.gather(1, (kept - 1).clamp(min=0))  # 0 only of a row that is not sound
    sure = whole | ((draws.top_k == 0) & (draws.top_p < 1.0) & (mass[:, -1:] >= draws.top_p * total) & (last < cut))
    ids, order = ids.sort(-1)
    values = values.gather(1, order)
    equal = values == cut
    room = kept - (values > cut).sum(-1, keepdim=True)
    values = values * ((values > cut) | (equal & (equal.cumsum(-1) <= room)))  # equal ones at the cut: the lower ids stay
    mass = values.cumsum(-1, dtype=torch.float64)
    return ids.gather(1, _pick(values, mass, draws.u * mass[:, -1:]))[:, 0], sure[:, 0]


def _pick(weights: torch.Tensor, mass: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """int64 [n, 1] where the running sum first exceeds the goal [n, 1], or the last that weighs anything: never one that weighs nothing.

    Sums made in parallel may fall by a rounding from one place to the next.
    """
    place = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, place, 0).amax(-1, keepdim=True)
    return torch.where((mass > goal) & (weights > 0), place, last).amin(-1, keepdim=True)
