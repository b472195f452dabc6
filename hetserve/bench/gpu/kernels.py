"""python -m hetserve.bench.gpu.kernels [decode|prefill|pages|rows|flashinfer ...] FILE: kernels beside the bandwidth that this GPU has now.

Times are medians over rounds of CUDA events, every contestant once a round. The copy of a large tensor, in the same rounds, is the measure of
bandwidth: 2 bytes moved for each byte copied. Every contestant is called from a captured graph where it can be, so that launches from Python do not
count. What a kernel of ours gets wrong is not timed. `in_l2`: the KV fits the second-level cache three times, so its rate is not memory's.

torch's own attention stands beside ours, and FlashInfer's where it is. That compiles its kernels when they are first used, for a minute and more:
`flashinfer` does it beforehand, and what it has not done is not waited for.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hetserve import _C
from hetserve.bench.gpu.report import report

PAGE_TOKENS = 16
HEAD_DIM = 128
ROUNDS, WARM_UP = 7, 2
COPY_BYTES = 2 << 30
MOST_KV_BYTES = 24 << 30
CHECKED = 4  # sequences compared with torch
TOLERANCE = 2.5 * 2**-8  # bfloat16: weights and result rounded

BATCHES = (1, 8, 64, 256)
DENSE_FLOPS = 989e12  # of an H100 or H200 in bfloat16, by its data sheet: the other floor
LENGTHS = (512, 4096, 32768)
HEADS = ((32, 32), (64, 8), (8, 1))  # query, KV
FLASHINFER_READY = Path(__file__).resolve().parents[3] / "build" / "flashinfer" / "ready"
Run = Callable[[], object]


def main() -> int:
    *kinds, path = sys.argv[1:]
    found = {"decode": decode, "prefill": prefill, "pages": pages, "rows": rows, "flashinfer": compile_flashinfer}
    return report(" and ".join(kinds), itertools.chain.from_iterable(found[kind]() for kind in kinds), Path(path))


def timed(contestants: Mapping[str, Run], repeats: int = 10) -> dict[str, float]:
    """Seconds a call of each, the median of ROUNDS rounds in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + ROUNDS):
        for name, call in contestants.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            if number >= WARM_UP:
                found[name].append(begin.elapsed_time(end) * 1e-3 / repeats)
    return {name: statistics.median(times) for name, times in found.items()}


def graphed(call: Run) -> Run:
    """`call` as a graph, where it can be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def l2_bytes() -> int:
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20))


def differ(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite where something is not a number."""
    share = ((got.float() - want.float()).abs().max() / want.float().abs().max().clamp(min=1e-30)).item()
    return share if share == share else math.inf


