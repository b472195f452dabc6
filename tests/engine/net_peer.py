"""Both ends of a layer's messages without a model, in processes, for `test_net.py`. A worker answers q + 2 k - v of each pair, group by group."""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch

from hetserve.engine.heads import Packet, RemoteHeads
from hetserve.engine.transport import posting
from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import Link, PeerLost

TAG = 8
WAIT_S = 30.0
LOST = 3  # exit code of a worker whose primary went away


def answer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q: [pairs, group, head_dim]; k, v: [pairs, head_dim]. Exact on small whole numbers."""
    return q + 2 * k[:, None] - v[:, None]


def leave_in_a_step(folder: str, native: bool) -> None:
    """A primary that is gone after the first of five layers of one pair."""
    if not native:
        posting._net = None
    remote = RemoteHeads("b", GlooLinks(folder, "a", "127.0.0.1").connect("b", "steps"), TAG, SimpleNamespace(group=2, head_dim=16), torch.float32)
    remote.begin(np.zeros((1, 2), np.int32), 5, WAIT_S)
    dispatch = posting.make_dispatch([remote.part])
    dispatch.send(torch.ones(1, 32), torch.ones(1, 16), torch.ones(1, 16))
    out = torch.zeros(1, 32)
    dispatch.collect(out)
    assert (out == 2).all()
    os.kill(os.getpid(), signal.SIGKILL)


def serve(
    folder: str, device: str, native: bool, shape: tuple[int, int], dtype: torch.dtype, layers: int, steps: list[int], dies_at: int = -1
) -> None:
    """Serves steps of so many pairs each. Before message number `dies_at` is answered, it is gone; at -2 it answers none, and stays."""
    if not native:
        posting._net = None
    torch.set_num_threads(1)
    link = GlooLinks(folder, device, "127.0.0.1").connect("a", "steps")
    if dies_at == -2:
        time.sleep(WAIT_S)
    answer_steps(link, TAG, shape, dtype, layers, steps, dies_at)


def answer_steps(link: Link, tag: int, shape: tuple[int, int], dtype: torch.dtype, layers: int, steps: list[int], dies_at: int = -1) -> None:
    """`serve` over a link that is there; ends the process."""
    group, head_dim = shape
    spec = SimpleNamespace(group=group, head_dim=head_dim)
    packets, answers, numbers = [Packet(spec, dtype) for _ in range(2)], Packet(spec, dtype), count()
    exchange = posting.make_exchange(link, tag)
    try:
        for pairs in steps:
            inputs = [packet.shape(pairs) for packet in packets]
            out = answers.shape(pairs)[1]
            exchange.begin(out, inputs[0][0], inputs[1][0], layers, WAIT_S)
            for _ in range(layers):
                _, q, k, v = inputs[exchange.receive()]
                if next(numbers) == dies_at:
                    os._exit(0)
                out.copy_(answer(q.view(pairs, group, head_dim), k, v).flatten(1))
                exchange.send()
            exchange.finish()
    except PeerLost:
        os._exit(LOST)
    os._exit(0)  # not before everything has left
