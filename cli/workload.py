"""`hetserve workload list|fetch`: public traces and profiles, downloaded from where they were published and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import UsageError

if TYPE_CHECKING:
    from hetserve.trace.fetch import Source, SourceFile

    from .console import Screen

KB, MB = 1e3, 1e6

_folder = click.option("-o", "--data", type=click.Path(file_okay=False, path_type=Path), help="The data folder  [default: $HETSERVE_DATA]")
_sources = click.option("--sources", type=click.Path(dir_okay=False, path_type=Path), help="Another table of sources, as of a mirror.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def workload() -> None:
    """Fetch public traces and profiles from where they were published."""


@workload.command("list")
@_folder
@_sources
@_json
def list_(data: Path | None, sources: Path | None, as_json: bool) -> None:
    """What can be fetched, its licence, and what of it is in the data folder already."""
    from dataclasses import asdict

    from hetserve.trace.fetch import present
    from hetserve.trace.fetch import sources as table

    from .console import Screen

    screen, folder, known = Screen(as_json), _data(data), table(sources)
    there = {one.name: sum(present(file, folder) is not None for file in one.file) if folder else 0 for one in known}
    screen.json({"folder": str(folder) if folder else None, "sources": [asdict(one) | {"present": there[one.name]} for one in known]})
    rows = [(one.name, one.kind, *_sizes(one, there[one.name]), one.licence, one.about) for one in known]
    screen.table("", ["name", "kind", "files", "there", "MB", "licence", "what"], rows, right=(2, 3, 4))
    for one in known:
        if one.by_hand:
            screen.say(f"{one.name}: by hand from {one.home}: {one.by_hand}", "dim")
    if folder is None:
        screen.note("-o DIR, or the environment's HETSERVE_DATA, names the data folder")


@workload.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_folder
@_sources
@_json
def fetch(names: tuple[str, ...], data: Path | None, sources: Path | None, as_json: bool) -> None:
    """Download NAME into the data folder, where --data and HETSERVE_DATA find it. What is there and right is left alone."""
    from hetserve.trace.fetch import named
    from hetserve.trace.fetch import sources as table

    from .console import Screen

    screen, folder, known = Screen(as_json), _data(data), table(sources)
    wanted = [named(name, known) for name in names]
    if folder is None:
        raise UsageError("There is no folder to fetch into.", hint="-o DIR, or the environment's HETSERVE_DATA, names one")
    done = [told for one in wanted for told in _fetch(one, folder, screen)]
    screen.json({"folder": str(folder), "files": done})


def _fetch(one: Source, folder: Path, screen: Screen) -> list[dict[str, Any]]:
    """One source: what is missing comes, the rest is named."""
    from hetserve.trace.fetch import fetch, present

    found = {file: present(file, folder) for file in one.file}
    missing = [file for file, place in found.items() if place is None]
    if missing:
        with screen.progress(f"fetching {one.name}, kB", total=sum(file.bytes for file in missing) / KB) as advance:
            for file in missing:
                found[file] = fetch(file, folder, lambda count: advance(count / KB))
                if (beside := folder / f"{file.path}.gz").is_file():
                    screen.note(f"{beside} is something else; remove it, or it is read too")
    size = sum(file.bytes for file in missing) / MB
    if missing:
        screen.say(f"{one.name}: {_files(len(missing))} fetched into {folder} and checked, {size:,.1f} MB; licence {one.licence}, from {one.home}")
    if len(missing) < len(one.file):
        screen.say(f"{one.name}: {_files(len(one.file) - len(missing))} there already, and right")
    return [_told(one, file, found[file], file in missing) for file in one.file]


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _told(one: Source, file: SourceFile, place: Path | None, came: bool) -> dict[str, Any]:
    return {"source": one.name, "path": str(place), "url": file.url, "sha256": file.sha256, "bytes": file.bytes, "fetched": came}


def _data(data: Path | None) -> Path | None:
    return data or (Path(os.environ["HETSERVE_DATA"]) if os.environ.get("HETSERVE_DATA") else None)


def _sizes(one: Source, there: int) -> tuple[str, str, str]:
    """Files, how many are there, and megabytes."""
    return (str(len(one.file)), str(there), f"{sum(file.bytes for file in one.file) / MB:,.2f}") if one.file else ("by hand", "", "")
