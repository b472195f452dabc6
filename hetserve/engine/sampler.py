"""Chooses the next tokens: greedy, temperature, top-k, top-p, min-p, seeded; and their log-probabilities. On a GPU `sample_there` does it.

A row's token depends on its own logits, sampling, choice and position alone, never on the batch. Keeps no state. Penalties and guided decoding: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hetserve.control.messages import Sampling
from hetserve.engine.device_sampler import sample_on_device
from hetserve.engine.logprobs import token_logprobs
from hetserve.engine.wire import TokenLogprobs

Int64s = NDArray[np.int64]
Floats = NDArray[np.float32]

GREEDY_BELOW = 1e-5  # temperatures below are greedy, as in vLLM
FIRST_FLOOR = 1e-3  # filters first look only at tokens at least so likely as the likeliest one, times this
BLOCK = 256  # tokens summed at a time


def sample(logits: torch.Tensor, sampling: Sequence[Sampling], choices: Int64s, positions: Int64s) -> tuple[Int64s, tuple[TokenLogprobs | None, ...]]:
    """One token for each row.

    Args:
        logits: [n, vocab], float32 or bfloat16, on the CPU; not changed.
        sampling: n of them. Order of the filters, as in vLLM: temperature, then min-p, then top-k (ties with the k-th stay), then top-p of what is
            left (the fewest most likely tokens that reach it; equal ones by lower id).
        choices: int64 [n], which of the request's n answers each row belongs to.
        positions: int64 [n], the sampled token's position in its sequence.

    Returns:
        tokens int64 [n], and per row the log-probabilities it asked for (None: it did not); an empty tuple if no row did.
        Log-probabilities are those of the model's own distribution, before temperature and filters (vLLM's default, `raw_logprobs`).
    """
    drawing, numbers = _drawing(sampling, choices, positions)
    tokens = greedy(logits)
    for i, u in zip(drawing, numbers.tolist(), strict=True):
        tokens[i] = _draw(logits[i], sampling[i], u, int(tokens[i]))
    return tokens, token_logprobs(logits, sampling, torch.from_numpy(tokens))


def sample_there(
    logits: torch.Tensor, sampling: Sequence[Sampling], choices: Int64s, positions: Int64s
) -> tuple[torch.Tensor, tuple[TokenLogprobs | None, ...]]:
    """`sample` on a GPU, where the logits are. The tokens, int32 [n], stay there, and nobody waits for them unless a row asked for what the host has
    a part in: top-k, top-p or log-probabilities."""
    return sample_on_device(logits, sampling, *_drawing(sampling, choices, positions))


def _drawing(sampling: Sequence[Sampling], choices: Int64s, positions: Int64s) -> tuple[list[int], NDArray[np.float64]]:
    """The rows that are not greedy, and a random number for each."""
    drawing = [i for i, row in enumerate(sampling) if row.temperature >= GREEDY_BELOW]
    if not drawing:
        return drawing, np.zeros(0)
    seeds = np.array([sampling[i].seed & 0xFFFFFFFFFFFFFFFF for i in drawing], np.uint64)
    return drawing, uniforms(seeds, choices[drawing], positions[drawing])


def greedy(logits: torch.Tensor) -> Int64s:
    """The likeliest token of each row, the lowest id of several. numpy's float32 argmax is vectorised; torch's is 5 (float32) to 20 times slower."""
    return logits.float().numpy().argmax(-1)


def uniforms(seeds: NDArray[np.uint64], choices: Int64s, positions: Int64s) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, choice, position), a function of these three only (splitmix64, one round for each)."""
    state = _mix(seeds)
    state = _mix(state ^ choices.astype(np.uint64))
    state = _mix(state ^ positions.astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood's splitmix64: the counter step, then its finaliser. Wraps modulo 2**64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(logits: torch.Tensor, sampling: Sampling, u: float, likeliest: int) -> int:
    """The token at which the cumulated probability, in order of token id, first exceeds u."""
    row = logits.float() if logits.dtype != torch.float32 else logits.clone()  # one row at a time stays in the core's cache
    top = float(row[likeliest])
    if not np.isfinite(top):
        return likeliest  # broken weights: any token is as good, and no NaN may travel on
    row.sub_(top)
    if sampling.temperature != 1.0:
        row.div_(sampling.temperature)
    weights: Floats = row.exp_().numpy()  # the likeliest token's is 1
    if sampling.top_k <= 0 and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        return _pick_of_all(weights, u)
    ids = kept(weights, sampling)
    return int(ids[_pick(weights[ids], u)])


def kept(weights: Floats, sampling: Sampling) -> Int64s:
    """Ids, ascending, of the tokens that min-p, top-k and top-p leave. weights: [vocab], proportional to probability, the largest 1."""
    least = _least(weights, sampling, FIRST_FLOOR) or _least(weights, sampling, 0.0)
    assert least is not None
    cut, count = least
    ids = np.flatnonzero(weights >= cut)
    if len(ids) > count:  # equal ones at the cut: the lower ids stay
        ids = np.delete(ids, np.flatnonzero(weights[ids] == cut)[count - len(ids) :])
    return ids


def _least(weights: Floats, sampling: Sampling, floor: float) -> tuple[np.float32, int] | None:
    """The smallest weight that is kept, and how many are. Looks only at weights of at least `floor`; None if lesser ones may matter."""
    whole = floor <= sampling.min_p
    values = -np.sort(-weights[weights >= max(sampling.min_p, floor)])
    if 0 < sampling.top_k <= len(values):
        values = values[values >= values[sampling.top_k - 1]]
        whole = True
    if sampling.top_p < 1.0:
        mass = np.cumsum(values, dtype=np.float64)
        total = mass[-1] if whole else weights[weights >= sampling.min_p].sum(dtype=np.float64)
        count = int(np.searchsorted(mass, max(sampling.top_p, 0.0) * total, side="left")) + 1  # the first that reach it, at least one
        whole = whole or count <= len(values)
        values = values[:count]
    return (values[-1], len(values)) if whole else None


def _pick(weights: Floats, u: float) -> int:
    """Index of the first weight at which the running sum exceeds u times the whole."""
    mass = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(mass, u * mass[-1], side="right")), len(mass) - 1)


def _pick_of_all(weights: Floats, u: float) -> int:
    """`_pick` in two levels: blocks first, then tokens of one block."""
    mass = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64))
    block = min(int(np.searchsorted(mass, u * mass[-1], side="right")), len(mass) - 1)
    first = block * BLOCK
    inner = np.cumsum(weights[first : first + BLOCK], dtype=np.float64)
    before = mass[block - 1] if block else 0.0
    at = int(np.searchsorted(inner, u * mass[-1] - before, side="right"))
    return first + (at if at < len(inner) else int(np.flatnonzero(weights[first : first + BLOCK])[-1]))
