"""A layer's messages to other devices, posted on torch's process groups in one call without the GIL. Built from csrc/net/, where torch's headers are.

May be absent: ImportError also beside another torch than it was built with, and with HETSERVE_NET=off. Exchange and Dispatch do what is said in
engine/transport/exchange.py and dispatch.py, and raise that package's PeerLost; ValueError for tensors that do not fit.
"""

from collections.abc import Sequence
from typing import Any

import torch

class Pair:
    """This end of a process group of two (engine/transport/gloo.py): `lost` is shared by all who post on it."""

    lost: bool
    def __init__(self, group: Any, peer: int) -> None: ...

class Exchange:
    def __init__(self, pair: Pair, tag: int) -> None: ...
    @property
    def lost(self) -> bool: ...
    def begin(self, outgoing: torch.Tensor, first: torch.Tensor, second: torch.Tensor, count: int, timeout_s: float) -> None: ...
    def send(self) -> None: ...
    def receive(self) -> int: ...
    def finish(self) -> None: ...

class Part:
    """first, second: the answers, received in turn."""

    def __init__(
        self, exchange: Exchange, pairs: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, second: torch.Tensor
    ) -> None: ...

class Dispatch:
    def __init__(self, parts: Sequence[Part]) -> None: ...
    def send(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None: ...
    def collect(self, out: torch.Tensor) -> float: ...
