"""`hetserve reproduce`: the papers' claims, each beside our number. Chooses experiments, runs one after the other, renders."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import HetserveError, SpecError

from .console import Screen

if TYPE_CHECKING:
    from hetserve.reproduce.claims import About

FAILED = 1  # exit code: some experiment gave no result; a claim that is missed is a result
_folder = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listed", is_flag=True, help="Show claims and experiments and what they take; run nothing.")
@click.option("--result-dir", type=_folder, default=Path("results"), show_default=True, help="Results go to DIR/EXPERIMENT/DATE/.")
@click.option("--data", type=_folder, help="A folder with public traces  [default: $HETSERVE_DATA; without: the committed length tables]")
@click.option("--profile", type=click.Path(dir_okay=False, path_type=Path), help="Of cpu-hetero, for what is measured  [default: measured first]")
@click.option("--processes", type=click.IntRange(1), help="How many to compute with  [default: one a core, at most 2]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reproduce(
    names: tuple[str, ...], listed: bool, result_dir: Path, data: Path | None, profile: Path | None, processes: int | None, as_json: bool
) -> None:
    """Hold the papers' claims against our own numbers: the experiments or claims called NAME, or all that are simulated."""
    screen = Screen(as_json)
    chosen, folder = _chosen(names), _data(data)
    if listed:
        _list(screen, chosen if names else None, folder)
        return
    results, failed = [], []
    for about in chosen:
        try:
            workers = processes or min(2, len(os.sched_getaffinity(0)))
            results.append(_run(about, folder, profile and profile.absolute(), workers, result_dir, screen))
        except HetserveError as error:
            failed.append({"experiment": about.name, "error": error.message})
            screen.note(f"{about.name} failed: {error.message}")
        except Exception as error:  # a fault of ours in one experiment costs no other its result
            failed.append({"experiment": about.name, "error": f"{type(error).__name__}: {error}"})
            screen.note(f"{about.name} failed: {''.join(traceback.format_exception(error)).rstrip()}")
    screen.json({"results": results, "failed": failed})
    _summary(screen, [claim for one in results for claim in one["claims"]], failed)
    if failed:
        raise SystemExit(FAILED)


def _chosen(names: Sequence[str]) -> list[About]:
    """The experiments of these names, or of these claims; all that are simulated, if none are named.

    Raises:
        UsageError: a name that is none.
    """
    from hetserve.reproduce.claims import everything
    from hetserve.systems import unknown

    experiments, claims = everything()
    if not names:
        return [one for one in experiments if one.kind == "simulated"]
    of = {one.name: one.experiment for one in claims} | {one.name: one.name for one in experiments}
    for name in names:
        if name not in of:
            raise unknown("experiment or claim", name, list(of))
    wanted = {of[name] for name in names}
    return [one for one in experiments if one.name in wanted]


def _data(given: Path | None) -> Path | None:
    data = given or (Path(os.environ["HETSERVE_DATA"]) if os.environ.get("HETSERVE_DATA") else None)
    if data is not None and not data.is_dir():
        raise SpecError(f"The data folder {data} does not exist.", "--data, or the environment's HETSERVE_DATA, names a folder with public traces")
    return data


def _list(screen: Screen, chosen: Sequence[About] | None, data: Path | None) -> None:
    from dataclasses import asdict

    from hetserve.reproduce.claims import claims_of, everything

    shown = everything()[0] if chosen is None else chosen
    said = [asdict(one) | {"lengths": _lengths(one, data), "claims": [claim.name for claim in claims_of(one.name)]} for one in shown]
    screen.json({"experiments": said})
    rows = [
        (one["name"], one["kind"], f"{one['human_minutes']:g}", f"{one['compute_minutes']:g}", one["lengths"], ", ".join(one["claims"]))
        for one in said
    ]
    screen.table("", ["experiment", "kind", "human, min", "computing, min", "lengths", "claims"], rows, right=(2, 3))
    claims = [claim for one in shown for claim in claims_of(one.name)]
    screen.table("", ["claim", "paper", "says", "where"], [(one.name, one.paper, one.says, one.where) for one in claims])


def _lengths(about: About, data: Path | None) -> str:
    """Which input an experiment would use, and why not files."""
    from hetserve.reproduce.setup import at_hand, missing

    if not about.datasets:
        return "none used"
    if at_hand(about, data) is not None:
        return "trace files"
    return f"tables (no file of {', '.join(missing(about.datasets, data))})" if data is not None else "tables (no data folder)"


def _run(about: About, data: Path | None, profile: Path | None, processes: int, result_dir: Path, screen: Screen) -> dict[str, Any]:
    """Runs one experiment and writes its result."""
    from hetserve.machine import describe
    from hetserve.reproduce.figure import drawable
    from hetserve.reproduce.runner import run, write
    from hetserve.reproduce.setup import Setup, at_hand
    from hetserve.reproduce.table import EXPERIMENTS

    command = f"hetserve {shlex.join(sys.argv[1:])}"
    with screen.progress(about.name) as advance:
        setup = Setup(at_hand(about, data), profile, processes, lambda done, total: advance(1, f"{done} of {total}"))
        done, report = run(about, EXPERIMENTS[about.name], setup, describe(), command)
    if report.bars is not None and not drawable():
        screen.note("no figure: matplotlib is not installed (pip install matplotlib)")
    done = write(done, report, setup, result_dir)
    rows = [_row(claim) for claim in done.result["claims"]]
    screen.table(f"{about.name}: {about.title}", ["claim", "paper", "ours", "wanted", "verdict"], rows, caption=f"written to {done.path}")
    return dict(done.result)


def _row(claim: dict[str, Any]) -> tuple[str, ...]:
    from hetserve.reproduce.report import show, wanted

    value = f"{show(claim['value'])} {claim['unit']}"
    return (claim["says"], value, show(claim["ours"]["value"]), wanted(claim["reproduced"]), claim["verdict"])


def _summary(screen: Screen, claims: Sequence[dict[str, Any]], failed: Sequence[dict[str, str]]) -> None:
    from hetserve.reproduce.claims import MISSED, PARTLY, REPRODUCED

    counts = [f"{sum(one['verdict'] == verdict for one in claims)} {verdict}" for verdict in (REPRODUCED, PARTLY, MISSED)]
    screen.say(f"{len(claims)} claims: {', '.join(counts)}{'; failed: ' if failed else ''}{', '.join(one['experiment'] for one in failed)}")
