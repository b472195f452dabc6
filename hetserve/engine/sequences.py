"""What a worker knows of the sequences in a group's slots, and which rows a step has. Arrays over slots; no object per token or page.

Every worker of a group applies the same steps, so all of them know who holds which head group, and how large each message will be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hetserve.control.messages import Int32s, RunStep, Sampling, Start
from hetserve.engine.wire import GroupLayout, WorkerConfig


@dataclass(frozen=True)
class Rows:
    """One step's rows: standing slots ascending, a token each, then the chunks, whose tokens are consecutive rows."""

    slots: Int32s  # [n]
    counts: Int32s  # [n] tokens each takes
    samples: NDArray[np.bool_]  # [n]
    lengths: Int32s  # [n] tokens of context once this step is done
    first_rows: Int32s  # [n]
    row_slots: Int32s  # [rows]
    positions: Int32s  # [rows] each token's in its sequence
    decodes: int  # the first so many slots, and rows, decode
    predicted_s: float

    @property
    def sampled(self) -> Int32s:
        """The slots that sample, in the order of the sampled tokens."""
        return self.slots[self.samples]


class Sequences:
    """The sequences of one group.

    Args:
        config: limits and page size.
        layout: the group's stages and pools.
        kv_heads: head groups of a stage.
    """

    def __init__(self, config: WorkerConfig, layout: GroupLayout, kv_heads: int) -> None:
        seqs, tokens = config.max_seqs, config.max_model_len
        self.max_pages = -(-tokens // config.page_tokens)
        self.kv_heads = kv_heads
        self.lanes = kv_heads * len(layout.stages)
        self.page_tokens = config.page_tokens
        self.tokens = np.zeros((seqs, tokens + 1), np.int32)
        self.known = np.zeros(seqs, np.int32)  # tokens known: prompt and generated
        self.computed = np.zeros(seqs, np.int32)  # tokens whose KV is stored
        self.tenancies = np.zeros(seqs, np.int32)  # sequences that have started in each slot
        self.standing = np.zeros(seqs, bool)
        self.choices = np.zeros(seqs, np.int64)
        self.sampling: list[Sampling] = [Sampling()] * seqs
        self.home = np.repeat(np.array([stage.first_pool for stage in layout.stages], np.int32), kv_heads)  # [lanes] the primaries' pools
        self.pools = np.tile(self.home, (seqs, 1))  # [slots, lanes] where each head group lies
        self.pages = np.zeros((seqs, self.lanes, self.max_pages), np.int32)
        self.page_table = torch.from_numpy(self.pages.reshape(-1))

    def apply(self, step: RunStep) -> Rows:
        """Brings the slots up to date with a step's changes, in the order RunStep documents. Returns the step's rows, counted as computed."""
        self.standing[step.ends] = False
        for start in step.starts:
            self._start(start)
        for replace in step.replaces:
            self.pools[replace.slot, replace.lanes] = replace.pools
            self.pages[replace.slot, replace.lanes, : replace.pages.shape[1]] = replace.pages
        if len(step.grant_slots):
            self.pages[step.grant_slots, :, step.grant_index] = step.grant_pages
        self.standing[step.leaves] = False
        self.standing[step.joins] = True
        return self._rows(step)

    def page_slots(self, row_slots: Int32s, positions: Int32s, lanes: Int32s | slice) -> Int32s:
        """Where the KV of tokens at `positions` is stored: page id * page_tokens + offset, for `lanes` of each row."""
        page_ids = self.pages[row_slots, lanes, positions // self.page_tokens]
        offsets = positions % self.page_tokens
        return page_ids * self.page_tokens + (offsets if page_ids.ndim == 1 else offsets[:, None])

    def _start(self, start: Start) -> None:
        slot = start.slot
        self.tokens[slot, : len(start.tokens)] = start.tokens
        self.tenancies[slot] += 1
        self.known[slot] = len(start.tokens)
        self.computed[slot] = start.cached_tokens
        self.standing[slot] = False
        self.choices[slot] = start.choice
        self.sampling[slot] = start.sampling
        self.pools[slot] = self.home

    def _rows(self, step: RunStep) -> Rows:
        standing = np.flatnonzero(self.standing).astype(np.int32)
        slots = np.concatenate([standing, step.chunk_slots]).astype(np.int32)
        counts = np.concatenate([np.ones(len(standing), np.int32), step.chunk_tokens]).astype(np.int32)
        samples = np.concatenate([np.ones(len(standing), bool), step.chunk_samples.astype(bool)])
        first_rows = np.cumsum(counts, dtype=np.int32) - counts
        row_slots = np.repeat(slots, counts)
        positions = np.repeat(self.computed[slots] - first_rows, counts) + np.arange(len(row_slots), dtype=np.int32)
        self.computed[slots] += counts
        return Rows(slots, counts, samples, self.computed[slots], first_rows, row_slots, positions, len(standing), step.predicted_s)
