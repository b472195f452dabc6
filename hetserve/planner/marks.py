"""What limits a plan, read back from its planner's notes: plan files hold it nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """What limits the plan."""

    groups: frozenset[int]
    links: frozenset[tuple[int, int]]  # between a prefill and a decode group


def bottleneck(notes: Iterable[str]) -> Marks:
    """What a planner's notes call the bottleneck; nothing where they say nothing of it."""
    said = " ".join(note.partition("the bottleneck is ")[2] for note in notes)
    pairs = {(int(one), int(other)) for one, other in re.findall(r"links from group (\d+) to group (\d+)", said)}
    groups = {int(one) for one in re.findall(r"group (\d+) \(", said)}
    return Marks(frozenset(groups), frozenset(pairs))
