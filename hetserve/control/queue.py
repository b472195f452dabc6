"""Sequences waiting for a slot of a group, earliest arrival first."""

from __future__ import annotations

import heapq

from hetserve.control.messages import NO_INTS
from hetserve.control.states import Sequence


class Queue:
    """A heap by order. A sequence that ends while it waits is only marked, and dropped when it comes to the front."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Sequence]] = []
        self.waiting = 0  # sequences that really wait
        self.tokens = 0  # their known tokens

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.order, sequence))
        self.waiting += 1
        self.tokens += len(sequence.tokens)

    def front(self) -> Sequence | None:
        """The next to start; it stays in the queue."""
        while self._heap and self._heap[0][1].done:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        """Takes out what `front` showed."""
        sequence = heapq.heappop(self._heap)[1]
        self._forget(sequence)
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """A waiting sequence is over."""
        assert not sequence.done
        self._forget(sequence)
        sequence.done = True
        sequence.tokens = NO_INTS

    def live(self) -> list[Sequence]:
        """Everything that waits, earliest arrival first."""
        return [sequence for _, sequence in sorted(self._heap) if not sequence.done]

    def check(self) -> None:
        live = self.live()
        assert self.waiting == len(live) and self.tokens == sum(len(sequence.tokens) for sequence in live)
        assert all(sequence.slot < 0 for sequence in live)

    def _forget(self, sequence: Sequence) -> None:
        self.waiting -= 1
        self.tokens -= len(sequence.tokens)
