"""Work under way on devices that slow each other: how much of each is left, and when it will be done as things stand.

What a device does is a mixture of decode attention and of products for decoding batches and prompts; while it works, it slows the others of its node
by the mixture's share of each (`Costs.contention`), and is slowed by theirs. Several others' slowdowns add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Done = Callable[[float], None]  # told when
Push = Callable[[float, Done], None]  # calls it at that time
Excess = Mapping[tuple[str, str], tuple[tuple[float, ...], ...]]  # (device, other) -> [what it does][what the other does] times slower, less 1


@dataclass
class Work:
    """One piece of work on one device."""

    device: str
    parts_s: tuple[float, ...]  # by WORKS of spec/profile.py; alone
    done: Done
    alone_s: float = field(init=False)
    left: float = 1.0  # share of it
    since_s: float = 0.0
    lasts_s: float = 0.0  # the whole of it, as things stand
    turn: int = 0  # how often that has changed

    def __post_init__(self) -> None:
        self.alone_s = sum(self.parts_s)


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
        self._under_way: list[Work] = []

    def begin(self, work: Work, now_s: float) -> None:
        """Starts it; its `done` is called when it is done."""
        if work.device not in self._shared or not work.alone_s:
            self._push(now_s + work.alone_s, work.done)
            return
        work.since_s = now_s
        self._under_way.append(work)
        self._again(now_s)

    def _again(self, now_s: float) -> None:
        """Something began or ended: when will the others be done now?"""
        for work in self._under_way:
            lasts_s = self._lasts_s(work)
            if lasts_s != work.lasts_s:
                if work.lasts_s:
                    work.left -= (now_s - work.since_s) / work.lasts_s
                work.since_s, work.lasts_s, work.turn = now_s, lasts_s, work.turn + 1
                self._push(now_s + max(0.0, work.left) * lasts_s, self._ends(work, work.turn))

    def _ends(self, work: Work, turn: int) -> Done:
        def end(now_s: float) -> None:
            if work.turn == turn:  # nothing has changed since
                self._under_way.remove(work)
                self._again(now_s)
                work.done(now_s)

        return end

    def _lasts_s(self, work: Work) -> float:
        slower_s = 0.0
        for other in self._under_way:
            excess = self._excess.get((work.device, other.device))
            if excess is not None:
                for part_s, row in zip(work.parts_s, excess, strict=True):
                    slower_s += part_s * sum(share_s * times for share_s, times in zip(other.parts_s, row, strict=True)) / other.alone_s
        return work.alone_s + slower_s
