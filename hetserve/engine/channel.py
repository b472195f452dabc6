"""How the executor reaches a worker: what every channel does, and the plainest, a thread in this process (tests; machines without ZeroMQ).

A channel sends messages and posts what comes back into the executor's queue: a result, or that the worker is lost. It decides nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

from hetserve import errors
from hetserve.control.messages import MoveKv, RunStep
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.wire import (
    PEER_S,
    TO_WORKER,
    Failed,
    Gpu,
    GroupLayout,
    MoveResult,
    PoolLayout,
    Ready,
    StageLayout,
    StepResult,
    WorkerConfig,
    patience_s,
)
from hetserve.spec.plan import Plan

if TYPE_CHECKING:
    from hetserve.engine.join import Door

STOP_S = 10.0  # how long a worker may take to stop by itself before it is killed


@dataclass(frozen=True)
class Lost:
    """The worker behind a channel is gone."""

    device: str
    reason: str


Post: TypeAlias = Callable[[StepResult | MoveResult | Lost], None]


class Outgoing:
    """A message for one or more workers, encoded at most once."""

    def __init__(self, message: RunStep | MoveKv) -> None:
        self.message = message

    @cached_property
    def raw(self) -> bytes:
        return TO_WORKER.encode(self.message)


class Channel(Protocol):
    """One worker, as the executor sees it. `start` and `ready` are two, as workers wait for each other before they are ready."""

    device: str

    def start(self, post: Post) -> None: ...

    def ready(self) -> Ready: ...

    def send(self, outgoing: Outgoing) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


def raise_failed(failed: Failed, device: str) -> NoReturn:
    """Raises the error a worker reported, as the class it had there."""
    kind = getattr(errors, failed.kind, None) if failed.kind else None
    if kind is not None:
        raise kind(failed.message, failed.hint)
    raise errors.WorkerError(f"the worker for device {device!r} failed:\n{failed.message}", "this is a fault of hetserve; please report it")


class InlineChannel:
    """A worker on a thread of this process: same messages, same results, nothing encoded."""

    def __init__(self, config: WorkerConfig, hub: LocalHub) -> None:
        self.device = config.device
        self._config = config
        self._hub = hub
        self._inbox: queue.SimpleQueue[RunStep | MoveKv | None] = queue.SimpleQueue()

    def start(self, post: Post) -> None:
        self._post = post

    def ready(self) -> Ready:
        from hetserve import _C
        from hetserve.engine.accelerator import make_accelerator
        from hetserve.engine.transport.connect import make_connect
        from hetserve.engine.worker import Worker
        from hetserve.spec.load import load_model

        config, at = self._config, make_accelerator(self._config.kind, self._config.index)
        connect = make_connect(config, at, LocalLinks(self._hub, self.device).connect, None)
        self.worker = Worker(config, load_model(Path(config.model_folder)), connect, self._post, self._fail, at)
        self._thread = threading.Thread(target=self._run, name=f"worker {self.device}", daemon=True)
        self._thread.start()
        return Ready(self.worker.kernels, _C.get_threads(), self.worker.weight_bytes, self.worker.kv_bytes)

    def send(self, outgoing: Outgoing) -> None:
        self._inbox.put(outgoing.message)

    def kill(self) -> None:
        self._leave()
        self._post(Lost(self.device, "it was stopped"))

    def close(self) -> None:
        self._leave()
        if hasattr(self, "_thread"):
            self._thread.join(STOP_S)
            self.worker.close()

    def _leave(self) -> None:
        self._hub.leave(self.device)
        self._inbox.put(None)

    def _run(self) -> None:
        self.worker.begin_thread()
        while (message := self._inbox.get()) is not None:
            try:
                self.worker.handle(message)
            except Exception as error:
                return self._fail(error)

    def _fail(self, error: Exception) -> None:
        """The worker is gone."""
        self._post(Lost(self.device, errors.in_short(error)))
        self._hub.leave(self.device)  # the reason first: its peers tell of it too


def plan_layout(plan: Plan) -> tuple[GroupLayout, ...]:
    """What workers are told of a plan."""
    groups = []
    for group in plan.groups:
        stages: list[StageLayout] = []
        for stage in group.stages:
            first_pool = sum(len(one.pools) for one in stages)
            stages.append(StageLayout(stage.layers, stage.weights, tuple(PoolLayout(pool.device, pool.pages) for pool in stage.pools), first_pool))
        groups.append(GroupLayout(tuple(stages), group.role != "mixed"))
    return tuple(groups)


def joining_devices(plan: Plan) -> list[str]:
    """The devices of a plan whose workers are started on other nodes and join."""
    used = dict.fromkeys(pool.device for group in plan.groups for stage in group.stages for pool in stage.pools)
    return [name for name in used if plan.cluster.device(name).node]


def make_channels(
    plan: Plan, folder: Path, private: Path, in_process: bool, door: Door | None = None, longest_step_s: float = 0.0
) -> dict[str, Channel]:
    """Device -> its worker's channel, not started yet, for every device the plan uses. The plan is one the controller takes (`config_from_plan`).

    Args:
        folder: the model.
        private: an empty folder of the engine's own, for sockets and for the workers to find each other.
        door: where workers of other nodes join.
        longest_step_s: what a step is expected to take at most, so that nobody gives up a peer that is in one.

    Raises:
        UsageError: the plan uses such a node and there is no door.
    """
    layout = plan_layout(plan)
    peer_s = max(PEER_S, (plan.limits.steps_in_flight + 1) * patience_s(longest_step_s))
    joining = joining_devices(plan)
    if joining and door is None:
        raise errors.UsageError(f"devices {', '.join(joining)} are on other nodes, whose workers have to join", "give --join-address and --token")
    meeting = door.meeting() if door is not None and joining else str(private)
    hub = LocalHub()
    channels: dict[str, Channel] = {}
    for name in dict.fromkeys(device for group in layout for device in group.devices):
        device = plan.cluster.device(name)
        config = WorkerConfig(
            device=name,
            cores=device.cores,
            isa=device.isa,
            model_folder=str(folder),
            dtype=plan.model.dtype,
            groups=layout,
            page_tokens=plan.page_tokens,
            max_seqs=plan.limits.max_seqs,
            max_model_len=plan.limits.max_model_len,
            meeting=meeting,
            stretch=device.stretch,
            slowed=tuple(link for link in plan.cluster.links if link.emulate and name in (link.source, link.target)),
            address=door.host if door is not None and joining else "127.0.0.1",
            kind=device.kind,
            index=device.index,
            gpus=tuple(Gpu(one.name, one.kind, one.index, one.node) for one in plan.cluster.devices if one.is_gpu),
            peer_s=peer_s,
        )
        if in_process:
            channels[name] = InlineChannel(config, hub)
        else:
            channels[name] = _socket_channel(config, private / f"{len(channels)}", door if name in joining else None)
    return channels


def _socket_channel(config: WorkerConfig, socket: Path, door: Door | None) -> Channel:
    """A worker process of this machine, or one that joins. What either needs is imported here: ZeroMQ may be missing."""
    from hetserve.engine.join import JoinedChannel
    from hetserve.engine.sockets import ProcessChannel

    return ProcessChannel(config, socket) if door is None else JoinedChannel(config, door)
