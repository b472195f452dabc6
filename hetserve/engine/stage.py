"""A stage's primary: runs its layers of a step, exchanges hidden states with its neighbours, and samples if it is the last."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hetserve.control.messages import NO_INTS, Int32s, RunStep
from hetserve.engine.accelerator import Accelerator
from hetserve.engine.attention import DTYPES, KvMemory, pool_pairs, stage_items
from hetserve.engine.device_attention import attention_of
from hetserve.engine.finisher import Unfinished
from hetserve.engine.graphs import DecodeGraphs
from hetserve.engine.heads import DispatchedAttention, RemoteHeads
from hetserve.engine.last_tokens import UNKNOWN, LastTokens
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Attend, Model
from hetserve.engine.progress import Progress
from hetserve.engine.sampler import sample, sample_there
from hetserve.engine.sequences import Rows, Sequences
from hetserve.engine.stretch import StretchedPass
from hetserve.engine.transport.link import HEADS, HIDDEN, LOSSES, TOKENS, Link, PeerLost, Pending, make_tag
from hetserve.engine.wire import StepResult, TokenLogprobs, WorkerConfig, patience_s
from hetserve.spec.model import ModelSpec


@dataclass
class Owed:
    """Tokens of an earlier step that the last stage has not sent yet."""

    slots: Int32s
    tenancies: Int32s  # of the slots, then: by now another sequence may have moved in
    positions: Int32s
    tokens: torch.Tensor  # int32 [slots]
    receiving: Pending


class PrimaryPart:
    """One stage of one group on this device.

    Args:
        config: this worker's.
        spec: the model.
        group, stage: which part this is.
        links: peer -> its link for steps.
        at: the device.
    """

    def __init__(self, config: WorkerConfig, spec: ModelSpec, group: int, stage: int, links: dict[str, Link], at: Accelerator) -> None:
        layout = config.groups[group]
        own = layout.stages[stage]
        self._spec = spec
        self._dtype = DTYPES[config.dtype]
        self._stretch = config.stretch
        self._group, self._stage, self._layout = group, stage, layout
        self._at = at
        self.model = Model(spec, config.model_folder, own.weights, own.layers, config.max_model_len, at.device)
        self.progress = Progress(at)
        self.memory = KvMemory(own.layers, own.pools[0].pages, config.page_tokens, spec.head_dim, config.dtype, at)
        self._begin = attention_of(self.memory, spec, spec.kv_heads)
        self._remotes = {  # by their pools' numbers
            own.first_pool + index: RemoteHeads(pool.device, links[pool.device], make_tag(HEADS, group, stage), spec, self._dtype, at)
            for index, pool in enumerate(own.pools)
            if index
        }
        self._is_first, self._is_last = stage == 0, stage + 1 == len(layout.stages)
        self._before = None if self._is_first else links[layout.stages[stage - 1].primary]
        self._after = None if self._is_last else links[layout.stages[stage + 1].primary]
        self._ring = None if len(layout.stages) == 1 else links.get(layout.reporter if self._is_first else layout.stages[0].primary)
        self._owed: deque[Owed] = deque()
        self._sends: list[tuple[Pending, torch.Tensor]] = []  # with what is being sent, which must stay
        self._lost: set[str] = set()  # devices of the group known to be lost
        self._graphs: DecodeGraphs | None = None
        self._last = LastTokens(config.max_seqs, at.device)
        self._keeps_tokens = at.is_gpu and self._is_first and self._is_last  # what is sampled here is the next step's input here
        if at.is_gpu:
            most_pages = -(-config.max_model_len // config.page_tokens)
            self._graphs = DecodeGraphs(self.model, spec, self.memory, config.max_seqs, most_pages, self._last)
            self._graphs.capture_all(bool(self._remotes))

    def run(self, step: RunStep, seqs: Sequences, rows: Rows) -> StepResult | Unfinished | None:
        """One pass. Returns the step's result where this is the last stage; on a GPU, if it can, before the device has come to its end."""
        begin_s = time.perf_counter()
        self._reap(rows)
        captured = self._graphs if not len(step.chunk_slots) else None
        attend = self._prepare(seqs, rows, captured)
        ready_s = time.perf_counter()
        hidden = self._receive_hidden(rows)
        out = self._pass(step, seqs, rows, attend, hidden) if captured is None else captured.run(len(rows.row_slots), hidden, attend)
        if not self._is_last:
            self._send_hidden(out)
            self._expect_tokens(seqs, rows)
            return None
        passed_s = time.perf_counter()
        self._note_lost()
        lost, parts_s = tuple(sorted(self._lost)), {"prepare": ready_s - begin_s, "model": passed_s - ready_s, "remote": attend.waited_s}
        if self._keeps_tokens:
            there, logprobs = self._sample_there(out, seqs, rows.sampled, captured)
            result = StepResult(step.step, step.group, NO_INTS, logprobs, 0.0, parts_s, lost)
            return Unfinished(self._at.mark(), there, result, begin_s, passed_s)
        tokens, logprobs = self._sample(out, seqs, rows.sampled)
        if not len(tokens):
            self._at.synchronize()  # nobody has waited yet, and a step that is reported is done
        end_s = time.perf_counter()
        return StepResult(step.step, step.group, tokens, logprobs, end_s - begin_s, parts_s | {"sample": end_s - passed_s}, lost)

    # ----------------------------------------------------------------------------------------------- one pass

    def _prepare(self, seqs: Sequences, rows: Rows, captured: DecodeGraphs | None) -> DispatchedAttention:
        items, store_slots = stage_items(seqs, rows, self._stage, self._layout.stages[self._stage].first_pool)
        if self._is_first:
            self._settle_tokens(seqs, rows)
        local = self._begin(items, seqs, store_slots) if captured is None else captured.begin(items, seqs, store_slots, rows)
        remotes = []
        for pool, remote in self._remotes.items():
            pairs = pool_pairs(seqs, rows, self._stage, pool)
            if len(pairs):
                remote.begin(pairs, self.model.last - self.model.first, patience_s(rows.predicted_s))
                remotes.append(remote)
        return DispatchedAttention(local, remotes, self._dtype)

    def _pass(self, step: RunStep, seqs: Sequences, rows: Rows, attend: DispatchedAttention, hidden: torch.Tensor | None) -> torch.Tensor:
        """The layers, one op after the other."""
        sampled = None if rows.samples.all() and len(rows.slots) == len(rows.row_slots) else (rows.first_rows + rows.counts - 1)[rows.samples]
        tokens = self._at.send(seqs.tokens[rows.row_slots, rows.positions])
        batch = StepBatch(
            token_ids=self._last.fill(tokens, self._at.send(rows.row_slots)) if self._keeps_tokens else tokens,
            positions=self._at.send(rows.positions.astype(np.int32)),
            sample_rows=None if sampled is None else self._at.send(sampled.astype(np.int64)),
        )
        slowed = StretchedPass(attend, self._stretch) if self._stretch else None
        passing: Attend = slowed or attend
        if len(step.chunk_slots):  # moves follow no other steps
            passing = self.progress.noting(step.step, passing)
        out = self.model.forward(batch, passing, hidden)
        if slowed is not None:
            slowed.finish()
        return out

    def _sample_there(
        self, logits: torch.Tensor, seqs: Sequences, slots: Int32s, captured: DecodeGraphs | None
    ) -> tuple[torch.Tensor, tuple[TokenLogprobs | None, ...]]:
        """`_sample` without waiting: the tokens are on their way to the host, and the next step takes them from the device."""
        host = self._at.host(len(slots), dtype=torch.int32)
        if not len(slots):
            return host, ()
        positions = seqs.known[slots]
        tokens, logprobs = sample_there(logits, [seqs.sampling[slot] for slot in slots], seqs.choices[slots], positions.astype(np.int64))
        self._last.put(self._at.send(slots) if captured is None else captured.row_slots[: len(slots)], tokens)
        host.copy_(tokens, non_blocking=True)
        seqs.tokens[slots, positions] = UNKNOWN
        return host, logprobs

    def _sample(self, logits: torch.Tensor, seqs: Sequences, slots: Int32s) -> tuple[Int32s, tuple[TokenLogprobs | None, ...]]:
        """Samples one token for each slot, for this device's own copy of the tokens and the first stage's."""
        if not len(slots):
            return np.zeros(0, np.int32), ()
        positions = seqs.known[slots]
        tokens, logprobs = self._chosen(logits, [seqs.sampling[slot] for slot in slots], seqs.choices[slots], positions.astype(np.int64))
        seqs.tokens[slots, positions] = tokens
        if not self._is_first:
            self._send(self._ring, torch.from_numpy(tokens), TOKENS, 0)
        return tokens, logprobs

    def _chosen(self, logits: torch.Tensor, *how: Any) -> tuple[Int32s, tuple[TokenLogprobs | None, ...]]:
        """The sampled tokens, on the host."""
        if self._at.is_gpu:
            there, logprobs = sample_there(logits, *how)
            return there.cpu().numpy(), logprobs
        tokens, logprobs = sample(logits, *how)
        return tokens.astype(np.int32), logprobs

    # --------------------------------------------------------------------------------------------- neighbours

    def _receive_hidden(self, rows: Rows) -> torch.Tensor | None:
        """The rows of the stage before, and which devices it found lost; zeros when it is lost itself."""
        if self._before is None:
            return None
        hidden = torch.zeros((len(rows.row_slots), self._spec.hidden), dtype=self._dtype, device=self._at.device)
        losses = torch.zeros(1, dtype=torch.int64)
        wait_s = patience_s(rows.predicted_s) * sum(len(stage.pools) for stage in self._layout.stages[: self._stage])
        try:
            receiving = [
                self._before.post_recv(part, make_tag(kind, self._group, self._stage)) for part, kind in ((hidden, HIDDEN), (losses, LOSSES))
            ]
            for one in receiving:
                one.wait(wait_s)
        except PeerLost:
            self._before.close()
            self._lost.add(self._layout.stages[self._stage - 1].primary)
            hidden, losses = torch.zeros_like(hidden), torch.zeros_like(losses)
        self._lost.update(device for bit, device in enumerate(self._layout.devices) if int(losses) >> bit & 1)
        return hidden.to(self.model.dtype)

    def _send_hidden(self, hidden: torch.Tensor) -> None:
        self._note_lost()
        losses = sum(1 << bit for bit, device in enumerate(self._layout.devices) if device in self._lost)
        self._send(self._after, hidden.to(self._dtype), HIDDEN, self._stage + 1)
        self._send(self._after, torch.tensor([losses]), LOSSES, self._stage + 1)

    def _expect_tokens(self, seqs: Sequences, rows: Rows) -> None:
        """The first stage will need what the last one samples; it posts for it now and waits when it needs it."""
        slots = rows.sampled
        if not (self._is_first and len(slots)):
            return
        assert self._ring is not None
        tokens = torch.zeros(len(slots), dtype=torch.int32)
        try:
            self._owed.append(
                Owed(slots, seqs.tenancies[slots], seqs.known[slots], tokens, self._ring.post_recv(tokens, make_tag(TOKENS, self._group)))
            )
        except PeerLost:
            self._lost.add(self._layout.reporter)

    def _settle_tokens(self, seqs: Sequences, rows: Rows) -> None:
        """Waits for the tokens this step's rows may be made of. Of a lost last stage none come: then the group is lost, and nobody looks."""
        while self._owed and any(np.isin(owed.slots, rows.slots).any() for owed in self._owed):
            owed = self._owed.popleft()
            try:
                owed.receiving.wait(patience_s(rows.predicted_s) * len(self._layout.devices))
                same = seqs.tenancies[owed.slots] == owed.tenancies
                seqs.tokens[owed.slots[same], owed.positions[same]] = owed.tokens.numpy()[same]
            except PeerLost:
                self._lost.add(self._layout.reporter)
                self._owed.clear()

    def _send(self, link: Link | None, data: torch.Tensor, kind: int, stage: int) -> None:
        assert link is not None
        try:
            self._sends.append((link.isend(data, make_tag(kind, self._group, stage)), data))
        except PeerLost:
            link.close()  # whoever is last in the group tells of it, or is lost itself

    def _reap(self, rows: Rows) -> None:
        """Ends the sends of the step before, which has long been received."""
        sends, self._sends = self._sends, []
        for sending, _ in sends:
            try:
                sending.wait(patience_s(rows.predicted_s) * len(self._layout.devices))
            except PeerLost:
                continue

    def _note_lost(self) -> None:
        self._lost.update(remote.device for remote in self._remotes.values() if remote.lost)
