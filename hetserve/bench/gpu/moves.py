"""KV on its way: scattered pages within a GPU, into and out of pinned memory of the host, to another GPU; and plain transfers of many sizes.

The measure within a GPU is a large copy there; of what crosses to the host or another GPU also the same transfer as one piece, by torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from hetserve import _C
from hetserve.bench.gpu.attention import HEAD_DIM, PAGE_TOKENS
from hetserve.bench.gpu.timing import COPY_BYTES, Run, copying, floors, timed
from hetserve.engine.accelerator import Accelerator

LAYERS, HELD, MOVED = 8, 8192, 4096  # pages
TRANSFERS = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)  # bytes
PINGS = 20
TO_HOST, FROM_HOST, TO_PEER = "to pinned memory", "from pinned memory", "to another GPU"


@dataclass(frozen=True)
class Move:
    """One way to move KV.

    Attributes:
        right: whether it moved what it should.
        moved_bytes: read and written within the GPU, or sent over a link.
        rival: the plain transfer that it stands beside; empty: none.
    """

    call: Run
    right: Callable[[], bool]
    moved_bytes: int
    rival: str = ""


class Pools:
    """Two pools on the device, pages chosen at random in each, and a buffer for as many."""

    def __init__(self, at: Accelerator, layers: int, held: int, moved: int) -> None:
        self.layers = layers
        self.memories = [torch.empty(layers * held * 2 * PAGE_TOKENS * HEAD_DIM, dtype=torch.bfloat16, device=at.device).normal_() for _ in range(2)]
        self.source, self.target = (_C.KvPool(memory, layers, held, PAGE_TOKENS, HEAD_DIM, "bfloat16", "plain") for memory in self.memories)
        self.chosen = [torch.randperm(held)[:moved].int().to(at.device) for _ in range(2)]
        shape = (moved, layers, 2, PAGE_TOKENS, HEAD_DIM)
        self.buffer = torch.zeros(shape, dtype=torch.bfloat16, device=at.device)
        self.pinned = at.host(*shape, dtype=torch.bfloat16)
        self.views = [memory.view(layers, held, -1) for memory in self.memories]
        self.there = self.views[0][:, self.chosen[0].long()]  # [layers, pages, page]

    def arrived(self) -> bool:
        return bool(self.views[1][:, self.chosen[1].long()].equal(self.there))

    def gathered(self, into: torch.Tensor) -> bool:
        return bool(into.to(self.there.device).view(into.shape[0], self.layers, -1).transpose(0, 1).equal(self.there))

    def moves(self) -> dict[str, Move]:
        """In the order in which each finds what the one before has left."""
        source, target, layers, buffer, pinned = self.source, self.target, self.layers, self.buffer, self.pinned
        out, into = self.chosen
        size = buffer.nbytes

        def copy() -> None:
            _C.page_copy(source, out, target, into, 0, layers)

        def gather(where: torch.Tensor) -> Run:
            return lambda: _C.page_gather(source, out, 0, layers, where)

        def scatter(where: torch.Tensor) -> Run:
            return lambda: _C.page_scatter(target, into, 0, layers, where)

        return {
            "page_copy": Move(copy, self.arrived, 2 * size),
            "page_gather": Move(gather(buffer), lambda: self.gathered(buffer), 2 * size),
            "page_scatter": Move(scatter(buffer), self.arrived, 2 * size),
            TO_HOST: Move(lambda: pinned.copy_(buffer, non_blocking=True), lambda: pinned.equal(buffer.cpu()), size),
            FROM_HOST: Move(lambda: buffer.copy_(pinned, non_blocking=True), lambda: pinned.equal(buffer.cpu()), size),
            "page_gather into pinned memory": Move(gather(pinned), lambda: self.gathered(pinned), size, TO_HOST),
            "page_scatter from pinned memory": Move(scatter(pinned), self.arrived, size, FROM_HOST),
        }


def pages(at: Accelerator, layers: int = LAYERS, held: int = HELD, moved: int = MOVED, copy_bytes: int = COPY_BYTES) -> Iterator[dict[str, Any]]:
    """Bytes moved a second, as a share of the copy's within the GPU (read and written), of one large transfer's where the bytes leave it."""
    copy, copied_bytes = copying(at, copy_bytes)
    pools = Pools(at, layers, held, moved)
    moves = pools.moves()
    if at.device.type == "cuda" and torch.cuda.device_count() > 1:
        moves |= peers(pools)
    right = {name: performed(at, pools, move) for name, move in moves.items()}
    times = timed(at, {"copy": copy, **{name: move.call for name, move in moves.items() if right[name]}})
    bandwidth = copied_bytes / times["copy"]
    yield {"what": "copy", "gbs": bandwidth * 1e-9, **floors(copied_bytes, 0, bandwidth), "seconds": times["copy"]}
    for name, move in moves.items():
        row = {"what": name, "right": right[name], **floors(move.moved_bytes, 0, bandwidth)}
        if right[name]:
            gbs = move.moved_bytes / times[name]
            row |= {"seconds": times[name], "gbs": gbs * 1e-9, "share_of_copy": gbs / bandwidth}
            if move.rival and right[move.rival]:
                row["share_of_transfer"] = times[move.rival] / times[name]
        yield row


def performed(at: Accelerator, pools: Pools, move: Move) -> bool:
    """Whether it moves what it should, into memory in which something else stood; the buffers keep what was gathered."""
    pools.views[1].zero_()
    move.call()
    at.synchronize()
    return move.right()


def peers(pools: Pools) -> dict[str, Move]:
    """To the pages of a second GPU."""
    memory = torch.zeros_like(pools.memories[1], device="cuda:1")
    target = _C.KvPool(memory, pools.layers, pools.views[1].shape[1], PAGE_TOKENS, HEAD_DIM, "bfloat16", "plain")
    whole = torch.zeros_like(pools.buffer, device="cuda:1")
    torch.cuda.synchronize("cuda:1")
    view = memory.view(pools.views[1].shape)

    def copy() -> None:
        _C.page_copy(pools.source, pools.chosen[0], target, pools.chosen[1], 0, pools.layers)

    def arrived() -> bool:
        return bool(view[:, pools.chosen[1].to(view.device).long()].to(pools.there.device).equal(pools.there))

    return {
        TO_PEER: Move(lambda: whole.copy_(pools.buffer, non_blocking=True), lambda: whole.cpu().equal(pools.buffer.cpu()), pools.buffer.nbytes),
        "page_copy to another GPU": Move(copy, arrived, pools.buffer.nbytes, TO_PEER),
    }


def transfers(at: Accelerator, sizes: tuple[int, ...] = TRANSFERS, copy_bytes: int = COPY_BYTES) -> Iterator[dict[str, Any]]:
    """Between the GPU and pinned memory, as a link to a CPU worker stages it: the time until the host knows that it has arrived."""
    copy, copied_bytes = copying(at, copy_bytes)
    bandwidth = copied_bytes / timed(at, {"copy": copy})["copy"]
    for size in sizes:
        here, host = torch.zeros(size, dtype=torch.uint8, device=at.device), at.host(size, dtype=torch.uint8)
        for name, target, source in ((TO_HOST, host, here), (FROM_HOST, here, host)):
            seconds = median(waited(at, target, source) for _ in range(PINGS))
            yield {"what": f"{_size(size)} {name}, waited for", "seconds": seconds, "gbs": size / seconds * 1e-9, **floors(size, 0, bandwidth)}


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def waited(at: Accelerator, target: torch.Tensor, source: torch.Tensor) -> float:
    began_s = time.perf_counter()
    target.copy_(source, non_blocking=True)
    at.mark(soon=True).wait()
    return time.perf_counter() - began_s
