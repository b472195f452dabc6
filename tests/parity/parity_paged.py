"""A small paged KV cache and attention on `_C`, and the ways to break it: what the parity tests run our models with.

Its own bookkeeping, apart from the worker's, so that a fault in one is not a fault in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hetserve import _C
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Attend, Model

PAGE = 16


class Paged:
    """KV of a few sequences in shuffled pages, one page per (sequence, head, 16 tokens).

    Args:
        fault: "" for none; "page": second and third pages of every head are swapped when read; "head": every head group reads its neighbour's pages.
    """

    def __init__(self, model: Model, sequences: int, tokens: int, dtype: str, layout: str = "packed", fault: str = "") -> None:
        spec = model.spec
        self._model, self._spec, self._fault = model, spec, fault
        self.lengths = np.zeros(sequences, np.int64)
        self._per_list = -(-tokens // PAGE)
        pages = sequences * spec.kv_heads * self._per_list
        order = np.random.default_rng(0).permutation(pages).astype(np.int32)
        self._pages = order.reshape(sequences, spec.kv_heads, self._per_list)
        size_bytes = _C.KvPool.bytes(spec.layers, pages, PAGE, spec.head_dim, dtype)
        self._storage = torch.full((size_bytes + 64,), 0xFF, dtype=torch.uint8)  # NaN in both dtypes: unwritten slots show
        start = -self._storage.data_ptr() % 64
        self._pool = _C.KvPool(self._storage[start : start + size_bytes], spec.layers, pages, PAGE, spec.head_dim, dtype, layout)

    def step(self, pieces: Sequence[tuple[int, Sequence[int]]], every_row: bool = False) -> torch.Tensor:
        """Runs the next tokens of some sequences in one pass, (sequence, tokens) each. Returns float32 logits of their last rows, or of all rows."""
        counts = np.array([len(tokens) for _, tokens in pieces])
        firsts = np.cumsum(counts) - counts
        positions = np.concatenate([self.lengths[at] + np.arange(len(tokens)) for at, tokens in pieces])
        sequences = np.repeat([at for at, _ in pieces], counts)
        for at, tokens in pieces:
            self.lengths[at] += len(tokens)
        batch = StepBatch(
            torch.tensor([token for _, tokens in pieces for token in tokens], dtype=torch.int64),
            torch.from_numpy(positions.astype(np.int32)),
            torch.arange(len(positions)) if every_row else torch.from_numpy(firsts + counts - 1),
        )
        slots = self._pages[sequences, :, positions // PAGE] * PAGE + (positions % PAGE)[:, None]
        return self._model.forward(batch, self._attend(pieces, firsts, torch.from_numpy(slots.astype(np.int32)))).float()

    def _attend(self, pieces: Sequence[tuple[int, Sequence[int]]], firsts: np.ndarray, slots: torch.Tensor) -> Attend:
        spec, heads = self._spec, self._spec.kv_heads
        read = self._pages.copy()
        if self._fault == "page":
            read[:, :, [1, 2]] = read[:, :, [2, 1]]
        if self._fault == "head":
            read = np.roll(read, 1, axis=1)
        items = [
            (firsts[i], len(tokens), head, (at * heads + head) * self._per_list, self.lengths[at], 0)
            for i, (at, tokens) in enumerate(pieces)
            for head in range(heads)
        ]
        plan = _C.AttentionPlan(
            self._pool, torch.tensor(items, dtype=torch.int32), torch.from_numpy(read.reshape(-1)), slots.shape[0], spec.q_heads, spec.group
        )

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            _C.kv_store(self._pool, layer, k, v, slots)
            out = torch.empty(q.shape, dtype=q.dtype)
            _C.attention(plan, layer, q, out, spec.attention_scale, spec.window(layer))
            return out

        return attend
