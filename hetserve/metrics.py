"""What a benchmark measures, in the definitions and under the names of `vllm bench serve`. Who was measured is not known here.

TTFT  first chunk - request sent
TPOT  (last chunk - first chunk) / (output tokens - 1), over requests with at least 2 tokens
ITL   all gaps between the chunks of all requests, pooled
E2EL  last chunk - request sent, without the client's own queue, which is reported apart
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetserve.errors import UsageError

LATENCIES = ("ttft", "tpot", "itl", "e2el")
QUEUE_TIMES = ("client_queue_time", "e2el_including_client_queue")
GOODPUT_NAMES = ("ttft", "tpot", "e2el")
HIGHER_IS_BETTER = ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s")


@dataclass(frozen=True)
class RequestRecord:
    """What became of one request.

    Attributes:
        ok: it ended as it should; a failed request counts in `failed` and nowhere else.
        start_s: when it was sent, seconds after the run began.
        queue_s: how long it had waited in the client (for --max-concurrency, or a late client) before that.
        chunk_s: when each chunk with output arrived, seconds after start_s.
        chunk_tokens: tokens in each of those chunks.
        token_ids: the output's tokens, empty when the server does not tell.
    """

    ok: bool
    prompt_tokens: int
    output_tokens: int
    start_s: float
    queue_s: float
    chunk_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    text: str = ""
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0] if self.chunk_s else 0.0

    @property
    def e2el_s(self) -> float:
        return self.chunk_s[-1] if self.chunk_s else 0.0

    @property
    def tpot_s(self) -> float:
        """0 for an answer of at most one token, as goodput counts it."""
        return (self.e2el_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    @property
    def itl_s(self) -> list[float]:
        return [after - before for before, after in zip(self.chunk_s, self.chunk_s[1:], strict=False)]


def summarise(
    records: Sequence[RequestRecord],
    duration_s: float,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
    queued: bool = False,
    open_loop: bool = False,
) -> dict[str, Any]:
    """The result of one run under vLLM's JSON keys.

    Args:
        duration_s: from the run's start until the last request ended.
        goodput_ms: limits by GOODPUT_NAMES; a request within all of them is good. Empty: request_goodput is None.
        queued: a --max-concurrency was set, so the client's queue is reported.
        open_loop: the rate is finite, so latency including that queue means something.
    """
    done = [record for record in records if record.ok]
    tokens_in, tokens_out = (sum(getattr(record, name) for record in done) for name in ("prompt_tokens", "output_tokens"))
    peak_tokens, peak_requests = _peaks(done)
    result: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(done) / duration_s,
        "request_goodput": _good(done, goodput_ms) / duration_s if goodput_ms else None,
        "output_throughput": tokens_out / duration_s,
        "total_token_throughput": (tokens_in + tokens_out) / duration_s,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
        "rtfx": 0.0,  # audio only; scripts expect the key
    }
    values = {
        "ttft": [record.ttft_s for record in done],
        "tpot": [record.tpot_s for record in done if record.output_tokens > 1],
        "itl": [gap for record in done for gap in record.itl_s],
        "e2el": [record.e2el_s for record in done],
    }
    if queued:
        values["client_queue_time"] = [record.queue_s for record in done]
    if queued and open_loop:
        values["e2el_including_client_queue"] = [record.e2el_s + record.queue_s for record in done]
    for name, seconds in values.items():
        result |= _spread(name, seconds, percentiles)
    return result


def details(records: Sequence[RequestRecord]) -> dict[str, list[Any]]:
    """The per-request lists that --save-detailed adds, under vLLM's keys, in the request list's order."""
    return {
        "input_lens": [record.prompt_tokens for record in records],
        "output_lens": [record.output_tokens if record.ok else 0 for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [record.itl_s for record in records],
        "latencies": [record.e2el_s for record in records],
        "start_times": [record.start_s for record in records],
        "queue_times": [record.queue_s for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`ttft:200 tpot:50` as limits in milliseconds; pairs may come one by one or in one string.

    Raises:
        UsageError: not KEY:VALUE, an unknown key, or a negative value.
    """
    limits: dict[str, float] = {}
    for pair in (word for text in pairs for word in text.split()):
        name, colon, value = pair.partition(":")
        try:
            limit_ms = float(value)
        except ValueError:
            limit_ms = math.nan
        if not colon or name not in GOODPUT_NAMES or not limit_ms >= 0:
            hint = f"KEY is one of {', '.join(GOODPUT_NAMES)}: --goodput ttft:200"
            raise UsageError(f"--goodput got '{pair}', expected KEY:MILLISECONDS.", hint)
        limits[name] = limit_ms
    return limits


def percentile_key(percentile: float) -> str:
    """`p99`, `p99.9`: how vLLM writes a percentile in its keys."""
    return f"p{int(percentile)}" if percentile == int(percentile) else f"p{percentile}"


def _spread(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    values_ms = np.asarray(seconds if len(seconds) else [0.0]) * 1000
    spread = {"mean": np.mean(values_ms), "median": np.median(values_ms), "std": np.std(values_ms)}
    spread |= {percentile_key(percentile): np.percentile(values_ms, percentile) for percentile in percentiles}
    return {f"{statistic}_{name}_ms": float(value) for statistic, value in spread.items()}


def _good(done: Sequence[RequestRecord], limits_ms: Mapping[str, float]) -> int:
    return sum(all(getattr(record, f"{name}_s") * 1000 <= limit for name, limit in limits_ms.items()) for record in done)


def _peaks(done: Sequence[RequestRecord]) -> tuple[float, int]:
    """The most output tokens in any second, and the most requests that were under way during any second, counted from the first request's start."""
    if not done:
        return 0.0, 0
    origin_s = min(record.start_s for record in done)
    seconds = math.ceil(max(record.start_s + record.e2el_s for record in done) - origin_s) + 1
    tokens, requests = np.zeros(seconds), np.zeros(seconds, np.int64)
    for record in done:
        begun_s = record.start_s - origin_s
        np.add.at(tokens, (begun_s + np.asarray(record.chunk_s)).astype(np.int64), record.chunk_tokens)
        requests[int(begun_s) : int(begun_s + record.e2el_s) + 1] += 1
    return float(tokens.max()), int(requests.max())
