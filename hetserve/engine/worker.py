"""One device's worker: its parts of every group, primary or attention, the links to its peers, and what it does with each message.

It never allocates pages and never decides anything: page ids, places and the batch come from the controller, as changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from hetserve import _C
from hetserve.control.messages import MoveKv, RunStep
from hetserve.engine.accelerator import Accelerator
from hetserve.engine.attention import KvMemory, pool_pairs
from hetserve.engine.finisher import Finisher, Unfinished
from hetserve.engine.heads import AttentionPart
from hetserve.engine.mover import Mover
from hetserve.engine.progress import Progress
from hetserve.engine.sequences import Sequences
from hetserve.engine.stage import PrimaryPart
from hetserve.engine.transport.link import HEADS, MOVES, STEPS, Connect, Link, make_tag
from hetserve.engine.wire import MoveResult, StepResult, WorkerConfig
from hetserve.errors import ResourceError
from hetserve.spec.model import ModelSpec

Report: TypeAlias = Callable[[StepResult | MoveResult], None]
Fail: TypeAlias = Callable[[Exception], None]


@dataclass
class GroupParts:
    """What this worker serves of one group, stage by stage: the primary's part, or an attention worker's with its pool's number."""

    seqs: Sequences
    parts: list[PrimaryPart | tuple[AttentionPart, int, int]] = field(default_factory=list)  # (part, stage, pool)


class Worker:
    """Runs steps and moves on one device.

    Args:
        config: what it is told at its start.
        spec: the model.
        connect: makes links to peers; blocks until they connect too.
        report: takes results, from whichever thread has them.
        failed: takes an error that ends the worker and that no call of its methods can raise, from a thread of the worker's own.
        at: its device.

    Raises (at construction):
        ModelError, ResourceError: as the model's loading does; ResourceError also when the KV pages do not fit in memory.
    """

    def __init__(self, config: WorkerConfig, spec: ModelSpec, connect: Connect, report: Report, failed: Fail, at: Accelerator) -> None:
        self._config = config
        self._spec = spec
        self._report = report
        self._at = at
        self._links: dict[str, dict[str, Link]] = {STEPS: {}, MOVES: {}}
        for peer in config.peers():  # in alphabetical order of pairs, seen from everybody: nobody waits in a circle
            for plane, links in self._links.items():
                links[peer] = connect(peer, plane)
        self._memories: dict[tuple[int, int], KvMemory] = {}
        self._progress: dict[tuple[int, int], Progress] = {}
        self.weight_bytes = 0  # of all parts
        try:
            self._groups = {number: self._load(number) for number, group in enumerate(config.groups) if config.device in group.devices}
        except torch.OutOfMemoryError:
            said = f"device {config.device!r} has too little memory for its weights and KV pages: another process may hold some of it"
            raise ResourceError(said, "a smaller memory budget in the cluster file leaves more room") from None
        at.synchronize()  # the zeros of all pages are there before the first move
        gpus = frozenset(gpu.device for gpu in config.gpus)
        self._finisher = Finisher(config.device, report, failed, at) if at.is_gpu else None
        self._mover = Mover(config.device, config.groups, self._memories, self._progress, self._links[MOVES], report, config.peer_s, gpus, at)

    @property
    def kv_bytes(self) -> int:
        """What the KV pages of all parts take."""
        return sum(memory.size_bytes for memory in self._memories.values())

    @property
    def kernels(self) -> str:
        """Whose kernels it runs: an instruction set, or a kind of GPU."""
        return self._config.kind if self._at.is_gpu else _C.info()["isa"]

    def begin_thread(self) -> None:
        """Called on the thread that handles messages, where that is not the one that made the worker."""
        self._at.begin_thread()

    def handle(self, message: RunStep | MoveKv) -> None:
        """Carries out one message: a step now, a move in the background. On a GPU a step may still be under way when this returns."""
        if self._mover.fault is not None:
            raise self._mover.fault
        if isinstance(message, RunStep):
            self._run(message)
        else:
            self._mover.order(message)

    def close(self) -> None:
        """Takes no more work."""
        for progress in self._progress.values():
            progress.stop()
        self._mover.close()
        if self._finisher is not None:
            self._finisher.close()
        for links in self._links.values():
            for link in links.values():
                link.close()

    def _run(self, step: RunStep) -> None:
        """Applies the changes and runs this worker's parts of the pass."""
        group = self._groups[step.group]
        seqs = group.seqs
        rows = seqs.apply(step)
        for part in group.parts:
            if isinstance(part, PrimaryPart):
                result = part.run(step, seqs, rows)
                if isinstance(result, Unfinished):
                    assert self._finisher is not None
                    self._finisher.put(result)
                elif result is not None:
                    self._report(result)
            else:
                heads, stage, pool = part
                heads.run(seqs, rows, pool_pairs(seqs, rows, stage, pool))
        seqs.known[rows.sampled] += 1

    def _load(self, number: int) -> GroupParts:
        """Loads the parts of one group and gets their KV memory."""
        config, layout = self._config, self._config.groups[number]
        group = GroupParts(Sequences(config, layout, self._spec.kv_heads))
        links = self._links[STEPS]
        for stage, one in enumerate(layout.stages):
            for index, pool in enumerate(one.pools):
                if pool.device != config.device:
                    continue
                place = one.first_pool + index
                if index == 0:
                    primary = PrimaryPart(config, self._spec, number, stage, links, self._at)
                    self._memories[number, place] = primary.memory
                    self._progress[number, place] = primary.progress
                    self.weight_bytes += primary.model.weight_bytes
                    group.parts.append(primary)
                else:
                    slower = config.stretch.attention if config.stretch else 1.0
                    memory = KvMemory(one.layers, pool.pages, config.page_tokens, self._spec.head_dim, config.dtype, self._at)
                    self._memories[number, place] = memory
                    part = AttentionPart(memory, self._spec, stage, one.layers, links[one.primary], make_tag(HEADS, number, stage), slower)
                    group.parts.append((part, stage, place))
        return group
