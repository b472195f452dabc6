"""Things that drain at rates which depend on each other: work on devices that slow each other, bytes on links that are shared.

Whenever one begins or ends, every rate is asked for anew. Only the one that will have drained first is waited for: the others may change before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Done = Callable[[float], None]  # told when
Push = Callable[[float, Done], None]  # calls it at that time
T = TypeVar("T")


@dataclass(eq=False)
class Draining(Generic[T]):
    """One thing under way."""

    what: T
    left: float  # in the units that rates are in, a second
    done: Done
    rate: float = 0.0
    since_s: float = 0.0
    ends_s: float = 0.0  # if its rate stays


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
        self._awaited: Draining[T] | None = None
        self._at_s = 0.0  # when that one ends
        self._turn = 0  # how often another end was waited for

    def begin(self, what: T, size: float, done: Done, now_s: float) -> None:
        """Starts one; `done` is called when nothing of it is left."""
        self._under_way.append(Draining(what, size, done, since_s=now_s))
        self._again(now_s)

    def _again(self, now_s: float) -> None:
        for one, rate in zip(self._under_way, self._rates([one.what for one in self._under_way]), strict=True):
            if rate != one.rate:
                one.left -= (now_s - one.since_s) * one.rate
                one.since_s, one.rate = now_s, rate
                one.ends_s = now_s + max(0.0, one.left) / rate
        first = min(self._under_way, key=lambda one: one.ends_s, default=None)
        if first is not None and (first is not self._awaited or first.ends_s != self._at_s):
            self._awaited, self._at_s, self._turn = first, first.ends_s, self._turn + 1
            self._push(first.ends_s, self._ends(first, self._turn))

    def _ends(self, one: Draining[T], turn: int) -> Done:
        def end(now_s: float) -> None:
            if turn == self._turn:  # no other end has become the first since
                self._under_way.remove(one)
                self._again(now_s)
                one.done(now_s)

        return end
