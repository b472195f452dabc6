"""python -m hetserve.bench.gpu.kernels decode|pages|prefill|transfers|rows ... FILE: kernels beside the bandwidth that this GPU has now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hetserve.bench.gpu import attention, moves, small
from hetserve.bench.gpu.report import report
from hetserve.bench.gpu.timing import give_back
from hetserve.engine.accelerator import Accelerator, make_accelerator
from hetserve.spec.cluster import CUDA

Kind = Callable[[Accelerator], Iterator[dict[str, Any]]]
KINDS: Mapping[str, Kind] = {
    "decode": attention.decode,
    "prefill": attention.prefill,
    "pages": moves.pages,
    "transfers": moves.transfers,
    "rows": small.rows,
}


def rows(at: Accelerator, kinds: Sequence[str], known: Mapping[str, Kind] = KINDS) -> Iterator[dict[str, Any]]:
    """The kinds' rows, one kind after the other; a kind that fails costs the rest of its own."""
    with torch.inference_mode():
        for kind in kinds:
            try:
                yield from known[kind](at)
            except Exception as error:
                yield {"what": kind, "right": False, "fault": f"{type(error).__name__}: {error}"}
            give_back()


def main() -> int:
    *kinds, path = sys.argv[1:]
    return report(" and ".join(kinds), rows(make_accelerator(CUDA), kinds), Path(path))


if __name__ == "__main__":
    sys.exit(main())
