"""Datasets: a description becomes a list of requests, the same bytes for the same seed. Prompts are token ids.

`random` draws lengths as `vllm bench serve` does; azure-conv, sharegpt and the like (TRACES) take a public trace's lengths (from its file, else from
the committed table, where there is one); `custom` reads prompts. Refuses what it does not know instead of falling back to another input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hetserve.errors import SpecError, UsageError
from hetserve.trace import files, tables
from hetserve.trace.arrivals import Arrivals, arrival_times, followed_times
from hetserve.trace.requests import Lengths, Request, keep_fitting
from hetserve.trace.vocab import Vocabulary

TRACES = tuple(files.FILES)
NAMES = ("random", *TRACES, "custom")
CLASSES = tuple(name for name, _, _ in tables.CLASSES)
LENGTHS_STREAM, TOKENS_STREAM, ARRIVALS_STREAM = 0, 1, 2  # independent random streams of one seed
SHAREGPT_LIMITS = (4, 1024, 2048)  # shortest part, longest prompt, longest prompt with answer: what vLLM keeps of the ShareGPT file


@dataclass(frozen=True)
class DatasetSpec:
    """Which requests to make. Lengths in tokens; names and defaults as in `vllm bench serve`.

    Attributes:
        name: one of NAMES.
        path: the dataset's file, or None.
        data_dir: a folder that may hold the public traces, or None.
        tables_dir: the folder of committed length tables.
        only: one of CLASSES (HPHD: heavy prefill, heavy decode, ...; of longbench a task) to take a trace's requests from, or several with commas;
            empty: all of them.
        most_tokens: of a trace, leave out requests whose prompt and answer are longer together, before any is drawn; 0: none.
        most_input: of a trace, cut longer prompts to so many tokens, as LongBench's own runs do; 0: none is.
        fixed_output_len: overrides the dataset's own output lengths (not `random`'s).
        timed: take a trace's first requests in their order, with the times at which they came, from its file.
    """

    name: str = "random"
    num_prompts: int = 1000
    seed: int = 0
    path: Path | None = None
    data_dir: Path | None = None
    tables_dir: Path | None = None
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    fixed_output_len: int | None = None
    only: str = ""
    most_tokens: int = 0
    timed: bool = False
    most_input: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UsageError(f"There is no dataset '{self.name}'.", hint=f"--dataset-name takes {', '.join(NAMES)}")
        if self.num_prompts < 1:
            raise UsageError(f"--num-prompts must be at least 1, not {self.num_prompts}.")
        if self.name == "random" and self.path is not None:
            raise UsageError(
                "--dataset-name random takes no --dataset-path.", hint="name the dataset of that file: azure-conv, sharegpt, custom, ..."
            )
        if self.only and not (self.name == "longbench" or (self.name in TRACES and set(self.only.split(",")) <= set(CLASSES))):
            raise UsageError(
                f"There is no class '{self.only}' of {self.name} requests.", hint=f"--class takes {', '.join(CLASSES)}, with {', '.join(TRACES)}"
            )
        if self.most_tokens and self.name not in TRACES:
            raise UsageError("--max-request-len leaves requests of a trace out.", hint=f"it goes with {', '.join(TRACES)}")
        if self.timed and self.name not in TRACES:
            raise UsageError(f"{self.name} requests have no times of their own.", hint=f"--use-trace-timestamps goes with {', '.join(TRACES)}")
        if self.most_input and self.name not in TRACES:
            raise UsageError("--max-input-len cuts the prompts of a trace.", hint=f"it goes with {', '.join(TRACES)}")
        if not 0 <= self.random_range_ratio < 1:
            raise UsageError(f"--random-range-ratio must be at least 0 and below 1, not {self.random_range_ratio:g}.")
        if self.random_prefix_len < 0 or self.random_prefix_len + math.floor(self.random_input_len * (1 - self.random_range_ratio)) < 1:
            raise UsageError(f"--random-input-len {self.random_input_len} is too small: a prompt has at least one token.")
        if self.random_output_len < 1 or (self.fixed_output_len is not None and self.fixed_output_len < 1):
            raise UsageError("Output lengths must be at least 1.")


@dataclass(frozen=True)
class Workload:
    """A dataset whose lengths are fixed: what fits is kept, arrivals are set; prompts of drawn tokens are made anew for each draw."""

    lengths: Lengths
    arrivals_s: tuple[float, ...]
    dropped: int
    seed: int
    vocabulary: Vocabulary

    def requests(self, draw: int = 0) -> tuple[Request, ...]:
        """The request list. Another `draw` has other prompt tokens (so no system profits from having seen them) and is otherwise the same."""
        prompts = self.lengths.prompts
        if prompts is None:
            rng = np.random.default_rng([self.seed, TOKENS_STREAM, draw])
            prompts = tuple(self._drawn(count, rng) for count in self.lengths.input_tokens)
        rows = zip(prompts, self.lengths.output_tokens, self.arrivals_s, strict=True)
        return tuple(Request(prompt, output, at_s) for prompt, output, at_s in rows)

    def _drawn(self, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        prefix = self.lengths.prefix
        return (*prefix, *rng.choice(self.vocabulary.ordinary, size=count - len(prefix)).tolist())


def build(spec: DatasetSpec, arrivals: Arrivals, vocabulary: Vocabulary, max_model_len: int) -> Workload:
    """The workload a description names.

    Args:
        max_model_len: prompt and output of a request must fit in it; what does not is dropped and counted.

    Raises:
        SpecError: the dataset's file cannot be read or lacks what it should have.
        BenchError: more than 2 % of the requests do not fit.
    """
    rng = np.random.default_rng([spec.seed, LENGTHS_STREAM])
    lengths = _READERS[spec.name](spec, vocabulary, rng)
    if spec.fixed_output_len is not None and spec.name != "random":
        fixed = (spec.fixed_output_len,) * len(lengths.input_tokens)
        lengths = replace(lengths, output_tokens=fixed, inputs=lengths.inputs | {"output_len": spec.fixed_output_len})
    if spec.most_input:
        lengths = _cut(lengths, spec.most_input)
    asked = len(lengths.input_tokens)
    kept, dropped = keep_fitting(lengths, max_model_len)
    inputs = {"dataset": spec.name, "n": asked, "dropped": dropped, "seed": spec.seed, "max_model_len": max_model_len, **kept.inputs}
    return arriving(Workload(replace(kept, inputs=inputs), (), dropped, spec.seed, vocabulary), arrivals)


def _cut(lengths: Lengths, most: int) -> Lengths:
    """Prompts of at most so many tokens; longer ones lose their middle, and how many there were is said."""
    front, back = most - most // 2, most // 2
    prompts = lengths.prompts and tuple(one if len(one) <= most else (*one[:front], *one[len(one) - back :]) for one in lengths.prompts)
    said = {"most_input": most, "cut": sum(count > most for count in lengths.input_tokens)}
    return replace(lengths, input_tokens=tuple(min(count, most) for count in lengths.input_tokens), prompts=prompts, inputs=lengths.inputs | said)


def arriving(workload: Workload, arrivals: Arrivals, slowdown: float = 1.0) -> Workload:
    """The same requests, arriving otherwise: at every rate in the same pattern, the seed's or that of the trace that is followed.

    Args:
        slowdown: how many times as long a trace that is followed takes, where no rate says so.

    Raises:
        UsageError: a trace that is followed cannot arrive like this.
    """
    times_s, count = workload.lengths.times_s, len(workload.lengths.input_tokens)
    if times_s is None:
        times = arrival_times(arrivals, count, np.random.default_rng([workload.seed, ARRIVALS_STREAM]))
    else:
        times = followed_times(arrivals, times_s, slowdown)
    return replace(workload, arrivals_s=tuple(times.tolist()))


def _random(spec: DatasetSpec, vocabulary: Vocabulary, rng: np.random.Generator) -> Lengths:
    def drawn(mean: int, least: int) -> list[int]:
        low, high = math.floor(mean * (1 - spec.random_range_ratio)), math.ceil(mean * (1 + spec.random_range_ratio))
        return rng.integers(max(low, least), max(high, least) + 1, size=spec.num_prompts).tolist()

    prefix = tuple(rng.choice(vocabulary.ordinary, size=spec.random_prefix_len).tolist())
    inputs = tuple(spec.random_prefix_len + count for count in drawn(spec.random_input_len, 0))
    said = {
        "input": "drawn",
        "random_input_len": spec.random_input_len,
        "random_output_len": spec.random_output_len,
        "random_range_ratio": spec.random_range_ratio,
        "random_prefix_len": spec.random_prefix_len,
    }
    return Lengths(inputs, tuple(drawn(spec.random_output_len, 1)), prefix=prefix, inputs=said)


def _trace(spec: DatasetSpec, vocabulary: Vocabulary, rng: np.random.Generator) -> Lengths:
    path = spec.path or (files.find(spec.data_dir, spec.name) if spec.data_dir else None)
    if path is None and spec.timed:
        raise SpecError(f"Only the file of {spec.name} says when requests came, and it is not here.", hint="--dataset-path, or --data-dir")
    if path is None:
        return _from_table(spec, rng)
    raw = files.read_bytes(path)
    if spec.name == "sharegpt" and raw.lstrip().startswith(b"["):
        return _conversations(spec, vocabulary, rng, raw, path)
    rows = files.parse(raw, path)
    wanted = np.ones(len(rows), bool)
    if spec.only:
        wanted &= tables.in_class(spec.only, rows)
    if spec.most_tokens:
        wanted &= rows.sum(axis=1) <= spec.most_tokens
    kept = np.flatnonzero(wanted)
    if not len(kept):
        raise SpecError(f"{path} has no requests of that kind.")
    said = {"input": "file", "file": path.name, "sha256": files.sha256(raw), "rows": len(kept)} | _only(spec)
    if not spec.timed:
        return _lengths(rows[kept[_pick(len(kept), spec.num_prompts, rng)]], said)
    first = kept[: spec.num_prompts]
    return replace(_lengths(rows[first], said | {"timestamps": "trace"}), times_s=tuple(files.times(raw, path)[first].tolist()))


def _from_table(spec: DatasetSpec, rng: np.random.Generator) -> Lengths:
    if spec.tables_dir is None or not (spec.tables_dir / f"{spec.name}.toml").is_file():
        raise SpecError(f"No file and no length table for {spec.name}.", hint="give --dataset-path")
    table = files.read_table(spec.tables_dir / f"{spec.name}.toml")
    if spec.only:
        table = tables.narrowed(table, spec.only)
    said = {"input": "table", "table": table.name, "source": table.source, "licence": table.licence, "sha256": table.sha256, "rows": table.rows}
    return _lengths(tables.sample(table, spec.num_prompts, rng, spec.most_tokens), said | _only(spec))


def _only(spec: DatasetSpec) -> dict[str, Any]:
    return ({"class": spec.only} if spec.only else {}) | ({"most_tokens": spec.most_tokens} if spec.most_tokens else {})


def _lengths(rows: np.ndarray[Any, np.dtype[np.int64]], said: dict[str, Any]) -> Lengths:
    return Lengths(tuple(rows[:, 0].tolist()), tuple(np.maximum(rows[:, 1], 1).tolist()), inputs=said)


def _conversations(spec: DatasetSpec, vocabulary: Vocabulary, rng: np.random.Generator, raw: bytes, path: Path) -> Lengths:
    """ShareGPT's own JSON: the first question is the prompt, the first answer's length is the output length."""
    try:
        turns = [[str(turn["value"]) for turn in one["conversations"][:2]] for one in json.loads(raw) if len(one["conversations"]) >= 2]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is not a list of ShareGPT conversations: {type(error).__name__} {error}.") from error
    order = rng.permutation(len(turns))
    shortest, longest_prompt, longest = SHAREGPT_LIMITS
    prompts: list[tuple[int, ...]] = []
    outputs: list[int] = []
    for index in order:
        question, answer = vocabulary.encode(turns[index])
        fits = shortest <= min(len(question), len(answer)) and len(question) <= longest_prompt and len(question) + len(answer) <= longest
        if spec.most_tokens:
            fits = fits and len(question) + len(answer) <= spec.most_tokens
        if spec.only:
            fits = fits and len(tables.of_class(spec.only, np.array([[len(question), len(answer)]]))) == 1
        if fits and len(prompts) < spec.num_prompts:
            prompts.append(tuple(question))
            outputs.append(len(answer))
        if len(prompts) == spec.num_prompts:
            break
    said = {
        "input": "file",
        "file": path.name,
        "sha256": files.sha256(raw),
        "rows": len(turns),
        "kept": f"{shortest}..{longest_prompt}, total {longest}",
    }
    return _prompted(prompts, outputs, said | _only(spec), path)


def _custom(spec: DatasetSpec, vocabulary: Vocabulary, rng: np.random.Generator) -> Lengths:
    """JSON Lines: `prompt` (text) or `prompt_token_ids`, and `output_tokens` or `output_len` unless --output-len gives it."""
    if spec.path is None:
        raise UsageError("--dataset-name custom needs --dataset-path, a JSON Lines file.", hint='a line: {"prompt": "...", "output_tokens": 64}')
    raw = files.read_bytes(spec.path)
    lines = [line for line in raw.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    rows = [_custom_row(line, number, spec) for number, line in enumerate(lines, 1)]
    chosen = [rows[index] for index in _pick(len(rows), spec.num_prompts, rng)] if rows else []
    texts = [prompt for prompt, _ in chosen if isinstance(prompt, str)]
    encoded = iter(vocabulary.encode(texts) if texts else [])
    prompts = [tuple(next(encoded)) if isinstance(prompt, str) else tuple(prompt) for prompt, _ in chosen]
    said = {"input": "file", "file": spec.path.name, "sha256": files.sha256(raw), "rows": len(rows)}
    return _prompted(prompts, [output for _, output in chosen], said, spec.path)


def _custom_row(line: str, number: int, spec: DatasetSpec) -> tuple[str | list[int], int]:
    where = f"{spec.path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SpecError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise SpecError(f"{where} is not a JSON object.")
    prompt = row.get("prompt_token_ids", row.get("prompt"))
    output = spec.fixed_output_len or row.get("output_tokens", row.get("output_len"))
    ids = isinstance(prompt, list) and all(isinstance(token, int) and token >= 0 for token in prompt)
    if not prompt or not (isinstance(prompt, str) or ids):
        raise SpecError(f"{where} has no prompt: expected `prompt`, a text, or `prompt_token_ids`, a list of token ids.")
    if not isinstance(output, int) or output < 1:
        raise SpecError(f"{where} has no output length: expected `output_tokens`, a whole number.", hint="or give one for all with --output-len")
    return prompt, output


def _prompted(prompts: list[tuple[int, ...]], outputs: list[int], said: dict[str, Any], path: Path) -> Lengths:
    if not prompts:
        raise SpecError(f"{path} has no usable request.")
    return Lengths(tuple(map(len, prompts)), tuple(outputs), tuple(prompts), inputs=said)


def _pick(rows: int, count: int, rng: np.random.Generator) -> list[int]:
    """Uniform row numbers: without repetition while there are enough rows, each equally often (to within one) otherwise."""
    rounds = [rng.permutation(rows) for _ in range(math.ceil(count / rows))] if rows else []
    return np.concatenate(rounds)[:count].tolist() if rounds else []


_READERS: dict[str, Callable[[DatasetSpec, Vocabulary, np.random.Generator], Lengths]] = {
    "random": _random,
    **dict.fromkeys(TRACES, _trace),
    "custom": _custom,
}
