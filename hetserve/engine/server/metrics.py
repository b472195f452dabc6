"""What /metrics says: vLLM's names where they mean the same (prefix `vllm:`), our own elsewhere (prefix `hetserve:`). No globals, no locks.

Everything is counted in the event loop's thread; the engine's numbers are asked for when somebody looks.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hetserve.engine.api import PoolState

LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
CHOICES = (1, 2, 5, 10, 20, 50)

# name -> (what it is, buckets)
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("Arrival to first token of each choice.", LATENCIES_S),
    "vllm:inter_token_latency_seconds": ("Gaps between the tokens of a choice.", LATENCIES_S),
    "vllm:request_time_per_output_token_seconds": ("Mean gap between the tokens of each choice.", LATENCIES_S),
    "vllm:e2e_request_latency_seconds": ("Arrival to last token of each choice.", LATENCIES_S),
    "vllm:request_prompt_tokens": ("Prompt tokens of each request.", TOKENS),
    "vllm:request_generation_tokens": ("Generated tokens of each choice.", TOKENS),
    "vllm:request_params_max_tokens": ("max_tokens of each request.", TOKENS),
    "vllm:request_params_n": ("n of each request.", CHOICES),
}
# the engine's number -> (name, what it is)
GAUGES = {
    "running": ("vllm:num_requests_running", "Sequences in the running batch."),
    "waiting": ("vllm:num_requests_waiting", "Sequences waiting for a place in it."),
    "kv_usage": ("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1."),
}
ENGINE_COUNTERS = {"preemptions_total": ("vllm:num_preemptions", "Sequences put back to waiting to free their pages.")}
POOL_LABELS = ("device", "group", "role", "layers", "worker")
# name -> (what it is, the pool's field)
POOL_GAUGES = {
    "hetserve:pool_pages": ("KV pages of a device for a stage.", "pages"),
    "hetserve:pool_pages_free": ("Those of them that are free.", "pages_free"),
    "hetserve:pool_cpu_seconds": ("CPU time of the device's worker so far, the same for all its pools.", "cpu_s"),
    "hetserve:pool_lost": ("1: the device's worker is gone.", "lost"),
}
COUNTED_HERE = ("prompt_tokens_total", "generation_tokens_total")


class Histogram:
    """Counts per bucket."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many values up to it), as Prometheus has them."""
        return list(zip([*map(str, map(float, self._bounds)), "+Inf"], accumulate(self._counts), strict=True))


class Clock:
    """The times of one choice."""

    __slots__ = ("_arrived_s", "_first_s", "_last_s", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived_s = metrics.now_s()
        self._first_s = self._last_s = 0.0

    def tokens(self, count: int) -> None:
        """`count` tokens came."""
        if not count:
            return
        metrics = self._metrics
        now_s = metrics.now_s()
        metrics.generation_tokens += count
        if self._last_s:
            metrics.inter_token.observe((now_s - self._last_s) / count, count)
        else:
            self._first_s = now_s
            metrics.histograms["vllm:time_to_first_token_seconds"].observe(now_s - self._arrived_s)
        self._last_s = now_s

    def finished(self, reason: str, tokens: int) -> None:
        metrics = self._metrics
        metrics.finished[reason] += 1
        metrics.histograms["vllm:e2e_request_latency_seconds"].observe(metrics.now_s() - self._arrived_s)
        metrics.histograms["vllm:request_generation_tokens"].observe(tokens)
        if tokens > 1:
            metrics.histograms["vllm:request_time_per_output_token_seconds"].observe((self._last_s - self._first_s) / (tokens - 1))


class Metrics:
    """One server's counts.

    Args:
        model: the served name, a label of everything.
        engine_stats: asks the engine for its numbers.
        engine_pools: asks it for each device's part.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        model: str,
        engine_stats: Callable[[], Mapping[str, float]],
        engine_pools: Callable[[], Sequence[PoolState]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now_s = now_s
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.inter_token = self.histograms["vllm:inter_token_latency_seconds"]
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self.errors: Counter[str] = Counter()  # HTTP status -> answers
        self.streams_cut = 0
        self._model = model
        self._engine_stats = engine_stats
        self._engine_pools = engine_pools
        self._registry = CollectorRegistry()
        self._registry.register(self)

    content_type = CONTENT_TYPE_LATEST

    def clock(self) -> Clock:
        return Clock(self)

    def submitted(self, prompt_tokens: int, n: int, max_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        for name, value in (("prompt_tokens", prompt_tokens), ("params_max_tokens", max_tokens), ("params_n", n)):
            self.histograms[f"vllm:request_{name}"].observe(value)

    def left(self, choices: int) -> None:
        self.finished["abort"] += choices

    def failed(self, choices: int) -> None:
        self.finished["error"] += choices

    def cut(self) -> None:
        self.streams_cut += 1

    def page(self) -> bytes:
        """The text Prometheus reads."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Registering needs no names: the registry is ours alone."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, as prometheus_client asks for them."""
        yield self._counter("vllm:prompt_tokens", "Prompt tokens of all requests.", self.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated for clients.", self.generation_tokens)
        yield self._counter("hetserve:streams_cut", "Streams cut because their client did not read them.", self.streams_cut)
        yield self._by_label("vllm:request_success", "Choices ended, by reason.", "finished_reason", self.finished)
        yield self._by_label("hetserve:http_errors", "Requests answered with an error, by HTTP status.", "status", self.errors)
        for name, (what, _) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, what, labels=("model_name", "engine"))
            family.add_metric(self._labels(), self.histograms[name].buckets(), self.histograms[name].total)
            yield family
        yield from self._of_engine()
        yield from self._of_pools()

    def _of_engine(self) -> Iterator[Metric]:
        for key, value in self._engine_stats().items():
            if key in GAUGES:
                yield self._gauge(*GAUGES[key], value)
            elif key in ENGINE_COUNTERS:
                yield self._counter(*ENGINE_COUNTERS[key], value)
            elif key.endswith("_total") and key not in COUNTED_HERE:
                yield self._counter(_own(key.removesuffix("_total")), f"The engine's {key}.", value)
            elif key not in COUNTED_HERE:
                yield self._gauge(_own(key), f"The engine's {key}.", value)

    def _of_pools(self) -> Iterator[Metric]:
        pools = self._engine_pools()
        for name, (what, field) in POOL_GAUGES.items():
            family = GaugeMetricFamily(name, what, labels=("model_name", "engine", *POOL_LABELS))
            for pool in pools:
                value = getattr(pool, field)
                if value is not None:
                    labels = (
                        pool.device,
                        str(pool.group),
                        pool.role,
                        f"{pool.layers[0]}-{pool.layers[1] - 1}",
                        "primary" if pool.primary else "attention",
                    )
                    family.add_metric((*self._labels(), *labels), value)
            yield family

    def _labels(self) -> tuple[str, str]:
        return self._model, "0"

    def _counter(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(name, what, labels=("model_name", "engine"))
        family.add_metric(self._labels(), value)
        return family

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, what, labels=("model_name", "engine"))
        family.add_metric(self._labels(), value)
        return family

    def _by_label(self, name: str, what: str, label: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(name, what, labels=("model_name", "engine", label))
        for value, count in counts.items():
            family.add_metric((*self._labels(), value), count)
        return family


def _own(key: str) -> str:
    return "hetserve:engine_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)
