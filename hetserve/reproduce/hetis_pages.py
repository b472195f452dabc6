"""What pages of one KV head each cost beside pages of all heads: storing a decode step's new tokens, and fetching requests' whole cache. The same
kernels and the same bytes; a page of all heads is one of a single, wide head."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hetserve import _C
from hetserve.engine.accelerator import CpuAccelerator
from hetserve.engine.attention import KvMemory
from hetserve.profile.attention import page_table
from hetserve.profile.rounds import Measure, interleaved
from hetserve.reproduce.report import Found, Report, Row, Table
from hetserve.reproduce.setup import Setup
from hetserve.spec.plan import PAGE_TOKENS

KV_HEADS, HEAD_DIM = 8, 64  # llama-250m's
REQUESTS, TOKENS = 64, 1024  # 128 MiB of one layer: no cache of a CPU holds it
ROUNDS = 21
FLUSH_BYTES = 2**27


@dataclass(frozen=True)
class Pages:
    """Caches of requests, one layer.

    Args:
        heads: of a token's, each in pages of its own; 1: all of it in one page.
    """

    heads: int
    requests: int = REQUESTS
    tokens: int = TOKENS

    def works(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Storing a token of each request, and fetching everything: page ids are put together each time, as a step does it."""
        dim, lengths = KV_HEADS * HEAD_DIM // self.heads, np.full(self.requests, self.tokens, np.int32)
        table, most = page_table(lengths, self.heads)
        memory = KvMemory((0, 1), table.size, PAGE_TOKENS, dim, "bfloat16", CpuAccelerator())
        new = torch.randn(2, self.requests, self.heads * dim).to(torch.bfloat16)
        out = torch.zeros(table.size, 1, 2, PAGE_TOKENS, dim, dtype=torch.bfloat16)
        last = self.tokens - 1

        def store() -> None:
            pages = table.reshape(self.requests, self.heads, most)[:, :, last // PAGE_TOKENS]
            _C.kv_store(memory.pool, 0, new[0], new[1], np.ascontiguousarray(pages * PAGE_TOKENS + last % PAGE_TOKENS, np.int32))

        def fetch() -> None:
            _C.page_gather(memory.pool, np.ascontiguousarray(table.reshape(-1), np.int32), 0, 1, out)

        return store, fetch


def run(setup: Setup, requests: int = REQUESTS, tokens: int = TOKENS, rounds: int = ROUNDS) -> Report:
    """Head by head and whole, in turn, out of a cache gone cold."""
    other = torch.ones(FLUSH_BYTES // 4)

    def measured(work: Callable[[], None]) -> Measure:
        def once() -> float:
            other.sum()
            began_s = time.perf_counter()
            work()
            return time.perf_counter() - began_s

        return once

    works = [work for heads in (KV_HEADS, 1) for work in Pages(heads, requests, tokens).works()]
    store_s, fetch_s, whole_store_s, whole_fetch_s = interleaved([measured(work) for work in works], rounds, lambda: None, slow_s=float("inf"))
    found = {
        "hetis-measured-store": Found(store_s / whole_store_s - 1, "time of head-wise pages / time of token-wise pages, less 1"),
        "hetis-measured-fetch": Found(fetch_s / whole_fetch_s - 1, "time of head-wise pages / time of token-wise pages, less 1"),
    }
    rows: tuple[Row, ...] = (
        {"what": f"store a token of {requests} requests", "head-wise, us": store_s * 1e6, "token-wise, us": whole_store_s * 1e6},
        {"what": f"fetch {requests} x {tokens} tokens", "head-wise, us": fetch_s * 1e6, "token-wise, us": whole_fetch_s * 1e6},
    )
    threads = f"{torch.get_num_threads()} threads; medians of {rounds} rounds"
    return Report(found, (Table(f"One layer, {KV_HEADS} KV heads of {HEAD_DIM}, bfloat16", "measured", rows),), notes=(threads,))
