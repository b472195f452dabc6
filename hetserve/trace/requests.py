"""One benchmark's request list: what every system gets, in the same order. Plain data, and the rule about requests that do not fit.

A request longer than the model's window is dropped and counted, never replaced by a shorter one; too many of them and there is no run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hetserve.errors import BenchError

MAX_DROPPED_SHARE = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request of a benchmark.

    Attributes:
        prompt: token ids, so that no tokenizer stands between the systems compared.
        output_tokens: how many tokens to ask for.
        arrival_s: when it arrives, seconds after the run begins.
    """

    prompt: tuple[int, ...]
    output_tokens: int
    arrival_s: float = 0.0


@dataclass(frozen=True)
class Lengths:
    """A dataset before its tokens are drawn: prompt and output lengths, or prompts that are texts of their own.

    Attributes:
        input_tokens, output_tokens: [n], same order.
        prompts: the prompts themselves where the dataset has them, else None (drawn at random by length).
        prefix: token ids that every drawn prompt begins with (counted in input_tokens).
        times_s: when they came where the trace is followed (`DatasetSpec.timed`), seconds after its first row; else None.
        inputs: which input this is (dataset, file and sha256, or table, n, seed), for the result's JSON.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...] | None = None
    prefix: tuple[int, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    times_s: tuple[float, ...] | None = None


def keep_fitting(lengths: Lengths, max_model_len: int) -> tuple[Lengths, int]:
    """The requests whose prompt and output fit in `max_model_len` tokens together, and how many were dropped.

    Raises:
        BenchError: more than 2 % do not fit: what is left would no longer be that dataset.
    """
    pairs = list(zip(lengths.input_tokens, lengths.output_tokens, strict=True))
    kept = [index for index, (prompt, output) in enumerate(pairs) if prompt + output <= max_model_len]
    dropped = len(pairs) - len(kept)
    if dropped > MAX_DROPPED_SHARE * len(pairs):
        longest = max(prompt + output for prompt, output in pairs)
        raise BenchError(
            f"{dropped} of {len(pairs)} requests do not fit in --max-model-len {max_model_len} (the longest has {longest} tokens);"
            f" at most {MAX_DROPPED_SHARE:.0%} may be dropped.",
            hint=f"--max-model-len {longest}, a model with a longer window, or a dataset with shorter requests",
        )
    if not dropped:
        return lengths, 0
    prompts = None if lengths.prompts is None else _pick(lengths.prompts, kept)
    times_s = None if lengths.times_s is None else _pick(lengths.times_s, kept)
    inputs, outputs = _pick(lengths.input_tokens, kept), _pick(lengths.output_tokens, kept)
    return replace(lengths, input_tokens=inputs, output_tokens=outputs, prompts=prompts, times_s=times_s), dropped


def _pick(values: Sequence[T], which: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[index] for index in which)