def copying() -> tuple[Run, int]:
    """A large copy, and the bytes that it moves."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * COPY_BYTES


class Cache:
    """`batch` sequences of `length` tokens in a pool of one layer; the pages of each head follow one another, or are scattered."""

    def __init__(self, batch: int, length: int, q_heads: int, kv_heads: int, scattered: bool, rows: int = 1) -> None:
        pages = math.ceil(length / PAGE_TOKENS)
        self.batch, self.length, self.q_heads, self.kv_heads, self.rows = batch, length, q_heads, kv_heads, rows
        self.total = batch * kv_heads * pages
        self.memory = torch.empty(2 * self.total * PAGE_TOKENS * HEAD_DIM, dtype=torch.bfloat16, device="cuda").normal_()
        self.pool = _C.KvPool(self.memory, 1, self.total, PAGE_TOKENS, HEAD_DIM, "bfloat16", "plain")
        order = torch.randperm(self.total) if scattered else torch.arange(self.total)
        self.page_ids = order.to(torch.int32)
        self.items = [
            (sequence * rows, rows, head, (sequence * kv_heads + head) * pages, length, 0) for sequence in range(batch) for head in range(kv_heads)
        ]
        self.q = torch.randn(batch * rows, q_heads * HEAD_DIM, device="cuda").bfloat16()
        self.out = torch.empty_like(self.q)

    @property
    def kv_bytes(self) -> int:
        return 2 * self.batch * self.kv_heads * self.length * HEAD_DIM * 2

    def plan(self, items: Sequence[tuple[int, ...]]) -> Any:
        group = self.q_heads // self.kv_heads
        most = (len(items), len(items) * self.rows, len(self.page_ids))
        device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(self.pool, group, *most)
        memory = torch.empty(device_bytes, dtype=torch.uint8, device="cuda")
        staging = torch.empty(host_bytes, dtype=torch.uint8, pin_memory=True)
        plan = _C.DeviceAttentionPlan(self.pool, self.q_heads, group, *most, memory, staging)
        plan.set(torch.tensor(items, dtype=torch.int32), self.page_ids, len(self.q))
        torch.cuda.synchronize()
        return plan

    def run(self, plan: Any) -> Run:
        return lambda: _C.attention(plan, 0, self.q, self.out, HEAD_DIM**-0.5)

    def dense(self, chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the chosen sequences, [sequences, kv_heads, length, head_dim] each."""
        pages, sequences = math.ceil(self.length / PAGE_TOKENS), chosen.stop - chosen.start
        ids = self.page_ids.view(self.batch, -1)[chosen].flatten().long().cuda()
        kv = self.memory.view(self.total, 2, PAGE_TOKENS, HEAD_DIM)[ids]
        kv = kv.view(sequences, self.kv_heads, pages, 2, PAGE_TOKENS, HEAD_DIM).transpose(2, 3).flatten(3, 4)[:, :, :, : self.length]
        return kv[:, :, 0].contiguous(), kv[:, :, 1].contiguous()

    def error(self, plan: Any, heads: slice = slice(None)) -> float:
        """The largest error, as a share of the values' own size, of the first and last sequences; infinite where other heads are touched."""
        self.out.fill_(math.nan)
        self.run(plan)()
        worst = 0.0
        for first in {0, max(0, self.batch - CHECKED)}:
            chosen = slice(first, min(first + CHECKED, self.batch))
            k, v = self.dense(chosen)
            q, got = (x[chosen.start * self.rows : chosen.stop * self.rows].view(-1, self.rows, self.q_heads, HEAD_DIM) for x in (self.q, self.out))
            q, got = q.transpose(1, 2).float(), got.transpose(1, 2).float()
            want, size = attend(q, k.float(), v.float(), self.rows), attend(q, k.float(), v.float().abs(), self.rows)
            error = ((got - want).abs() / size).unflatten(1, (self.kv_heads, -1))
            named = torch.zeros(self.kv_heads, dtype=torch.bool, device="cuda")
            named[heads] = True
            if not error[:, named].isfinite().all() or not error[:, ~named].isnan().all():
                return math.inf
            worst = max(worst, float(error[:, named].max()))
        return worst


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: int) -> torch.Tensor:
    """Attention in float32, written out: torch's own kernels may round differently. Causal for the last `rows` tokens."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * HEAD_DIM**-0.5
    hidden = torch.arange(k.shape[2], device=k.device)[None] > torch.arange(rows, device=k.device)[:, None] + k.shape[2] - rows
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def sdpa(cache: Cache, causal: bool) -> Run | None:
    """torch's own attention on dense copies of the same cache, where there is room for them."""
    if 3 * cache.kv_bytes > torch.cuda.mem_get_info()[0]:
        return None
    k, v = cache.dense(slice(0, cache.batch))
    q = cache.q.view(cache.batch, cache.rows, cache.q_heads, HEAD_DIM).transpose(1, 2).contiguous()
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=cache.q_heads != cache.kv_heads)


def compile_flashinfer() -> Iterator[dict[str, Any]]:
    """Has FlashInfer compile what `decode` compares with."""
    FLASHINFER_READY.unlink(missing_ok=True)
    for tensor_cores in (False, True):
        began_s = time.monotonic()
        compiled = flashinfer(Cache(1, PAGE_TOKENS, 8, 1, False), tensor_cores, True) is not None
        yield {"what": "FlashInfer's decode", "tensor_cores": tensor_cores, "compiled": compiled, "seconds": time.monotonic() - began_s}
        if not compiled:
            return
    FLASHINFER_READY.parent.mkdir(parents=True, exist_ok=True)
    FLASHINFER_READY.touch()


def flashinfer(cache: Cache, tensor_cores: bool, compiles: bool = False) -> Run | None:
    """FlashInfer's paged decode where it is installed and compiled; pages of the same size, in order, which hold all heads."""
    if not compiles and not FLASHINFER_READY.exists():
        return None
    try:
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper
    except ImportError:
        return None
    if cache.length % PAGE_TOKENS or 2 * cache.kv_bytes > torch.cuda.mem_get_info()[0]:
        return None
    pages = cache.length // PAGE_TOKENS
    try:
        kv = torch.randn(cache.batch * pages, 2, PAGE_TOKENS, cache.kv_heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=tensor_cores)
        ends = torch.arange(cache.batch + 1, dtype=torch.int32, device="cuda") * pages
        last = torch.full((cache.batch,), PAGE_TOKENS, dtype=torch.int32, device="cuda")
        ids = torch.arange(cache.batch * pages, device="cuda").int()
        types = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
        wrapper.plan(ends, ids, last, cache.q_heads, cache.kv_heads, HEAD_DIM, PAGE_TOKENS, **types)
        q = cache.q.view(cache.batch, cache.q_heads, HEAD_DIM)
        wrapper.run(q, kv)
    except Exception as error:  # whatever is wrong with it is no reason to lose our own figures
        print(f"flashinfer: {error}", file=sys.stderr)
        return None
    return lambda: wrapper.run(q, kv)


