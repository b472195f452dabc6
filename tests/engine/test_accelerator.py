"""What a GPU's accelerator asks of torch, by a stand-in for the part of torch that needs a GPU."""

from __future__ import annotations

import gc

import pytest
import torch

from hetserve.engine.accelerator import CudaGpu


class Graph:
    """torch.cuda.CUDAGraph's rule for memory that graphs share: it lives as long as one of them, and none may be captured for it afterwards."""

    users: dict[tuple[int, int], int] = {}  # noqa: RUF012
    pool: tuple[int, int] | None = None

    def capture_begin(self, pool: tuple[int, int], mode: str) -> None:
        assert self.users.get(pool) != 0, "torch: use_count > 0"
        self.pool = pool
        self.users[pool] = self.users.get(pool, 0) + 1

    def capture_end(self) -> None:
        return

    def replay(self) -> None:
        return

    def __del__(self) -> None:
        if self.pool is not None:
            self.users[self.pool] -= 1


def test_graphs_can_be_captured_when_all_earlier_ones_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a profile's are, or those of one case after another."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    gpu = object.__new__(CudaGpu)
    gpu._pool = (0, 1)
    for _ in range(3):
        replay = gpu.capture(lambda: None)
        replay()
        del replay
        gc.collect()
    del gpu
    gc.collect()
    assert Graph.users == {(0, 1): 0}, "and nothing outlives the GPU's accelerator"
