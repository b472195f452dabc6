"""Work under way on devices that slow each other.

What a device does is a mixture of decode attention and of products for decoding batches and prompts; while it works, it slows the others of its node
by the mixture's share of each (`Costs.contention`), and is slowed by theirs. Several others' slowdowns add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hetserve.sim.drain import Done, Drain, Push

Excess = Mapping[tuple[str, str], tuple[tuple[float, ...], ...]]  # (device, other) -> [what it does][what the other does] times slower, less 1


@dataclass(frozen=True, eq=False)
class Work:
    """One piece of work on one device."""

    device: str
    parts_s: tuple[float, ...]  # by WORKS of spec/profile.py; alone
    alone_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alone_s", sum(self.parts_s))


class SharedDevices:
    """Runs pieces of work.

    Args:
        excess: of devices that slow each other; those not in it are independent.
        push: has something done at a time.
    """

    def __init__(self, excess: Excess, push: Push) -> None:
        self._excess = excess
        self._push = push
        self._shared = {device for pair in excess for device in pair}
        self._drain: Drain[Work] = Drain(self._shares_per_s, push)

    def begin(self, device: str, parts_s: tuple[float, ...], done: Done, now_s: float) -> None:
        """Starts a piece of work, whose parts take so long alone; `done` is called when it is done."""
        work = Work(device, parts_s)
        if device not in self._shared or not work.alone_s:
            self._push(now_s + work.alone_s, done)
        else:
            self._drain.begin(work, 1.0, done, now_s)

    def _shares_per_s(self, under_way: Sequence[Work]) -> list[float]:
        """How much of each is done in a second, as things stand."""
        return [1 / (work.alone_s + self._slower_s(work, under_way)) for work in under_way]

    def _slower_s(self, work: Work, under_way: Sequence[Work]) -> float:
        slower_s = 0.0
        for other in under_way:
            excess = self._excess.get((work.device, other.device))
            if excess is not None:
                for part_s, row in zip(work.parts_s, excess, strict=True):
                    slower_s += part_s * sum(share_s * times for share_s, times in zip(other.parts_s, row, strict=True)) / other.alone_s
        return slower_s