def decode() -> Iterator[dict[str, Any]]:
    """Bytes of KV read a second, and their share of the copy's bandwidth."""
    copy, copy_bytes = copying()
    for q_heads, kv_heads in HEADS:
        for length in LENGTHS:
            for batch in BATCHES:
                if 2 * batch * kv_heads * length * HEAD_DIM * 2 > MOST_KV_BYTES:
                    continue
                for scattered in (False, True):
                    yield decode_row(Cache(batch, length, q_heads, kv_heads, scattered), scattered, copy, copy_bytes)
                    torch.cuda.empty_cache()


def decode_row(cache: Cache, scattered: bool, copy: Run, copy_bytes: int) -> dict[str, Any]:
    whole = cache.plan(cache.items)
    row: dict[str, Any] = {"batch": cache.batch, "length": cache.length, "q_heads": cache.q_heads, "kv_heads": cache.kv_heads}
    row |= {"pages": "scattered" if scattered else "in order", "kv_bytes": cache.kv_bytes, "in_l2": cache.kv_bytes < 3 * l2_bytes()}
    row["error"] = cache.error(whole)
    contestants: dict[str, Run] = {"copy": copy, "ours": graphed(cache.run(whole)), "ours from Python": cache.run(whole)}
    if cache.kv_heads > 1:  # every second KV head of every sequence: what an attention worker holds
        half = cache.plan(cache.items[::2])
        row["error"] = max(row["error"], cache.error(half, slice(None, None, 2)))
        contestants["half the heads"] = graphed(cache.run(half))
    row["right"] = row["error"] <= TOLERANCE
    if not row["right"]:
        return row
    if not scattered:
        others = {"torch": sdpa(cache, False), "flashinfer": flashinfer(cache, False), "flashinfer on tensor cores": flashinfer(cache, True)}
        contestants |= {name: call for name, call in others.items() if call}
    times = timed(contestants)
    bandwidth = copy_bytes / times["copy"]
    flops = 4 * cache.batch * cache.q_heads * cache.length * HEAD_DIM
    row |= {"copy_gbs": bandwidth * 1e-9, "floor_bytes_s": cache.kv_bytes / bandwidth, "flops": flops, "floor_flops_s": flops / DENSE_FLOPS}
    for name, seconds in times.items():
        if name != "copy":
            row[f"{name}_s"] = seconds
    row["gbs"] = cache.kv_bytes / times["ours"] * 1e-9
    row["share_of_copy"] = cache.kv_bytes / times["ours"] / bandwidth
    if "half the heads" in times:
        row["half_share_of_copy"] = cache.kv_bytes / 2 / times["half the heads"] / bandwidth
    return row


def prefill() -> Iterator[dict[str, Any]]:
    """Prompt chunks over their context: TFLOP/s, beside torch's."""
    for q_heads, kv_heads in ((32, 32), (64, 8)):
        for rows_, length in ((2048, 2048), (2048, 8192)):
            cache = Cache(2, length, q_heads, kv_heads, scattered=True, rows=rows_)
            plan = cache.plan(cache.items)
            error = cache.error(plan)
            row = {"rows": rows_, "length": length, "q_heads": q_heads, "kv_heads": kv_heads, "error": error, "right": error <= TOLERANCE}
            if row["right"]:
                contestants = {"ours": cache.run(plan)}
                if rows_ == length and (call := sdpa(cache, True)):
                    contestants["torch"] = call
                flops = 4 * cache.batch * q_heads * HEAD_DIM * sum(length - rows_ + 1 + i for i in range(rows_))
                row |= {f"{name}_tflops": flops / seconds * 1e-12 for name, seconds in timed(contestants, 3).items()}
            yield row
            torch.cuda.empty_cache()


