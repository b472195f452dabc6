"""What an experiment is given: where lengths come from, how many processes it may use, and whom to tell how far it is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np

from hetserve.reproduce.claims import About
from hetserve.trace import datasets, files
from hetserve.trace.arrivals import Arrivals
from hetserve.trace.vocab import Vocabulary

Cell = TypeVar("Cell")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Setup:
    """Attributes:
    data: a folder with every trace the experiment uses; None: lengths come from the committed tables.
    profile: of this machine's devices, for experiments that measure; None: they measure one first.
    processes: how many cells are computed at once.
    advance: told of each cell done, and of how many there are.
    """

    data: Path | None = None
    profile: Path | None = None
    processes: int = 1
    advance: Callable[[int, int], None] = lambda done, total: None

    def each(self, compute: Callable[[Cell], Result], cells: Iterable[Cell]) -> list[Result]:
        """What `compute` says of each cell, in their order. With several processes it must be a function of a module."""
        asked = list(cells)
        found: list[Result] = []
        if self.processes == 1:
            answers: Iterable[Result] = map(compute, asked)
            return self._counted(answers, found, len(asked))
        with ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            return self._counted(pool.map(compute, asked), found, len(asked))

    def _counted(self, answers: Iterable[Result], found: list[Result], total: int) -> list[Result]:
        for one in answers:
            found.append(one)
            self.advance(len(found), total)
        return found


@dataclass(frozen=True)
class Requests:
    """Requests of a public trace's lengths, all there at once unless `arriving` is asked for; the same for the same fields.

    Attributes:
        most_tokens: requests longer than that, prompt and answer together, are left out before any is drawn.
        only: a class of them, as HPHD, or several with commas; empty: all.
        most_input: longer prompts are cut to so many tokens; 0: none is.
    """

    dataset: str
    count: int
    most_tokens: int
    data: Path | None = None
    only: str = ""
    most_input: int = 0
    seed: int = 0

    def drawn(self) -> datasets.Workload:
        tables = Path(str(resources.files("hetserve.workloads") / "lengths"))
        most = 0 if self.most_input else self.most_tokens  # what is cut fits
        spec = datasets.DatasetSpec(
            *(self.dataset, self.count, self.seed),
            data_dir=self.data,
            tables_dir=tables,
            only=self.only,
            most_tokens=most,
            most_input=self.most_input,
        )
        return datasets.build(spec, Arrivals(), Vocabulary(np.arange(1, dtype=np.int64), Path(".")), self.most_tokens)

    def arriving(self, rate_per_s: float) -> datasets.Workload:
        """By a Poisson process of that mean rate."""
        return datasets.arriving(self.drawn(), Arrivals(rate_per_s))


def at_hand(about: About, data: Path | None) -> Path | None:
    """The data folder, if it has all that the experiment uses: one result never mixes files and tables."""
    return data if data is not None and about.datasets and not missing(about.datasets, data) else None


def missing(names: Sequence[str], data: Path) -> list[str]:
    """Those whose file is not there; of some there is none anywhere, only a committed table of what was published."""
    return [name for name in names if files.FILES[name] and files.find(data, name) is None]
