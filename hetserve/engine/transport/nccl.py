"""Links between workers on different GPUs of one node: NCCL for what lies on the GPUs, a link between hosts for the rest.

NCCL knows no tags, and two ends that post in different orders on one communicator wait for each other for good. So every tag has a communicator of
its own for each direction, made when the workers connect, in one order. A message that nobody takes holds its communicator, and nobody else's.

A receive is a kernel that turns on the GPU until its message is there; meanwhile it takes room from others, and what has to load or to allocate
something may wait for it. So NCCL gets a receive only when it is waited for, and one of a move, which may wait for a whole step, only when the sender
says over the hosts' link that it sends.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

import torch
from torch import distributed

from hetserve.engine.accelerator import Accelerator
from hetserve.engine.transport.gloo import CONNECT_S, meet
from hetserve.engine.transport.link import HEADS, HIDDEN, KINDS, KV, MOVES, STEPS, Connect, Link, PeerLost, Pending, make_tag
from hetserve.engine.wire import WorkerConfig

ASK_TAG = KINDS - 1  # a kind of its own: messages that nobody receives
ASK_S = 0.25  # how often a wait asks the host link whether the peer is still there: NCCL never says
PAUSE_S = 0.001  # the longest between two looks at a work ...
SHARE = 16  # ... else this part of how long it has been waited for
ENVIRONMENT = {
    "TORCH_NCCL_BLOCKING_WAIT": "1",  # no threads that watch works, and end the process when one fails: a lost peer is ours to deal with
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "0",  # no record of every message
}


class Group(Protocol):
    """As much of a ProcessGroupNCCL of two as is used. Works tell by `is_completed` that they are done or have failed; then `wait` says which."""

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any: ...

    def abort(self) -> None: ...


MakeGroup: TypeAlias = Callable[[str, str], Group]  # (peer, name), the same name at both ends; may block until the peer asks for it too


def nccl_groups(config: WorkerConfig) -> MakeGroup | None:
    """Makes one worker's groups, which become communicators with their first message. None: this torch has no NCCL."""
    if not distributed.is_nccl_available():
        return None
    nccl: Any = getattr(distributed, "ProcessGroupNCCL")  # noqa: B009 - torch's own types leave it out where it is not built

    def make(peer: str, name: str) -> Group:
        os.environ.update(ENVIRONMENT)
        store, rank = meet(config.meeting, config.device, peer, f"nccl|{name}")
        options = nccl.Options(is_high_priority_stream=name.startswith(STEPS))
        options._timeout = timedelta(seconds=CONNECT_S)
        group: Group = nccl(store, rank, 2, options)
        return group

    return make


def device_messages(config: WorkerConfig, peer: str, plane: str) -> list[tuple[int, str]]:
    """What travels between this worker's GPU and the peer's: (tag, who sends it), in an order that both find."""
    found = set()
    pair = {config.device, peer}
    for number, group in enumerate(config.groups if plane == STEPS else ()):
        for stage, one in enumerate(group.stages):
            if any({one.primary, pool.device} == pair for pool in one.pools[1:]):
                found |= {(make_tag(HEADS, number, stage), device) for device in pair}
            if stage and {group.stages[stage - 1].primary, one.primary} == pair:
                found.add((make_tag(HIDDEN, number, stage), group.stages[stage - 1].primary))
    return sorted(found if plane == STEPS else {(make_tag(KV), device) for device in pair})


class NcclLinks:
    """Makes one worker's links to peers on other GPUs of its node.

    Args:
        config: this worker's.
        at: its GPU.
        host: makes links for tensors of the host.
        make_group: makes groups for those of the GPU.
    """

    def __init__(self, config: WorkerConfig, at: Accelerator, host: Connect, make_group: MakeGroup) -> None:
        self._config = config
        self._at = at
        self._host = host
        self._make_group = make_group

    def connect(self, peer: str, plane: str) -> NcclLink:
        """Blocks until the peer connects too; sends one message each way over everything, as communicators are made by their first."""
        link = NcclLink(self._host(peer, plane), int(peer > self._config.device), announced=plane == MOVES)
        for tag, sender in device_messages(self._config, peer, plane):
            group = self._make_group(peer, f"{plane}|{tag}|{sender}")
            token = torch.zeros(1, device=self._at.device)
            if sender == peer:
                link.incoming[tag] = _Incoming(group)
                link.post_recv(token, tag).wait(CONNECT_S)
            else:
                link.outgoing[tag] = group
                link.isend(token, tag).wait(CONNECT_S)
        return link


