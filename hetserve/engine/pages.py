"""Pages on their way from one pool to another: out of a pool into a chunk of memory, and from there into a pool.

Between CPUs they stay as they lie in the pools, which all have one layout. Where a GPU is at either end they are plain, and each end knows its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetserve import _C
from hetserve.engine.attention import KvMemory


@dataclass(frozen=True)
class Part:
    """Some pages of a pool, in some of its layers: as much as travels at a time."""

    memory: KvMemory
    first: int  # layers of the pool, last exclusive
    last: int
    pages: torch.Tensor  # int32 [pages], on the pool's device
    plain: bool

    def room(self) -> torch.Tensor:
        """Memory on the pool's device for what `take` returns: uint8 [layers, pages, bytes]; plain, T [pages, layers, 2, page_tokens, head_dim]."""
        layers, pages, rows = self.last - self.first, len(self.pages), self.memory.rows
        if not self.plain:
            return torch.empty((layers, pages, rows.shape[2]), dtype=torch.uint8, device=rows.device)
        pool = self.memory.pool
        return torch.empty((pages, layers, 2, pool.page_tokens, pool.head_dim), dtype=self.memory.dtype, device=rows.device)

    def take(self) -> torch.Tensor:
        """What stands in the pages."""
        if not self.plain:
            return self.memory.rows[self.first : self.last].index_select(1, self.pages)
        chunk = self.room()
        _C.page_gather(self.memory.pool, self.pages, self.first, self.last, chunk)
        return chunk

    def put(self, chunk: torch.Tensor) -> None:
        """Writes the pages, with what `take` returned of as many others."""
        if self.plain:
            _C.page_scatter(self.memory.pool, self.pages, self.first, self.last, chunk)
        else:
            self.memory.rows[self.first : self.last].index_copy_(1, self.pages.long(), chunk)
