"""Reads request lengths from public trace files (CSV or JSON Lines, gzipped or not), and committed tables. Nothing is thinned or repaired.

    python -m hetserve.trace.files NAME FILE SOURCE LICENCE > workloads/lengths/NAME.toml

fits a table from a raw file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetserve.errors import SpecError
from hetserve.trace import tables

# (input column, output column) of the trace formats in use: Azure, Helix/vLLM, Sarathi/Vidur, BurstGPT, Mooncake, splitwise-sim
COLUMNS = (
    ("ContextTokens", "GeneratedTokens"),
    ("input_tokens", "output_tokens"),
    ("num_prefill_tokens", "num_decode_tokens"),
    ("Request tokens", "Response tokens"),
    ("input_length", "output_length"),
    ("prompt_size", "token_size"),
    ("prompt_tokens", "canonical_solution_tokens"),  # HumanEval, counted with Llama-2's tokenizer
)

# Columns that say when a request came, and how many seconds one of their units is; None: a date with the time of day.
TIMES: tuple[tuple[str, float | None], ...] = (
    ("TIMESTAMP", None),  # Azure
    ("timestamp", 1e-3),  # Mooncake
    ("arrival_s", 1.0),
    ("Timestamp", 1.0),  # BurstGPT
    ("arrival_timestamp", 1.0),  # splitwise-sim
)

# Where each dataset's file may lie below a data folder, most specific first.
FILES = {
    "azure-conv": ("azure2023/AzureLLMInferenceTrace_conv.csv", "AzureLLMInferenceTrace_conv.csv"),
    "azure-code": ("azure2023/AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_code.csv"),
    "sharegpt": ("sharegpt/helix_shared_gpt_lengths.csv", "helix_shared_gpt_lengths.csv"),
    "sharegpt-8k": ("sharegpt/sharegpt_8k_filtered_stats_llama2_tokenizer.csv", "sharegpt_8k_filtered_stats_llama2_tokenizer.csv"),
    "humaneval": ("humaneval/humaneval_lengths_llama2_tokenizer.csv", "humaneval_lengths_llama2_tokenizer.csv"),
    "arxiv": ("arxiv/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"),
    "mooncake-conv": ("mooncake/conversation_trace.jsonl", "conversation_trace.jsonl"),
    "longbench": (),  # averages are all that is published: there is the committed table alone
}


def find(folder: Path, dataset: str) -> Path | None:
    """The dataset's file below a data folder or its `traces`, gzipped or not; None when it is not there."""
    names = [name + ending for name in FILES[dataset] for ending in ("", ".gz")]
    places = [root / name for root in (folder, folder / "traces") for name in names]
    return next((place for place in places if place.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """A file's contents, uncompressed if its name ends in .gz.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise SpecError(
            f"The dataset file {path} cannot be read: {error}.", hint="give --dataset-path a CSV or JSON Lines file, gzipped or not"
        ) from error


def parse(raw: bytes, path: Path) -> NDArray[np.int64]:
    """[rows, 2] input and output tokens of a trace file.

    Raises:
        SpecError: it has no rows, its columns are none of the known formats, or a row has no whole positive numbers.
    """
    rows = _rows(raw, path)
    if not rows:
        raise SpecError(f"{path} has no rows.", hint="a workload has at least one request")
    columns = next((pair for pair in COLUMNS if all(name in rows[0] for name in pair)), None)
    if columns is None:
        seen = ", ".join(map(str, rows[0]))
        wanted = "; ".join(f"{one}, {two}" for one, two in COLUMNS)
        raise SpecError(f"{path} has no length columns known here (it has: {seen}).", hint=f"known pairs: {wanted}")
    try:
        lengths = np.array([[int(float(row[name])) for name in columns] for row in rows], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"{path} has a row without whole numbers in {columns[0]} and {columns[1]}: {error}.") from error
    if (lengths[:, 0] < 1).any() or (lengths[:, 1] < 0).any():
        raise SpecError(f"{path} has a row with an empty prompt or a negative length.")
    return lengths


def times(raw: bytes, path: Path) -> NDArray[np.float64]:
    """[rows] seconds from the first request to each, as a trace file recorded them; requests of one instant are spread evenly until the next.

    Raises:
        SpecError: the file does not say when requests came, or they do not come in order.
    """
    rows = _rows(raw, path)
    column, unit_s = next(((name, unit) for name, unit in TIMES if rows and name in rows[0]), ("", None))
    if not column:
        raise SpecError(f"{path} does not say when requests came.", hint=f"a column {', '.join(name for name, _ in TIMES)}; or give --request-rate")
    try:
        if unit_s is None:
            found = (np.array([row[column] for row in rows], "datetime64[ns]") - np.datetime64(rows[0][column], "ns")).astype(np.int64) * 1e-9
        else:
            found = np.array([float(row[column]) for row in rows]) * unit_s
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{path} has a row whose {column} is no time: {error}.") from error
    if not np.isfinite(found).all() or (np.diff(found) < 0).any():
        raise SpecError(f"{path} has rows that are not in the order of their {column}.")
    return _spread(found - found[0])


def _spread(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Requests of one instant (Mooncake's are multiples of 3 s) come evenly over the time to the next one."""
    instants, first, counts = np.unique(times_s, return_index=True, return_counts=True)
    gaps = np.diff(instants, append=instants[-1] + (instants[-1] - instants[-2] if len(instants) > 1 else 0.0))
    place = np.arange(len(times_s)) - np.repeat(first, counts)
    return times_s + place * np.repeat(gaps / counts, counts)


def _rows(raw: bytes, path: Path) -> list[dict[str, Any]]:
    text = raw.decode("utf-8-sig", errors="replace")
    if text.lstrip().startswith("{"):
        return [_json_row(line, number, path) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return list(csv.DictReader(text.splitlines()))


def read_table(path: Path) -> tables.LengthTable:
    """A committed length table.

    Raises:
        SpecError: it cannot be read or is no table.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"The length table {path} cannot be read: {error}.") from error
    return tables.from_toml(data, path)


def sha256(raw: bytes) -> str:
    """Of uncompressed contents, as the tables and the traces' lists state it."""
    return hashlib.sha256(raw).hexdigest()


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SpecError(f"{path}, line {number} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise SpecError(f"{path}, line {number} is not a JSON object.")
    return row


def main() -> None:
    """Fit a table from a raw file and print it (see the top of this file)."""
    name, file, source, licence = sys.argv[1:]
    raw = read_bytes(Path(file))
    table = tables.fit(name, source, licence, sha256(raw), parse(raw, Path(file)))
    origin = Path(file).name.removesuffix(".gz")
    sys.stdout.write(tables.to_toml(table, f'python -m hetserve.trace.files {name} {origin} "..." {licence}'))


if __name__ == "__main__":
    main()
