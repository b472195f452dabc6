"""What a server's /metrics page says while a run lasts: KV tokens resident for running requests, preemptions. Sampled, so a peak is a lower bound."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hetserve.bench.process import get

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)\s*$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
KV_TOKENS = "hetserve:engine_kv_tokens"
PREEMPTIONS = "vllm:num_preemptions_total"
MOVES = "hetserve:engine_moves_total"
LOST = "hetserve:pool_lost"
TOTALS = {  # of a run: what grew meanwhile
    "preemptions": PREEMPTIONS,
    "moves": MOVES,
    "steps": "hetserve:engine_steps_total",
    "step_s": "hetserve:engine_step_s",
    "controller_s": "hetserve:engine_controller_s",
}
VLLM_USAGE, VLLM_CACHE = "vllm:kv_cache_usage_perc", "vllm:cache_config_info"

Page = list[tuple[str, dict[str, str], float]]  # name, labels, value
See = Callable[[str, Sequence[Page]], None]  # (system, its servers' pages), for whoever shows them


def parse(text: str) -> Page:
    """The samples on a Prometheus text page; lines that are none are skipped."""
    found = []
    for name, labels, value in SAMPLE.findall(text):
        try:
            found.append((name, dict(LABEL.findall(labels)), float(value)))
        except ValueError:
            continue
    return found


def total(page: Page, name: str) -> float | None:
    """The sum of a metric over its labels; None when the page does not have it."""
    values = [value for one, _, value in page if one == name]
    return sum(values) if values else None


def kv_tokens(page: Page) -> float | None:
    """KV tokens resident for running requests: as the server counts them, else vLLM's share of blocks in use times its blocks' tokens."""
    own = total(page, KV_TOKENS)
    if own is not None:
        return own
    usage = total(page, VLLM_USAGE)
    sizes = [labels for name, labels, _ in page if name == VLLM_CACHE]
    try:
        return None if usage is None else usage * sum(int(one["num_gpu_blocks"]) * int(one["block_size"]) for one in sizes) if sizes else None
    except (KeyError, ValueError):
        return None


class Watch:
    """Samples one system's servers during one run.

    Args:
        urls: of its servers; their numbers are added up.
        see: shown every sample.
    """

    def __init__(self, name: str, urls: Sequence[str], see: See | None = None) -> None:
        self._name, self._urls, self._see = name, urls, see
        self._peak: float | None = None
        self._lost: set[str] = set()
        self._first = self._counts(self._pages())

    def sample(self) -> Sequence[Page]:
        pages = self._pages()
        self._lost |= {labels.get("device", "") for page in pages for name, labels, value in page if name == LOST and value}
        found = [kv_tokens(page) for page in pages]
        if all(one is not None for one in found):
            self._peak = max(self._peak or 0.0, sum(one or 0.0 for one in found))
        if self._see is not None:
            self._see(self._name, pages)
        return pages

    def summary(self) -> dict[str, Any]:
        """After the run: peak_kv_tokens and TOTALS of this run, None for what the servers do not tell; and devices it found lost."""
        last = self._counts(self.sample())
        since = {name: None if value is None else value - (self._first[name] or 0.0) for name, value in last.items()}
        return {"peak_kv_tokens": self._peak, **since, "devices_lost": sorted(self._lost)}

    def _pages(self) -> Sequence[Page]:
        return [parse(get(url, "/metrics")[1]) for url in self._urls]

    @staticmethod
    def _counts(pages: Sequence[Page]) -> Mapping[str, float | None]:
        found = {}
        for key, name in TOTALS.items():
            known = [value for page in pages if (value := total(page, name)) is not None]
            found[key] = sum(known) if known else None
        return found
