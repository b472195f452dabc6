"""The live view: which device does what, how full its KV pages are and how busy it is, twice a second. Drawn from an engine's own numbers or a
server's /metrics page; on a terminal only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hetserve.bench.watch import Page
    from hetserve.engine.api import EngineApi

PERIOD_S = 0.5
BAR_CELLS = 10


@dataclass(frozen=True)
class Part:
    """One device's part of one stage."""

    device: str
    group: str
    role: str
    layers: str
    worker: str  # "primary" or "attention"
    pages: float
    pages_free: float
    cpu_s: float | None
    lost: bool = False


@dataclass(frozen=True)
class Snapshot:
    """What is shown at one moment. A number that is not known is None."""

    at_s: float
    parts: tuple[Part, ...]
    running: float | None
    waiting: float | None
    kv_tokens: float | None
    preemptions: float | None
    moves: float | None


class View:
    """Makes the table; remembers the last snapshot of each system, because load is a difference."""

    def __init__(self) -> None:
        self._before: dict[str, Snapshot] = {}

    def table(self, title: str, now: Snapshot) -> Table:
        """Everything about one system; `title` names it."""
        before = self._before.get(title)
        if before is None or now.at_s > before.at_s:
            self._before[title] = now
        drawn = Table(title=Text(f"{title}: {_counts(now)}"), title_justify="left", box=box.ROUNDED)
        for name in ("device", "group", "layers", "worker", "KV pages in use"):  # all of it fits into 80 columns
            drawn.add_column(name)
        drawn.add_column("cores", justify="right")
        for part in now.parts:
            cells = (
                part.device,
                f"{part.group} {part.role}",
                part.layers,
                part.worker,
                _bar(part.pages - part.pages_free, part.pages),
                "lost" if part.lost else _load(part, before, now),
            )
            drawn.add_row(*(Text(cell) for cell in cells))
        return drawn


def of_engine(engine: EngineApi, now_s: Callable[[], float] = time.monotonic) -> Snapshot:
    """An engine in this process."""
    stats = engine.stats()
    parts = tuple(
        Part(
            one.device,
            str(one.group),
            one.role,
            f"{one.layers[0]}-{one.layers[1] - 1}",
            "primary" if one.primary else "attention",
            one.pages,
            one.pages_free,
            one.cpu_s,
            one.lost,
        )
        for one in engine.pools()
    )
    running, waiting, kv_tokens, preemptions, moves = map(stats.get, ("running", "waiting", "kv_tokens", "preemptions_total", "moves_total"))
    return Snapshot(now_s(), parts, running, waiting, kv_tokens, preemptions, moves)


def of_pages(pages: Sequence[Page], now_s: Callable[[], float] = time.monotonic) -> Snapshot:
    """A system's servers, by their /metrics pages. Servers that are not hetserve tell no parts."""
    from hetserve.bench import watch

    found: dict[tuple[str, str, str, str, str], dict[str, float]] = {}
    for page in pages:
        for name, labels, value in page:
            if name.startswith("hetserve:pool_"):
                device, group, role, layers, worker = (labels.get(label, "") for label in ("device", "group", "role", "layers", "worker"))
                found.setdefault((device, group, role, layers, worker), {})[name.removeprefix("hetserve:pool_")] = value
    parts = tuple(
        Part(*key, one.get("pages", 0.0), one.get("pages_free", 0.0), one.get("cpu_seconds"), bool(one.get("lost"))) for key, one in found.items()
    )
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", watch.PREEMPTIONS, watch.MOVES)
    running, waiting, preemptions, moves = (_sum([watch.total(page, name) for page in pages]) for name in names)
    return Snapshot(now_s(), parts, running, waiting, _sum([watch.kv_tokens(page) for page in pages]), preemptions, moves)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _counts(now: Snapshot) -> str:
    named = (("running", now.running), ("waiting", now.waiting), ("KV tokens", now.kv_tokens), ("preemptions", now.preemptions), ("moves", now.moves))
    return ", ".join(f"{value:,.0f} {name}" for name, value in named if value is not None) or "nothing known yet"


def _bar(used: float, whole: float) -> str:
    share = used / whole if whole else 0.0
    full = round(share * BAR_CELLS)
    bar = "█" * full + "░" * (BAR_CELLS - full)
    return f"{share:4.0%} {bar} of {whole:,.0f}"


def _load(part: Part, before: Snapshot | None, now: Snapshot) -> str:
    """Cores' worth of CPU time since the last snapshot."""
    then = (
        next((one for one in before.parts if (one.device, one.group, one.layers) == (part.device, part.group, part.layers)), None) if before else None
    )
    if then is None or before is None or part.cpu_s is None or then.cpu_s is None or now.at_s <= before.at_s:
        return "-"
    return f"{max(0.0, part.cpu_s - then.cpu_s) / (now.at_s - before.at_s):.2f}"
