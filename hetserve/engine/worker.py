"""One device's worker: keeps every running sequence's tokens, pages and sampling, applies a step's changes, runs the pass, samples.

It never allocates pages and never decides anything: page ids and the batch come from the controller, as changes.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from hetserve.control.messages import Int32s, RunStep, Sampling, Start
from hetserve.engine.attention import KvMemory, LocalAttention, step_items
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Model
from hetserve.engine.sampler import sample
from hetserve.engine.wire import StepResult, TokenLogprobs, WorkerConfig
from hetserve.spec.model import ModelSpec


class Sequences:
    """What the worker knows of the sequences in its slots. Arrays over slots; no object per token or page."""

    def __init__(self, max_seqs: int, max_tokens: int, kv_heads: int, page_tokens: int) -> None:
        self.max_pages = -(-max_tokens // page_tokens)
        self.kv_heads = kv_heads
        self.page_tokens = page_tokens
        self.tokens = np.zeros((max_seqs, max_tokens + 1), np.int32)
        self.known = np.zeros(max_seqs, np.int32)  # tokens known: prompt and generated
        self.computed = np.zeros(max_seqs, np.int32)  # tokens whose KV is stored
        self.standing = np.zeros(max_seqs, bool)
        self.choices = np.zeros(max_seqs, np.int64)
        self.sampling: list[Sampling] = [Sampling()] * max_seqs
        self.pages = np.zeros((max_seqs, kv_heads, self.max_pages), np.int32)
        self.page_table = torch.from_numpy(self.pages.reshape(-1))

    def apply(self, step: RunStep) -> None:
        """Brings the slots up to date with a step's changes, in the order RunStep documents."""
        self.standing[step.ends] = False
        for start in step.starts:
            self._start(start)
        if len(step.grant_slots):
            self.pages[step.grant_slots, :, step.grant_index] = step.grant_pages
        self.standing[step.leaves] = False
        self.standing[step.joins] = True

    def _start(self, start: Start) -> None:
        slot = start.slot
        self.tokens[slot, : len(start.tokens)] = start.tokens
        self.known[slot] = len(start.tokens)
        self.computed[slot] = start.cached_tokens
        self.standing[slot] = False
        self.choices[slot] = start.choice
        self.sampling[slot] = start.sampling


class Worker:
    """Runs steps on one device.

    Raises (at construction):
        ModelError, ResourceError: as the model's loading does; ResourceError also when the KV pages do not fit in memory.
    """

    def __init__(self, config: WorkerConfig, spec: ModelSpec) -> None:
        self.config = config
        self.spec = spec
        self.model = Model(spec, config.model_folder, config.dtype, config.layers, config.max_model_len)
        n_layers = config.layers[1] - config.layers[0]
        self.memory = KvMemory(n_layers, config.pages, config.page_tokens, spec.head_dim, config.dtype)
        self.seqs = Sequences(config.max_seqs, config.max_model_len, spec.kv_heads, config.page_tokens)

    def run(self, step: RunStep) -> StepResult:
        """Applies the changes, runs one forward pass, samples. Returns the sampled tokens and the time it took."""
        begin_s = time.perf_counter()
        self.seqs.apply(step)
        slots, counts, samples = self._batch(step)
        batch, attend = self._prepare(slots, counts, samples)
        ready_s = time.perf_counter()
        logits = self.model.forward(batch, attend)
        passed_s = time.perf_counter()
        tokens, logprobs = self._sample(logits, slots[samples])
        end_s = time.perf_counter()
        parts_s = {"prepare": ready_s - begin_s, "model": passed_s - ready_s, "sample": end_s - passed_s}
        return StepResult(step.step, step.group, tokens, logprobs, end_s - begin_s, parts_s)

    def _batch(self, step: RunStep) -> tuple[Int32s, Int32s, np.ndarray]:
        """The slots of this pass, standing ones ascending and then the chunks, how many tokens each takes, and which sample."""
        standing = np.flatnonzero(self.seqs.standing).astype(np.int32)
        slots = np.concatenate([standing, step.chunk_slots]).astype(np.int32)
        counts = np.concatenate([np.ones(len(standing), np.int32), step.chunk_tokens]).astype(np.int32)
        samples = np.concatenate([np.ones(len(standing), bool), step.chunk_samples.astype(bool)])
        return slots, counts, samples

    def _prepare(self, slots: Int32s, counts: Int32s, samples: np.ndarray) -> tuple[StepBatch, LocalAttention]:
        seqs = self.seqs
        rows = int(counts.sum())
        first_rows = np.cumsum(counts, dtype=np.int32) - counts
        row_slots = np.repeat(slots, counts)
        positions = np.repeat(seqs.computed[slots] - first_rows, counts) + np.arange(rows, dtype=np.int32)
        seqs.computed[slots] += counts
        page_ids = seqs.pages[row_slots, :, positions // seqs.page_tokens]  # [rows, kv_heads]
        store_slots = page_ids * seqs.page_tokens + (positions % seqs.page_tokens)[:, None].astype(np.int32)
        items = step_items(slots, counts, seqs.computed[slots], first_rows, seqs.kv_heads, seqs.max_pages)
        batch = StepBatch(
            token_ids=torch.from_numpy(seqs.tokens[row_slots, positions].astype(np.int64)),
            positions=torch.from_numpy(positions.astype(np.int32)),
            sample_rows=torch.from_numpy((first_rows + counts - 1)[samples].astype(np.int64)),
        )
        return batch, LocalAttention(self.memory, self.spec, items, seqs.page_table, torch.from_numpy(store_slots))

    def _sample(self, logits: torch.Tensor, slots: Int32s) -> tuple[Int32s, tuple[TokenLogprobs | None, ...]]:
        """Samples one token for each slot and appends it to what the slot knows."""
        seqs = self.seqs
        if not len(slots):
            return np.zeros(0, np.int32), ()
        positions = seqs.known[slots]
        tokens, logprobs = sample(logits, [seqs.sampling[slot] for slot in slots], seqs.choices[slots], positions.astype(np.int64))
        seqs.tokens[slots, positions] = tokens
        seqs.known[slots] = positions + 1
        return tokens.astype(np.int32), logprobs
