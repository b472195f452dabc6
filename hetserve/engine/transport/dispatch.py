"""What a stage's primary sends to its attention workers in each layer of a step, and takes in from them. Here packed and posted from Python.

`hetserve._net` has the same `Dispatch` in two calls a layer; `posting.py` picks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from hetserve import _C
from hetserve.engine.transport.exchange import Exchange
from hetserve.engine.transport.link import PeerLost
from hetserve.engine.transport.staged import StagedExchange


@dataclass(frozen=True)
class Part:
    """One worker's part in a step."""

    exchange: Exchange  # of what holds q, k and v, and of the answers; begun
    pairs: torch.Tensor  # int32 [pairs, 2]: (row, head group), all different
    q: torch.Tensor  # [pairs, group * head_dim]
    k: torch.Tensor  # [pairs, head_dim]
    v: torch.Tensor  # [pairs, head_dim]
    answers: tuple[torch.Tensor, torch.Tensor]  # [pairs, group * head_dim], received in turn


class Dispatch(Protocol):
    """One step's. A worker that is lost is told no more and answers zeros: the controller drops its rows."""

    def send(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Sends every worker what it needs for one layer; from a GPU it leaves with `collect`, once this device's own work has been put there.

        q: [rows, q_heads * head_dim]; k, v: [rows, kv_heads * head_dim].
        """

    def collect(self, out: torch.Tensor) -> float:
        """Puts the workers' answers where they belong in out [rows, q_heads * head_dim]. Returns seconds waited."""


class LinkDispatch:
    """A `Dispatch` over any exchanges."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._staged = [part.exchange for part in parts if isinstance(part.exchange, StagedExchange)]

    def send(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for part in self._parts:
            if not part.exchange.lost:
                _C.heads_pack(q, part.pairs, _group(part), part.q)
                _C.heads_pack(k, part.pairs, 1, part.k)
                _C.heads_pack(v, part.pairs, 1, part.v)
                with suppress(PeerLost):
                    part.exchange.send()

    def collect(self, out: torch.Tensor) -> float:
        waited_s = 0.0
        for exchange in self._staged:
            with suppress(PeerLost):
                exchange.leave()
        for part in self._parts:
            began_s = time.perf_counter()
            answer = _receive(part)
            waited_s += time.perf_counter() - began_s
            _C.heads_unpack(answer, part.pairs, _group(part), out)
        return waited_s


def _group(part: Part) -> int:
    return part.q.shape[1] // part.k.shape[1]


def _receive(part: Part) -> torch.Tensor:
    """The answer; zeros in memory of their own when the worker is lost: gloo may still hold the answers'."""
    try:
        return part.answers[part.exchange.receive()]
    except PeerLost:
        return torch.zeros_like(part.q)
