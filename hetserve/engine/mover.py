"""Copies KV pages between pools in the background: from this device to a peer, the other way, or between two pools of this device.

All workers carry out the moves that concern them in the order the executor sent them, so two that wait for each other cannot happen.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from hetserve.control.messages import Int32s, MoveKv, Place
from hetserve.engine.attention import KvMemory
from hetserve.engine.transport.link import KV, Link, PeerLost, make_tag
from hetserve.engine.wire import GroupLayout, MoveResult

CHUNK_BYTES = 2 << 20
PEER_S = 60.0  # a peer that takes longer for one chunk is gone; a move before this one may hold it up
NICENESS = 10  # of the moving thread: steps come first


class Mover:
    """The thread that moves KV.

    Args:
        device: this worker's.
        groups: the plan's layout.
        memories: this worker's pools, by (group, pool).
        links: peer -> its link for moves.
        report: takes the results, from this thread.
    """

    def __init__(
        self,
        device: str,
        groups: tuple[GroupLayout, ...],
        memories: dict[tuple[int, int], KvMemory],
        links: dict[str, Link],
        report: Callable[[MoveResult], None],
    ) -> None:
        self._device = device
        self._groups = groups
        self._memories = memories
        self._links = links
        self._report = report
        self.fault: Exception | None = None
        self._orders: queue.SimpleQueue[MoveKv | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"mover {device}", daemon=True)
        self._thread.start()

    def order(self, move: MoveKv) -> None:
        """Takes up a move. Returns at once."""
        self._orders.put(move)

    def close(self) -> None:
        """No more moves; does not wait for one under way."""
        self._orders.put(None)

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        torch.set_num_threads(1)  # of this thread alone
        with torch.inference_mode():
            while (move := self._orders.get()) is not None:
                try:
                    self._carry_out(move)
                except Exception as error:  # a fault of ours: the worker ends with it at its next message
                    self.fault = error
                    return self._report(MoveResult(move.move, False))

    def _carry_out(self, move: MoveKv) -> None:
        source, target = self._device_of(move.source), self._device_of(move.target)
        try:
            if source == target:
                self._copy(move)
            elif source == self._device:
                self._send(move, self._links[target])
            else:
                self._receive(move, self._links[source])
        except PeerLost:
            self._report(MoveResult(move.move, False))
        else:
            if target == self._device:
                self._report(MoveResult(move.move, True))

    def _device_of(self, place: Place) -> str:
        return self._groups[place.group].pool_device(place.pool)

    def _copy(self, move: MoveKv) -> None:
        source, target = self._rows(move.source, move), self._rows(move.target, move)
        target.index_copy_(1, _ids(move.pages_to), source.index_select(1, _ids(move.pages_from)))

    def _send(self, move: MoveKv, link: Link) -> None:
        rows = self._rows(move.source, move)
        for pages in _chunks(move.pages_from, rows):
            link.isend(rows.index_select(1, pages), make_tag(KV)).wait(PEER_S)

    def _receive(self, move: MoveKv, link: Link) -> None:
        rows = self._rows(move.target, move)
        for pages in _chunks(move.pages_to, rows):
            chunk = torch.empty((rows.shape[0], len(pages), rows.shape[2]), dtype=torch.uint8)
            link.post_recv(chunk, make_tag(KV)).wait(PEER_S)
            rows.index_copy_(1, pages, chunk)

    def _rows(self, place: Place, move: MoveKv) -> torch.Tensor:
        """The pages of a pool's layers that move: [layers, pages, bytes of one layer's page]. All pools keep their pages in one layout."""
        memory = self._memories[place.group, place.pool]
        first, last = move.layers
        return memory.rows[first - memory.first_layer : last - memory.first_layer]


def _chunks(pages: Int32s, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Page ids, as many at a time as make a chunk."""
    return iter(_ids(pages).split(max(1, CHUNK_BYTES // (rows.shape[0] * rows.shape[2]))))


def _ids(pages: Int32s) -> torch.Tensor:
    return torch.from_numpy(pages.reshape(-1).astype(np.int64))
