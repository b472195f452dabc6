"""Copies KV pages between pools in the background: from this device to a peer, the other way, or between two pools of this device.

Pages that are written already go in chunks over all layers. Those that a step writes go layer by layer behind it: the source waits until the step
has passed a layer, sends it while the step is in the next, and the target takes the layers in as they come.

Two devices carry out the moves between them in the order the executor sent them, on a thread of each for this pair alone, and no step waits for a
move: so no two wait for each other, and a step that one device waits for holds up no third one.

On a GPU all of it is put on the background stream. What is read there was written by steps whose mark the thread has waited for: if the stream waited
for it, moves of other pairs would stand behind it too.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch

from hetserve.control.messages import Int32s, MoveKv, Place
from hetserve.engine.accelerator import Accelerator, Mark
from hetserve.engine.attention import KvMemory
from hetserve.engine.pages import Part
from hetserve.engine.progress import Progress, StageStopped
from hetserve.engine.transport.link import KV, Link, PeerLost, Pending, make_tag
from hetserve.engine.wire import GroupLayout, MoveResult

CHUNK_BYTES = 2 << 20
AHEAD = 4  # chunks under way at a time, so that a link's latency is not paid for each
STEP_S = 3600.0  # where the peer waits for a step: as long as it lives; whoever freezes in a step is killed by the executor
NICENESS = 10  # of the moving threads: steps come first
CLOSE_S = 2.0


class Mover:
    """The threads that move KV, one for each peer that there is anything to move to or from.

    Args:
        device: this worker's.
        groups: the plan's layout.
        memories: this worker's pools, by (group, pool).
        progress: how far the stages are whose primary it is, by (group, pool of the primary).
        links: peer -> its link for moves.
        report: takes the results, from these threads.
        peer_s: a peer that does not take or give a chunk for so long is gone; it hears of a move only between its steps.
        gpus: the devices of the plan that are GPUs.
        at: this worker's device.
    """

    def __init__(
        self,
        device: str,
        groups: tuple[GroupLayout, ...],
        memories: dict[tuple[int, int], KvMemory],
        progress: dict[tuple[int, int], Progress],
        links: dict[str, Link],
        report: Callable[[MoveResult], None],
        peer_s: float,
        gpus: frozenset[str],
        at: Accelerator,
    ) -> None:
        self._device = device
        self._groups = groups
        self._memories = memories
        self._progress = progress
        self._links = links
        self._report = report
        self._peer_s = peer_s
        self._gpus = gpus
        self._at = at
        self.fault: Exception | None = None
        # by peer; this device itself for moves between its own pools. With each what had been put on the device before it
        self._orders: dict[str, queue.SimpleQueue[tuple[MoveKv, Mark] | None]] = {}
        self._threads: list[threading.Thread] = []

    def order(self, move: MoveKv) -> None:
        """Takes up a move. Returns at once. To be called where steps run, on their stream."""
        source, target = self._device_of(move.source), self._device_of(move.target)
        peer = target if source == self._device else source
        if peer not in self._orders:
            self._orders[peer] = queue.SimpleQueue()
            self._threads.append(threading.Thread(target=self._work, args=(self._orders[peer],), name=f"mover {self._device} {peer}", daemon=True))
            self._threads[-1].start()
        self._orders[peer].put((move, self._at.mark()))

    def close(self) -> None:
        """No more moves. Those under way are waited for, but not for long."""
        for orders in self._orders.values():
            orders.put(None)
        until_s = time.monotonic() + CLOSE_S
        for thread in self._threads:  # or one might still be letting go of its link when the interpreter ends, and abort the process
            thread.join(max(0.0, until_s - time.monotonic()))

    def _work(self, orders: queue.SimpleQueue[tuple[MoveKv, Mark] | None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        torch.set_num_threads(1)  # of this thread alone
        with torch.inference_mode(), self._at.background():  # this thread's alone, as is the current GPU, which comes with the stream
            while (order := orders.get()) is not None:
                move, before = order
                try:
                    if move.step < 0:  # of what steps before it have written; the others wait layer by layer
                        before.wait()
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
                self._send(move, target)
            else:
                self._receive(move, source)
        except PeerLost:
            here, peer = (move.target, source) if target == self._device else (move.source, target)
            tells = (here.group, here.pool) in self._progress  # an attention worker does not: its primary may have given it up first
            self._report(MoveResult(move.move, False, peer if tells else ""))
        except StageStopped:
            self._report(MoveResult(move.move, False))
        else:
            if target == self._device:
                self._report(MoveResult(move.move, True))

    def _device_of(self, place: Place) -> str:
        return self._groups[place.group].pool_device(place.pool)

    def _copy(self, move: MoveKv) -> None:
        places = self._parts(move.target, move.pages_to, move, self._device)
        for part, place in zip(self._ready(move, self._device), places, strict=True):
            place.put(part.take())
        self._at.mark().wait()

    def _send(self, move: MoveKv, peer: str) -> None:
        link = self._links[peer]
        under_way: deque[tuple[Pending, torch.Tensor]] = deque()  # with what is being sent, which must stay
        for part in self._ready(move, peer):
            chunk = part.take()
            under_way.append((link.isend(chunk, make_tag(KV)), chunk))
            if len(under_way) == AHEAD:
                under_way.popleft()[0].wait(self._peer_s)
        for sending, _ in under_way:
            sending.wait(self._peer_s)

    def _receive(self, move: MoveKv, peer: str) -> None:
        link = self._links[peer]
        patience_s = self._peer_s if move.step < 0 else STEP_S
        under_way: deque[tuple[Pending, torch.Tensor, Part]] = deque()

        def take_in() -> None:
            receiving, chunk, part = under_way.popleft()
            receiving.wait(patience_s)
            part.put(chunk)

        for part in self._parts(move.target, move.pages_to, move, peer):
            chunk = part.room()
            under_way.append((link.post_recv(chunk, make_tag(KV)), chunk, part))
            if len(under_way) == AHEAD:
                take_in()
        while under_way:
            take_in()
        self._at.mark().wait()  # a step may read the pages as soon as the move is reported

    def _ready(self, move: MoveKv, peer: str) -> Iterator[Part]:
        """The chunks of the source, each once it is written."""
        first_layer = self._memories[move.source.group, move.source.pool].first_layer
        for part in self._parts(move.source, move.pages_from, move, peer):
            if move.step >= 0:
                self._progress[move.source.group, move.source.pool].wait(move.step, first_layer + part.last - 1)
            yield part

    def _parts(self, place: Place, pages: Int32s, move: MoveKv, peer: str) -> Iterator[Part]:
        """What is copied at a time, the same on both sides."""
        memory = self._memories[place.group, place.pool]
        first, last = (layer - memory.first_layer for layer in move.layers)
        at_once = last - first if move.step < 0 else 1
        plain = self._at.is_gpu or peer in self._gpus
        ids = torch.from_numpy(pages.reshape(-1).astype(np.int32)).to(memory.rows.device)
        for layer in range(first, last, at_once):
            for some in ids.split(max(1, CHUNK_BYTES // (at_once * memory.rows.shape[2]))):
                yield Part(memory, layer, layer + at_once, some, plain)