def pages() -> Iterator[dict[str, Any]]:
    """Moves of scattered pages of 8 layers: bytes read and written a second, as a share of the copy's; and to pinned memory."""
    copy, copy_bytes = copying()
    layers, held, moved = 8, 8192, 4096
    memories = [torch.empty(layers * held * 2 * PAGE_TOKENS * HEAD_DIM, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2)]
    source, target = (_C.KvPool(memory, layers, held, PAGE_TOKENS, HEAD_DIM, "bfloat16", "plain") for memory in memories)
    chosen = [torch.randperm(held, device="cuda")[:moved].int() for _ in range(2)]
    buffer = torch.empty(moved, layers, 2, PAGE_TOKENS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    pinned = torch.empty(buffer.shape, dtype=torch.bfloat16, pin_memory=True)
    size = 2 * buffer.numel() * 2  # bytes read and written
    contestants: dict[str, Run] = {
        "copy": copy,
        "page_copy": lambda: _C.page_copy(source, chosen[0], target, chosen[1], 0, layers),
        "page_gather": lambda: _C.page_gather(source, chosen[0], 0, layers, buffer),
        "page_scatter": lambda: _C.page_scatter(target, chosen[1], 0, layers, buffer),
        "to pinned memory": lambda: pinned.copy_(buffer, non_blocking=True),
        "page_gather into pinned memory": lambda: _C.page_gather(source, chosen[0], 0, layers, pinned),
        "page_scatter from pinned memory": lambda: _C.page_scatter(target, chosen[1], 0, layers, pinned),
    }
    views = [memory.view(layers, held, -1) for memory in memories]
    there, here = views[0][:, chosen[0].long()], lambda: views[1][:, chosen[1].long()]
    contestants["page_copy"]()
    right = {"page_copy": here().equal(there)}
    views[1].zero_()
    contestants["page_gather"]()
    right["page_gather"] = buffer.view(moved, layers, -1).transpose(0, 1).equal(there)
    contestants["page_scatter"]()
    right["page_scatter"] = here().equal(there)
    views[1].zero_()
    contestants["page_gather into pinned memory"]()
    contestants["page_scatter from pinned memory"]()
    torch.cuda.synchronize()
    right["page_gather into pinned memory"] = pinned.equal(buffer.cpu())
    right["page_scatter from pinned memory"] = here().equal(there)
    contestants = {name: call for name, call in contestants.items() if right.get(name, True)}
    times = timed(contestants, 3)
    bandwidth = copy_bytes / times["copy"]
    for name, seconds in times.items():
        gbs = (size / 2 if "pinned" in name else copy_bytes if name == "copy" else size) / seconds
        yield {"what": name, "gbs": gbs * 1e-9, "share_of_copy": gbs / bandwidth}
    yield from ({"what": name, "right": False} for name, good in right.items() if not good)


def rows() -> Iterator[dict[str, Any]]:
    """The small ops of a step of 64 and of 4,096 rows of an 8-billion-parameter model: time beside that of their bytes at the copy's bandwidth."""
    copy, copy_bytes = copying()
    for n in (64, 4096):
        x, residual, out = (torch.randn(n, 4096, device="cuda").bfloat16() for _ in range(3))
        weight, gate_up, inner = torch.randn(4096, device="cuda").bfloat16(), torch.randn(n, 28672, device="cuda").bfloat16(), x.new_empty(n, 14336)
        q, k = torch.randn(n, 32 * 128, device="cuda").bfloat16(), torch.randn(n, 8 * 128, device="cuda").bfloat16()
        angles, positions = torch.rand(8192, 64, device="cuda") * 6.28, torch.arange(n, device="cuda").int()
        cos_sin = torch.stack([angles.cos(), angles.sin()], 1)
        logits, tokens = torch.randn(min(n, 256), 128_256, device="cuda").bfloat16(), torch.empty(min(n, 256), dtype=torch.int32, device="cuda")
        total = x + residual
        normal = functional.rms_norm(total.float(), (4096,), weight.float(), 1e-5)
        gate, up = gate_up.float().chunk(2, -1)
        turned = q.float().view(n, 32, 2, 64)
        c, s = (angles[:n].cos()[:, None], angles[:n].sin()[:, None])
        turned = torch.stack([turned[:, :, 0] * c - turned[:, :, 1] * s, turned[:, :, 1] * c + turned[:, :, 0] * s], 2).view(n, -1)
        calls: dict[str, tuple[Run, int, int, torch.Tensor, torch.Tensor]] = {
            "add_rms_norm": (partial(_C.add_rms_norm, x, residual, weight, out, 1e-5), n, 4 * x.nbytes, out, normal),
            "silu_mul": (partial(_C.silu_mul, gate_up, inner), n, gate_up.nbytes + inner.nbytes, inner, functional.silu(gate) * up),
            "rope": (partial(_C.rope, q, k, positions, cos_sin, 128), n, 2 * (q.nbytes + k.nbytes), q, turned),
            "argmax": (partial(_C.argmax, logits, tokens), len(logits), logits.nbytes, tokens, logits.float().argmax(-1)),
        }
        right = {}
        for name, (call, _, _, got, want) in calls.items():
            call()
            right[name] = differ(got, want) <= (0.0 if name == "argmax" else 2**-7)
        times = timed({"copy": copy, **{name: graphed(call) for name, (call, *_) in calls.items() if right[name]}})
        for name, (_, count, size, _, _) in calls.items():
            found = {"us": times[name] * 1e6, "floor_us": size / (copy_bytes / times["copy"]) * 1e6} if right[name] else {}
            yield {"what": name, "rows": count, **found, "right": right[name]}


if __name__ == "__main__":
    sys.exit(main())
