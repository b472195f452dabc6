"""Head groups that live on other devices: what a stage's primary sends for them each layer, and what an attention worker does with it.

One message a layer and direction: q, k and v of the (row, head group) pairs in one buffer there, their outputs back. Sizes follow from the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hetserve import _C
from hetserve.control.messages import Int32s
from hetserve.engine.attention import KvMemory, LocalAttention, pair_items
from hetserve.engine.sequences import Rows, Sequences
from hetserve.engine.stretch import stretched
from hetserve.engine.transport.link import Link, PeerLost, Pending
from hetserve.spec.model import ModelSpec

PRIMARY_S = 3600.0  # an attention worker waits for its primary as long as that lives; whoever freezes is killed by the executor


class Packet:
    """Memory for one layer's message: q [pairs, group * head_dim], then k and v [pairs, head_dim]. Grows, and is used again every step."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype) -> None:
        self._span, self._dim, self._dtype = spec.group * spec.head_dim, spec.head_dim, dtype
        self._memory = torch.empty(0, dtype=dtype)

    def shape(self, pairs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(all, q, k, v): the whole message and its parts, for so many pairs."""
        sizes = (pairs * self._span, pairs * self._dim, pairs * self._dim)
        if self._memory.numel() < sum(sizes):
            self._memory = torch.empty(2 * sum(sizes), dtype=self._dtype)
        whole = self._memory[: sum(sizes)]
        q, k, v = whole.split(sizes)
        return whole, q.view(pairs, self._span), k.view(pairs, self._dim), v.view(pairs, self._dim)


class RemoteHeads:
    """The primary's side of one attention worker.

    Args:
        device: the worker's, to be named when it is lost.
        link, tag: where it is reached.
    """

    def __init__(self, device: str, link: Link, tag: int, spec: ModelSpec, dtype: torch.dtype) -> None:
        self.device = device
        self.lost = False
        self._link = link
        self._tag = tag
        self._group = spec.group
        self._sent = Packet(spec, dtype)
        self._answers = (Packet(spec, dtype), Packet(spec, dtype))

    def begin(self, pairs: Int32s, layers: int, patience_s: float) -> None:
        """The pairs of this step, how many layers will follow, and how long one answer may take."""
        self._pairs = torch.from_numpy(pairs)
        self._layers_left = layers
        self._patience_s = patience_s
        self._whole, self._q, self._k, self._v = self._sent.shape(len(pairs))
        self._out, self._next_out = (answer.shape(len(pairs))[1] for answer in self._answers)
        if self.lost:
            self._out = torch.zeros_like(self._out)
        else:
            self._guard(self._expect)

    def send(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Packs and sends what the worker needs for one layer; its answer is awaited by `collect`."""
        if self.lost:
            return
        _C.heads_pack(q, self._pairs, self._group, self._q)
        _C.heads_pack(k, self._pairs, 1, self._k)
        _C.heads_pack(v, self._pairs, 1, self._v)
        self._guard(self._post)

    def collect(self, out: torch.Tensor) -> float:
        """Puts the answer where it belongs in out; zeros for a lost worker's pairs, whose rows the controller drops. Returns seconds waited."""
        began_s = time.perf_counter()
        if not self.lost:
            self._guard(self._await)
        waited_s = time.perf_counter() - began_s
        _C.heads_unpack(self._out, self._pairs, self._group, out)
        return waited_s

    def _expect(self) -> None:
        self._coming: Pending = self._link.post_recv(self._next_out, self._tag)

    def _post(self) -> None:
        self._sending: Pending = self._link.isend(self._whole, self._tag)

    def _await(self) -> None:
        """Waits for one answer; the next one is expected before, as long as there is time."""
        coming = self._coming
        self._out, self._next_out = self._next_out, self._out
        self._layers_left -= 1
        if self._layers_left:
            self._expect()
        coming.wait(self._patience_s)
        self._sending.wait(self._patience_s)

    def _guard(self, use_link: Callable[[], None]) -> None:
        """Notes the loss of the worker. Nothing more is sent to it, and buffers change: gloo may still hold the old ones."""
        try:
            use_link()
        except PeerLost:
            self.lost = True
            self._link.close()
            self._out = torch.zeros_like(self._out)


class DispatchedAttention:
    """One step's attention of a stage: some head groups here, others on attention workers.

    Args:
        local: the head groups of this device.
        remotes: the workers that take part in this step, `begin` done.
        dtype: of KV and messages; q, k and v are cast to it, and the answer back.
    """

    def __init__(self, local: LocalAttention, remotes: list[RemoteHeads], dtype: torch.dtype) -> None:
        self._local = local
        self._remotes = remotes
        self._dtype = dtype
        self.waited_s = 0.0

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k and v, then attends. q: [rows, q_heads * head_dim]; k, v: [rows, kv_heads * head_dim]; returns like q."""
        given = q.dtype
        q, k, v = q.to(self._dtype), k.to(self._dtype), v.to(self._dtype)
        for remote in self._remotes:
            remote.send(q, k, v)
        out = torch.empty(q.shape, dtype=q.dtype)
        self._local(layer, q, k, v, out)
        for remote in self._remotes:
            self.waited_s += remote.collect(out)
        return out.to(given)


class AttentionPart:
    """An attention worker's side: KV pages of a stage, no weights.

    Args:
        memory: its pool.
        stage, layers: whose head groups it may hold.
        link, tag: where the stage's primary is reached.
        stretch: how many times slower it is made.
    """

    def __init__(
        self, memory: KvMemory, spec: ModelSpec, stage: int, layers: tuple[int, int], link: Link, tag: int, stretch: float = 1.0
    ) -> None:
        self.memory = memory
        self._spec = spec
        self._stage = stage
        self._layers = layers
        self._link = link
        self._tag = tag
        self._stretch = stretch
        self._lost = False
        self._packets = (Packet(spec, memory.dtype), Packet(spec, memory.dtype))
        self._answer = Packet(spec, memory.dtype)

    def run(self, seqs: Sequences, rows: Rows, pairs: Int32s) -> None:
        """Serves one step's pairs layer by layer; gives up when the primary is gone."""
        if self._lost or not len(pairs):
            return
        items, store_slots = pair_items(seqs, rows, self._stage, pairs)
        attend = LocalAttention(self.memory, self._spec, items, seqs.page_table, store_slots)
        try:
            self._serve(attend, len(pairs))
        except PeerLost:
            self._lost = True

    def _serve(self, attend: LocalAttention, pairs: int) -> None:
        inputs = [packet.shape(pairs) for packet in self._packets]
        _, out, _, _ = self._answer.shape(pairs)
        first, last = self._layers
        receiving = self._link.post_recv(inputs[0][0], self._tag)
        sending: Pending | None = None
        for layer in range(first, last):
            receiving.wait(PRIMARY_S)
            if sending is not None:
                sending.wait(PRIMARY_S)
            _, q, k, v = inputs[(layer - first) % 2]
            if layer + 1 < last:
                receiving = self._link.post_recv(inputs[(layer + 1 - first) % 2][0], self._tag)
            with stretched(self._stretch):
                attend(layer, q, k, v, out)
            sending = self._link.isend(out, self._tag)
        if sending is not None:
            sending.wait(PRIMARY_S)
