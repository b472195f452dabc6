"""Head groups that live on other devices: what a stage's primary sends for them each layer, and what an attention worker does with it.

One message a layer and direction: q, k and v of the (row, head group) pairs in one buffer there, their outputs back. Sizes follow from the step.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress

import torch

from hetserve.control.messages import Int32s
from hetserve.engine.accelerator import Accelerator, CpuAccelerator
from hetserve.engine.attention import Attending, KvMemory, pair_items
from hetserve.engine.device_attention import attention_of
from hetserve.engine.sequences import Rows, Sequences
from hetserve.engine.stretch import stretched
from hetserve.engine.transport.dispatch import Part
from hetserve.engine.transport.link import Link, PeerLost
from hetserve.engine.transport.posting import make_dispatch, make_exchange
from hetserve.spec.model import ModelSpec

CPU = torch.device("cpu")
PRIMARY_S = 3600.0  # an attention worker waits for its primary as long as that lives; whoever freezes is killed by the executor


class Packet:
    """Memory for one layer's message: q [pairs, group * head_dim], then k and v [pairs, head_dim]. Grows, and is used again every step."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device = CPU) -> None:
        self._span, self._dim = spec.group * spec.head_dim, spec.head_dim
        self._memory = torch.empty(0, dtype=dtype, device=device)
        self._parts = self._split(0)

    def shape(self, pairs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(all, q, k, v): the whole message and its parts, for so many pairs."""
        if self._parts[1].shape[0] != pairs:
            self._parts = self._split(pairs)
        return self._parts

    def _split(self, pairs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes = (pairs * self._span, pairs * self._dim, pairs * self._dim)
        if self._memory.numel() < sum(sizes):
            self._memory = self._memory.new_empty(2 * sum(sizes))
        whole = self._memory[: sum(sizes)]
        q, k, v = whole.split(sizes)
        return whole, q.view(pairs, self._span), k.view(pairs, self._dim), v.view(pairs, self._dim)


class RemoteHeads:
    """The primary's side of one attention worker.

    Args:
        device: the worker's, to be named when it is lost.
        link, tag: where it is reached.
        at: where the primary's q, k, v and outputs are; None: on a CPU.
    """

    def __init__(self, device: str, link: Link, tag: int, spec: ModelSpec, dtype: torch.dtype, at: Accelerator | None = None) -> None:
        self.device = device
        self._at = at or CpuAccelerator()
        self._exchange = make_exchange(link, tag)
        self._sent, *self._answers = (Packet(spec, dtype, self._at.device) for _ in range(3))

    @property
    def lost(self) -> bool:
        """It did not answer, in this step or before; its head groups are zeros from then on."""
        return self._exchange.lost

    def begin(self, pairs: Int32s, layers: int, patience_s: float) -> None:
        """The pairs of this step, how many layers will follow, and how long one answer may take."""
        whole, q, k, v = self._sent.shape(len(pairs))
        first, second = (answer.shape(len(pairs))[1] for answer in self._answers)
        self.part = Part(self._exchange, self._at.send(pairs), q, k, v, (first, second))
        with suppress(PeerLost):
            self._exchange.begin(whole, first, second, layers, patience_s)


class DispatchedAttention:
    """One step's attention of a stage: some head groups here, others on attention workers.

    Args:
        local: the head groups of this device.
        remotes: the workers that take part in this step, `begin` done.
        dtype: of KV and messages; q, k and v are cast to it, and the answer back.
    """

    def __init__(self, local: Attending, remotes: list[RemoteHeads], dtype: torch.dtype) -> None:
        self._local = local
        self._dispatch = make_dispatch([remote.part for remote in remotes]) if remotes else None
        self._dtype = dtype
        self._out = torch.empty(0, dtype=dtype)
        self.waited_s = 0.0

    @property
    def dispatched(self) -> bool:
        """Whether any head group of this step lies elsewhere."""
        return self._dispatch is not None

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k and v, then attends. q: [rows, q_heads * head_dim]; k, v: [rows, kv_heads * head_dim].

        Returns: like q; the next call overwrites it.
        """
        given = q.dtype
        if given != self._dtype:
            q, k, v = q.to(self._dtype), k.to(self._dtype), v.to(self._dtype)
        if self._out.shape != q.shape:
            self._out = torch.empty(q.shape, dtype=self._dtype, device=q.device)
        self.into(layer, q, k, v, self._out)
        return self._out if given == self._dtype else self._out.to(given)

    def into(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """The same in the dtype of the KV, into `out`."""
        if self._dispatch is None:
            self._local(layer, q, k, v, out)
        else:
            self._dispatch.send(q, k, v)
            self._local(layer, q, k, v, out)
            self.waited_s += self._dispatch.collect(out)


class AttentionPart:
    """An attention worker's side: KV pages of a stage, no weights.

    Args:
        memory: its pool.
        stage, layers: whose head groups it may hold.
        link, tag: where the stage's primary is reached.
        stretch: how many times slower it is made.
    """

    def __init__(self, memory: KvMemory, spec: ModelSpec, stage: int, layers: tuple[int, int], link: Link, tag: int, stretch: float = 1.0) -> None:
        self.memory = memory
        self._spec = spec
        self._stage = stage
        self._layers = layers
        self._exchange = make_exchange(link, tag)
        self._stretch = stretch
        self._packets = (Packet(spec, memory.dtype, memory.at.device), Packet(spec, memory.dtype, memory.at.device))
        self._answer = Packet(spec, memory.dtype, memory.at.device)
        self._begin = attention_of(memory, spec, 1)

    def run(self, seqs: Sequences, rows: Rows, pairs: Int32s) -> None:
        """Serves one step's pairs layer by layer; gives up when the primary is gone."""
        if self._exchange.lost or not len(pairs):
            return
        items, store_slots = pair_items(seqs, rows, self._stage, pairs)
        attend = self._begin(items, seqs, store_slots)
        with suppress(PeerLost):
            self._serve(attend, len(pairs))

    def _serve(self, attend: Attending, pairs: int) -> None:
        inputs = [packet.shape(pairs) for packet in self._packets]
        _, out, _, _ = self._answer.shape(pairs)
        first, last = self._layers
        exchange = self._exchange
        exchange.begin(out, inputs[0][0], inputs[1][0], last - first, PRIMARY_S)
        slower = nullcontext if self._stretch == 1 else stretched
        for layer in range(first, last):
            _, q, k, v = inputs[exchange.receive()]
            with slower(self._stretch):
                attend(layer, q, k, v, out)
            exchange.send()
        exchange.finish()
