"""A benchmark's result as one JSON object, and where it is kept: a new file each time, never over an old one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from hetserve import metrics
from hetserve.bench import pairs
from hetserve.bench.agreement import Agreement
from hetserve.bench.comparison import Measured
from hetserve.errors import UsageError

FORMAT = 1


def system_result(runs: Sequence[Measured], config: Mapping[str, Any], detailed: bool) -> dict[str, Any]:
    """One system under vLLM's keys: each number is the median over its runs, `failed` is the sum; every run's own numbers are in `runs`."""
    summaries = [one.summary for one in runs]
    found = {**config, **pairs.medians(summaries), "failed": sum(one["failed"] for one in summaries)}
    found["saturated"] = _any([one["saturated"] for one in summaries])
    found["devices_lost"] = sorted({device for one in summaries for device in one["devices_lost"]})
    found["runs"] = [_run(one, detailed) for one in runs]
    return found


def _run(one: Measured, detailed: bool) -> dict[str, Any]:
    speeds = {"replica_tokens_per_s": [speed for _, speed in one.job.replicas]} if one.job.replicas else {}
    return {"pair": one.pair, "against": one.against, **one.summary, **speeds, **(metrics.details(one.run.records) if detailed else {})}


def traffic(num_prompts: int, rate_per_s: float, burstiness: float, max_concurrency: int | None) -> dict[str, Any]:
    """How requests arrived, under vLLM's keys."""
    rate = rate_per_s if math.isfinite(rate_per_s) else "inf"
    return {"num_prompts": num_prompts, "request_rate": rate, "burstiness": burstiness, "max_concurrency": max_concurrency}


def agreement_result(found: Agreement, by: str) -> dict[str, Any]:
    """An agreement for JSON: the counts, what they were counted on, and every judged divergence."""
    return asdict(found) | {"by": by}


def build(
    systems: Mapping[str, dict[str, Any]],
    agreement: Mapping[str, Any],
    inputs: Mapping[str, Any],
    machine: Mapping[str, Any],
    command: str,
    protocol: Mapping[str, Any],
    ours: str = "hetserve",
    missing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The whole result.

    Args:
        systems: by name, from system_result.
        agreement: by the other system's name; a value may be {"why_none": ...}.
        machine: hetserve.machine.describe().
        protocol: from session.protocol.
        ours: the system the others are compared with.
        missing: systems that were asked for and could not be run, with why.
    """
    compared = {
        name: pairs.ratios([run for run in systems[ours]["runs"] if run["against"] == name], other["runs"])
        for name, other in systems.items()
        if ours in systems and name != ours
    }
    facts = {key: value for key, value in machine.items() if key not in ("commit", "dirty")}
    return {
        "format": FORMAT,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "inputs": dict(inputs),
        "protocol": dict(protocol),
        "ours": ours,
        "systems": dict(systems),
        "ratios": compared,
        "agreement": dict(agreement),
        "missing": dict(missing or {}),
        "machine": facts,
        "commit": machine.get("commit"),
        "commit_dirty": machine.get("dirty"),
    }


def vllm_flat(system: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """One system's result as `vllm bench serve --save-result` writes it: flat, without what only we have."""
    flat = {key: value for key, value in system.items() if key != "runs"} | dict(metadata)
    if len(system["runs"]) == 1:
        flat |= {key: value for key, value in system["runs"][0].items() if key not in ("pair", "against")}
    return flat


def vllm_file_name(label: str, traffic_: Mapping[str, Any], model: str, now: datetime) -> str:
    """vLLM's own file name for a result."""
    concurrency = f"-concurrency{traffic_['max_concurrency']}" if traffic_["max_concurrency"] is not None else ""
    return f"{label}-{traffic_['request_rate']}qps{concurrency}-{model.rstrip('/').split('/')[-1]}-{now:%Y%m%d-%H%M%S}.json"


def without_local_paths(value: Any, home: Path, root: Path) -> Any:
    """The same JSON with the repository's folder written as `.` and the home folder as `~`, so that it can be published as it is."""
    if isinstance(value, str):
        for folder, short in ((str(root), "."), (str(home), "~")):
            if len(folder) > 1:
                value = re.sub(rf"{re.escape(folder)}(?=/|$|[\s'\":;,])", short, value)
        return value
    if isinstance(value, Mapping):
        return {key: without_local_paths(one, home, root) for key, one in value.items()}
    return [without_local_paths(one, home, root) for one in value] if isinstance(value, list | tuple) else value


def save(value: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Writes JSON into a new file; a name that is taken gets a number.

    Raises:
        UsageError: the folder cannot be written to.
    """
    stem = name.removesuffix(".json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
            try:
                with path.open("x") as file:
                    file.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
                return path
            except FileExistsError:
                continue
    except OSError as error:
        raise UsageError(f"The result cannot be written to {folder}: {error}.", hint="--result-dir takes another folder") from error
    raise UsageError(f"{folder} has too many results called {stem}.", hint="--result-dir takes another folder")


def _any(values: Sequence[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return any(known) if known else None
