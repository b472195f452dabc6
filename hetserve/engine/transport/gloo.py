"""Links between worker processes: one two-rank gloo process group for each pair and plane, on loopback unless workers of other machines join.

gloo has no authentication: whoever can reach the interface could connect. On loopback that is every process of this machine; between machines
it must be a private network.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from hetserve.engine.transport.link import PeerLost, Pending

try:
    from hetserve import _net
except ImportError:  # not built, built with another torch, or HETSERVE_NET=off
    _net = None  # type: ignore[assignment]

_Gloo: Any = distributed.ProcessGroupGloo  # torch's own types leave out most of it
CONNECT_S = 600.0  # the peer may still be reading its weights
SHORTEST_S = 0.001  # c10d counts milliseconds, and none means no limit


class GlooLinks:
    """Makes one worker's links.

    Args:
        meeting: where the workers of an engine find each other: a folder private to it, or tcp://HOST:PORT of its TCPStore.
        device: this worker's.
        address: of the interface on which its peers reach it.
    """

    def __init__(self, meeting: str, device: str, address: str) -> None:
        self._meeting = meeting
        self._device = device
        self._options = _Gloo._Options()
        self._options._devices = [_Gloo.create_device(hostname=address)]
        self._options._threads = 1
        self._options._timeout = timedelta(seconds=CONNECT_S)

    def connect(self, peer: str, plane: str) -> GlooLink:
        """Blocks until the peer connects too. Workers connect to their peers in one order that all agree on."""
        store, rank = meet(self._meeting, self._device, peer, plane)
        return GlooLink(_Gloo(store, rank, 2, self._options), 1 - rank)


def meet(meeting: str, device: str, peer: str, what: str) -> tuple[distributed.Store, int]:
    """Where a device and a peer find each other for one group of the two, and the device's rank in it."""
    low, high = sorted((device, peer))
    store: distributed.Store
    if meeting.startswith("tcp://"):
        host, _, port = meeting.removeprefix("tcp://").rpartition(":")
        store = distributed.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=CONNECT_S))
    else:
        store = distributed.FileStore(str(Path(meeting) / "meeting"))
    return distributed.PrefixStore(f"{low}|{high}|{what}", store), int(device == high)


@dataclass
class Pair:
    """This end of a process group of two, as `_net.Pair` where that is built. gloo closes the whole connection on any error."""

    group: Any
    peer: int  # its rank
    lost: bool = False


class GlooLink:
    """A `Link` over one process group of two."""

    def __init__(self, group: Any, peer: int) -> None:
        self._group = group
        self._peer = peer
        self.pair = Pair(group, peer) if _net is None else _net.Pair(group, peer)

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending:
        self._require_open()
        try:
            return _Work(self, self._group.recv([into], self._peer, tag))
        except RuntimeError as error:
            raise self.gone(error) from None

    def isend(self, data: torch.Tensor, tag: int) -> Pending:
        self._require_open()
        try:
            return _Work(self, self._group.send([data], self._peer, tag))
        except RuntimeError as error:
            raise self.gone(error) from None

    def close(self) -> None:
        self.pair.lost = True

    def gone(self, error: RuntimeError) -> PeerLost:
        """The link is of no use any more."""
        self.pair.lost = True
        return PeerLost(str(error).splitlines()[0])

    def _require_open(self) -> None:
        if self.pair.lost:
            raise PeerLost("the link is closed")


class _Work:
    """A `Pending` of a GlooLink."""

    __slots__ = ("_link", "_work")

    def __init__(self, link: GlooLink, work: distributed.Work) -> None:
        self._link = link
        self._work = work

    def wait(self, timeout_s: float) -> None:
        self._link._require_open()  # after an error, gloo may never finish what else was under way
        try:
            self._work.wait(timedelta(seconds=max(SHORTEST_S, timeout_s)))
        except RuntimeError as error:
            raise self._link.gone(error) from None
