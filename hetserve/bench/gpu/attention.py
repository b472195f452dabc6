"""Our attention beside the bandwidth that this GPU has now, torch's own and FlashInfer's. What it gets wrong is not timed.

Times are medians over rounds in which all take turns, a copy of a large tensor among them: that is the measure of bandwidth, 2 bytes moved for each
byte copied. All are called from captured graphs where they can be, so that launches from Python do not count. `in_l2`: the KV fits the second-level
cache three times, so its rate is not memory's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from hetserve import _C
from hetserve.bench.gpu import rivals
from hetserve.bench.gpu.timing import COPY_BYTES, Run, copying, floors, free_bytes, give_back, graphed, l2_bytes, timed, tried
from hetserve.engine.accelerator import Accelerator

PAGE_TOKENS = 16
HEAD_DIM = 128
CHECKED = 4  # sequences compared with torch
TOLERANCE = 2.5 * 2**-8  # bfloat16: weights and result rounded
JUDGED_BYTES = 256 << 20  # a case that reads more is held against the target
SPARE = 1.15  # beside the KV of a case: its page table, what is compared, and graphs


@dataclass(frozen=True)
class Case:
    batch: int
    length: int
    q_heads: int
    kv_heads: int

    @property
    def kv_bytes(self) -> int:
        return 4 * self.batch * self.length * self.kv_heads * HEAD_DIM


HEADS = ((32, 32), (64, 8), (8, 1))  # query, KV
SHAPES = [(batch, length) for length in (4096, 32768, 512) for batch in (256, 64, 8, 1)]
CASES = tuple(Case(batch, length, *heads) for batch, length in SHAPES for heads in HEADS)


class Cache:
    """`batch` sequences of `length` tokens in a pool of one layer; the pages of each head follow one another, or are scattered.

    Args:
        rows: of q a sequence, its last tokens.
    """

    def __init__(self, at: Accelerator, case: Case, scattered: bool, rows: int = 1) -> None:
        pages, batch, kv_heads = math.ceil(case.length / PAGE_TOKENS), case.batch, case.kv_heads
        self.at, self.case, self.rows, self.total = at, case, rows, batch * kv_heads * pages
        self.memory = torch.empty(2 * self.total * PAGE_TOKENS * HEAD_DIM, dtype=torch.bfloat16, device=at.device).normal_()
        self.pool = _C.KvPool(self.memory, 1, self.total, PAGE_TOKENS, HEAD_DIM, "bfloat16", "plain")
        order = torch.randperm(self.total) if scattered else torch.arange(self.total)
        self.page_ids = order.to(torch.int32)
        self.items = [(one * rows, rows, head, (one * kv_heads + head) * pages, case.length, 0) for one in range(batch) for head in range(kv_heads)]
        self.q = torch.randn(batch * rows, case.q_heads * HEAD_DIM, device=at.device).bfloat16()
        self.out = torch.empty_like(self.q)

    def plan(self, items: Sequence[tuple[int, ...]]) -> Any:
        group = self.case.q_heads // self.case.kv_heads
        most = (len(items), len(items) * self.rows, len(self.page_ids))
        device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(self.pool, group, *most)
        memory = torch.empty(device_bytes, dtype=torch.uint8, device=self.at.device)
        plan = _C.DeviceAttentionPlan(self.pool, self.case.q_heads, group, *most, memory, self.at.host(host_bytes, dtype=torch.uint8))
        plan.set(torch.tensor(items, dtype=torch.int32), self.page_ids, len(self.q))
        self.at.synchronize()
        return plan

    def run(self, plan: Any) -> Run:
        return lambda: _C.attention(plan, 0, self.q, self.out, HEAD_DIM**-0.5)

    def dense(self, chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the chosen sequences, [sequences, kv_heads, length, head_dim] each."""
        pages, sequences, heads = math.ceil(self.case.length / PAGE_TOKENS), chosen.stop - chosen.start, self.case.kv_heads
        ids = self.page_ids.view(self.case.batch, -1)[chosen].flatten().long().to(self.at.device)
        pair = []
        for which in range(2):
            kept = self.memory.view(self.total, 2, PAGE_TOKENS, HEAD_DIM)[ids, which]
            pair.append(kept.view(sequences, heads, pages * PAGE_TOKENS, HEAD_DIM)[:, :, : self.case.length].contiguous())
        return pair[0], pair[1]

    def error(self, plan: Any, heads: slice = slice(None)) -> float:
        """The largest error, as a share of the values' own size, of the first and last sequences; infinite where other heads are touched."""
        self.out.fill_(math.nan)
        self.run(plan)()
        worst, batch, q_heads = 0.0, self.case.batch, self.case.q_heads
        for first in {0, max(0, batch - CHECKED)}:
            chosen = slice(first, min(first + CHECKED, batch))
            k, v = (x.float() for x in self.dense(chosen))
            q, got = (x[chosen.start * self.rows : chosen.stop * self.rows].view(-1, self.rows, q_heads, HEAD_DIM) for x in (self.q, self.out))
            q, got = q.transpose(1, 2).float(), got.transpose(1, 2).float()
            want, size = attend(q, k, v, self.rows), attend(q, k, v.abs(), self.rows)
            error = ((got - want).abs() / size).unflatten(1, (self.case.kv_heads, -1))
            named = torch.zeros(self.case.kv_heads, dtype=torch.bool, device=error.device)
            named[heads] = True
            if not error[:, named].isfinite().all() or not error[:, ~named].isnan().all():
                return math.inf
            worst = max(worst, float(error[:, named].max()))
        return worst

    def sdpa(self, causal: bool) -> Run | None:
        """torch's own attention on dense copies of the same cache, where there is room for them."""
        if SPARE * self.case.kv_bytes > free_bytes(self.at):
            return None
        k, v = self.dense(slice(0, self.case.batch))
        return rivals.sdpa(self.q.view(self.case.batch, self.rows, -1, HEAD_DIM).transpose(1, 2).contiguous(), k, v, causal)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: int) -> torch.Tensor:
    """Attention in float32, written out: torch's own kernels may round differently. Causal for the last `rows` tokens."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * HEAD_DIM**-0.5
    hidden = torch.arange(k.shape[2], device=k.device)[None] > torch.arange(rows, device=k.device)[:, None] + k.shape[2] - rows
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def by_worth(cases: Iterable[Case]) -> list[Case]:
    """Those that are judged first, kinds of heads in turn."""
    return sorted(cases, key=lambda case: case.kv_bytes <= JUDGED_BYTES)


def decode(at: Accelerator, cases: Iterable[Case] = CASES, copy_bytes: int = COPY_BYTES) -> Iterator[dict[str, Any]]:
    """Bytes of KV read a second, and their share of the copy's bandwidth: pages in order, scattered, and every second head of twice as many
    sequences."""
    copying_ = copying(at, copy_bytes)
    for case in by_worth(cases):
        ways: list[tuple[str, float, Callable[[], dict[str, Any]]]] = [  # with how many times the KV it has to hold
            ("in order", 1, partial(decode_row, at, case, False, *copying_)),
            ("scattered", 1, partial(decode_row, at, case, True, *copying_)),
        ]
        if case.kv_heads > 1:
            ways.append(("every second head", 3, partial(subset_row, at, case, *copying_)))
        for pages, times, run in ways:
            row = {**asdict(case), "pages": pages, "kv_bytes": case.kv_bytes, "judged": case.kv_bytes > JUDGED_BYTES}
            needed = SPARE * times * case.kv_bytes
            if needed > free_bytes(at):
                yield row | {"skipped": f"{needed / 2**30:.0f} GiB of KV, {free_bytes(at) / 2**30:.0f} GiB are free"}
            else:
                yield tried(row, run)


def decode_row(at: Accelerator, case: Case, scattered: bool, copy: Run, moved_bytes: int) -> dict[str, Any]:
    cache = Cache(at, case, scattered)
    plan = cache.plan(cache.items)
    row: dict[str, Any] = {"in_l2": case.kv_bytes < 3 * l2_bytes(at), "error": cache.error(plan)}
    row["right"] = row["error"] <= TOLERANCE
    if not row["right"]:
        return row
    contestants: dict[str, Run] = {"copy": copy, "ours": graphed(at, cache.run(plan)), "ours from Python": cache.run(plan)}
    if not scattered:
        contestants |= others(cache)
    return row | figures(case, timed(at, contestants), moved_bytes)


def others(cache: Cache) -> dict[str, Run]:
    """torch and FlashInfer on the same shape, as far as they are there and run."""
    case, found = cache.case, {}
    give_back()  # what is free is asked of the driver
    if (call := cache.sdpa(False)) and (quick := ready(cache.at, call)):
        found["torch"] = quick
    q = cache.q.view(case.batch, case.q_heads, HEAD_DIM)
    for name, call in rivals.flashinfer(q, case.length, case.kv_heads, PAGE_TOKENS, free_bytes(cache.at)).items():
        if quick := ready(cache.at, call):
            found[name] = quick
    return found


def ready(at: Accelerator, call: Run) -> Run | None:
    """The call captured, or as it is where it cannot be; None where it fails: ours are timed all the same."""
    for form in (lambda: graphed(at, call), lambda: call):
        try:
            made = form()
            made()
            at.synchronize()
            return made
        except Exception:
            give_back()
    return None


def subset_row(at: Accelerator, case: Case, copy: Run, moved_bytes: int) -> dict[str, Any]:
    """As many bytes of KV in as many items: whole sequences, pages in order, and every second head of twice as many, pages scattered: what an
    attention worker holds. In the same rounds."""
    whole = Cache(at, case, False)
    some = Cache(at, Case(2 * case.batch, case.length, case.q_heads, case.kv_heads), True)
    plans = whole.plan(whole.items), some.plan(some.items[::2])
    row: dict[str, Any] = {"in_l2": case.kv_bytes < 3 * l2_bytes(at), "error": some.error(plans[1], slice(None, None, 2))}
    row["right"] = row["error"] <= TOLERANCE
    if not row["right"]:
        return row
    calls = {"copy": copy, "ours": graphed(at, some.run(plans[1])), "whole": graphed(at, whole.run(plans[0]))}
    times = timed(at, calls)
    return row | figures(case, times, moved_bytes) | {"times_the_whole": times["ours"] / times["whole"]}


def figures(case: Case, times: dict[str, float], moved_bytes: int) -> dict[str, Any]:
    bandwidth = moved_bytes / times["copy"]
    row = {"copy_gbs": bandwidth * 1e-9, **floors(case.kv_bytes, 4 * case.batch * case.q_heads * case.length * HEAD_DIM, bandwidth)}
    row |= {f"{name}_s": seconds for name, seconds in times.items() if name != "copy"}
    row |= {"gbs": case.kv_bytes / times["ours"] * 1e-9, "share_of_copy": case.kv_bytes / times["ours"] / bandwidth}
    rival = [seconds for name, seconds in times.items() if name in rivals.WAYS.values()]
    return row | ({"times_flashinfer": times["ours"] / min(rival)} if rival else {})


PROMPTS = (Case(2, 2048, 32, 32), Case(2, 8192, 32, 32), Case(2, 2048, 64, 8), Case(2, 8192, 64, 8))


def prefill(at: Accelerator, cases: Iterable[Case] = PROMPTS, rows: int = 2048, copy_bytes: int = COPY_BYTES) -> Iterator[dict[str, Any]]:
    """Prompt chunks of so many rows over their context: TFLOP/s, beside torch's."""
    copy, moved_bytes = copying(at, copy_bytes)
    for case in cases:
        row = {"what": "prefill", **asdict(case), "rows": rows}
        yield tried(row, partial(prefill_row, at, case, rows, copy, moved_bytes))


def prefill_row(at: Accelerator, case: Case, rows: int, copy: Run, moved_bytes: int) -> dict[str, Any]:
    cache = Cache(at, case, True, rows)
    plan = cache.plan(cache.items)
    error = cache.error(plan)
    if error > TOLERANCE:
        return {"error": error, "right": False}
    contestants = {"copy": copy, "ours": cache.run(plan)}
    if rows == case.length and (call := cache.sdpa(True)):
        contestants["torch"] = call
    times = timed(at, contestants)
    flops = 4 * case.batch * case.q_heads * HEAD_DIM * sum(case.length - rows + 1 + i for i in range(rows))
    row = {"error": error, "right": True, **floors(case.kv_bytes + 2 * cache.q.nbytes, flops, moved_bytes / times["copy"])}
    row |= {f"{name}_s": seconds for name, seconds in times.items() if name != "copy"}
    return row | {f"{name}_tflops": flops / seconds * 1e-12 for name, seconds in times.items() if name != "copy"}