class NcclLink:
    """A `Link`: messages of the tags in `outgoing` and `incoming` go by these groups, all others by the host's link.

    Args:
        host: the link between the hosts.
        peer: its rank in every group.
        announced: messages of groups are announced over the host's link, and received from then on.
    """

    def __init__(self, host: Link, peer: int, announced: bool) -> None:
        self.outgoing: dict[int, Group] = {}
        self.incoming: dict[int, _Incoming] = {}
        self._host = host
        self._peer = peer
        self._announced = announced
        self._closed = False

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending:
        with self._losing():
            if tag not in self.incoming:
                return self._host.post_recv(into, tag)
            announced = self._host.post_recv(torch.zeros(1), tag) if self._announced else None
        receive = _Receive(self, self.incoming[tag], into, announced)
        self.incoming[tag].posted.append(receive)
        return receive

    def isend(self, data: torch.Tensor, tag: int) -> Pending:
        with self._losing():
            if tag not in self.outgoing:
                return self._host.isend(data, tag)
            # announced before it is sent: a group's first call waits for the peer's, and the peer for the announcement
            announced = self._host.isend(torch.zeros(1), tag) if self._announced else None
            return _Send(self, self.outgoing[tag].send([data], self._peer, 0), announced)

    def close(self) -> None:
        """Ends what is under way, on the GPU too."""
        if self._closed:
            return
        self._closed = True
        for group in (*self.outgoing.values(), *(one.group for one in self.incoming.values())):
            with suppress(RuntimeError):
                group.abort()
        self._host.close()

    def settle(self, announced: Pending | None, timeout_s: float) -> None:
        """Waits for the announcement that belongs to a message, if there is any."""
        if announced is not None:
            with self._losing():
                announced.wait(timeout_s)

    def start(self, incoming: _Incoming, receive: _Receive) -> None:
        """Gives a posted receive to its group, after those of its tag that were posted before."""
        with self._losing():
            while receive.work is None:
                first = incoming.posted.popleft()
                first.work = incoming.group.recv([first.into], self._peer, 0)

    def finish(self, work: Any, timeout_s: float) -> None:
        """Returns when the work is done; what is put on the current stream from then on comes after it.

        Raises:
            PeerLost: it failed, took too long, the peer is gone or the link is closed.
        """
        began_s = asked_s = time.monotonic()
        with self._losing():
            while not work.is_completed():
                self._require_open()
                now_s = time.monotonic()
                if now_s - began_s > timeout_s:
                    raise PeerLost("the peer does not answer")
                if now_s - asked_s > ASK_S:
                    asked_s = now_s
                    self._host.isend(torch.zeros(1), ASK_TAG)
                time.sleep(min(PAUSE_S, (now_s - began_s) / SHARE))
            self._require_open()  # a work of a group that was aborted counts as done
            work.wait()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Around every use: whatever fails, the link is of no use any more."""
        self._require_open()
        try:
            yield
        except PeerLost:
            self.close()
            raise
        except RuntimeError as error:
            self.close()
            raise PeerLost(str(error).splitlines()[0]) from None

    def _require_open(self) -> None:
        if self._closed:
            raise PeerLost("the link is closed")


class _Incoming:
    """One tag's receives: those that were posted, and not given to the group yet."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.posted: deque[_Receive] = deque()


class _Receive:
    """A `Pending` of a NcclLink."""

    def __init__(self, link: NcclLink, incoming: _Incoming, into: torch.Tensor, announced: Pending | None) -> None:
        self._link, self._incoming, self._announced = link, incoming, announced
        self.into = into
        self.work: Any = None

    def wait(self, timeout_s: float) -> None:
        self._link.settle(self._announced, timeout_s)
        self._link.start(self._incoming, self)
        self._link.finish(self.work, timeout_s)


class _Send:
    """A `Pending` of a NcclLink."""

    def __init__(self, link: NcclLink, work: Any, announced: Pending | None) -> None:
        self._link, self._work, self._announced = link, work, announced

    def wait(self, timeout_s: float) -> None:
        self._link.finish(self._work, timeout_s)
        self._link.settle(self._announced, timeout_s)
