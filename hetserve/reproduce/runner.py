"""Runs an experiment, holds its numbers against the claims, and writes what came out: never over an earlier result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hetserve.bench.result import save, without_local_paths
from hetserve.errors import BenchError
from hetserve.reproduce import figure
from hetserve.reproduce.claims import About, claims_of
from hetserve.reproduce.report import Report, judged, markdown
from hetserve.reproduce.setup import Setup

FORMAT = 1
Experiment = Callable[[Setup], Report]


@dataclass(frozen=True)
class Run:
    """One run of an experiment, and where its result lies."""

    about: About
    result: Mapping[str, Any]
    page: str
    path: Path | None = None


def run(about: About, experiment: Experiment, setup: Setup, machine: Mapping[str, Any], command: str) -> tuple[Run, Report]:
    """The experiment's result; nothing is written.

    Raises:
        HetserveError: the experiment could not be run, or left a claim without a number.
    """
    began_s = time.monotonic()
    report = experiment(setup)
    claims = claims_of(about.name)
    lacking = [one.name for one in claims if one.name not in report.found]
    if lacking:
        raise BenchError(f"experiment {about.name} found no number for {', '.join(lacking)}")
    facts = {key: value for key, value in machine.items() if key not in ("commit", "dirty")}
    verdicts = judged(claims, report)
    result: dict[str, Any] = {
        "format": FORMAT,
        "experiment": about.name,
        "kind": about.kind,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "seconds": time.monotonic() - began_s,
        "source": source(about, setup),
        "claims": verdicts,
        "tables": [asdict(one) for one in report.tables],
        "notes": list(report.notes),
        "ours": list(about.ours),
        "commit": machine.get("commit"),
        "commit_dirty": machine.get("dirty"),
        "machine": facts,
    }
    said = result | {"machine": machine["name"]}
    name = f"{file_stem(machine, setup)}.svg" if report.bars is not None and figure.drawable() else ""
    return Run(about, result, markdown(about, verdicts, report, said, name)), report


def write(done: Run, report: Report, setup: Setup, folder: Path) -> Run:
    """Puts JSON, page and figure into FOLDER/EXPERIMENT/DATE/.

    Raises:
        UsageError: the folder cannot be written to.
    """
    where = folder / done.about.name / done.result["date"][:10].replace("-", "")
    clean = without_local_paths(json.loads(json.dumps(done.result)), Path.home(), Path.cwd())
    stem = file_stem(done.result["machine"], setup)
    path = save(clean, where, stem)
    page = done.page
    if report.bars is not None and figure.drawable():
        figure.draw(report.bars, f"{done.about.name}: {done.about.title}", path.with_suffix(".svg"))
        page = page.replace(f"({stem}.svg)", f"({path.stem}.svg)")
    path.with_suffix(".md").write_text(without_local_paths(page, Path.home(), Path.cwd()), encoding="utf-8")
    return Run(done.about, clean, page, path)


def file_stem(machine: Mapping[str, Any], setup: Setup) -> str:
    """What a result's files are called: results from trace files beside those from tables."""
    return f"{machine['name']}{'-files' if setup.data else ''}"


def source(about: About, setup: Setup) -> str:
    if not about.datasets:
        return "none are used"
    if setup.data is not None:
        return "trace files; Poisson arrivals"
    return "the committed length tables, not the traces; Poisson arrivals, which are ours"
