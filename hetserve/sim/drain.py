"""Things that drain at rates which depend on each other: work on devices that slow each other, bytes on links that are shared.

Whenever one begins or ends, every rate is asked for anew, and when the others will have drained is told anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Done = Callable[[float], None]  # told when
Push = Callable[[float, Done], None]  # calls it at that time
T = TypeVar("T")


@dataclass
class Draining(Generic[T]):
    """One thing under way."""

    what: T
    left: float  # in the units that rates are in, a second
    done: Done
    rate: float = 0.0
    since_s: float = 0.0
    turn: int = 0  # how often the rate has changed


class Drain(Generic[T]):
    """Everything under way.

    Args:
        rates: of all things under way, in their order; positive.
        push: has something done at a time.
    """

    def __init__(self, rates: Callable[[Sequence[T]], Sequence[float]], push: Push) -> None:
        self._rates = rates
        self._push = push
        self._under_way: list[Draining[T]] = []

    def begin(self, what: T, size: float, done: Done, now_s: float) -> None:
        """Starts one; `done` is called when nothing of it is left."""
        self._under_way.append(Draining(what, size, done, since_s=now_s))
        self._again(now_s)

    def _again(self, now_s: float) -> None:
        for one, rate in zip(self._under_way, self._rates([one.what for one in self._under_way]), strict=True):
            if rate != one.rate:
                one.left -= (now_s - one.since_s) * one.rate
                one.since_s, one.rate, one.turn = now_s, rate, one.turn + 1
                self._push(now_s + max(0.0, one.left) / rate, self._ends(one, one.turn))

    def _ends(self, one: Draining[T], turn: int) -> Done:
        def end(now_s: float) -> None:
            if one.turn == turn:  # nothing has changed since
                self._under_way.remove(one)
                self._again(now_s)
                one.done(now_s)

        return end
