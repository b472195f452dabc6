"""`hetserve cost devices|step|fit|check`: what GPUs nobody here owns would take, where those numbers come from, and how good they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import UsageError

if TYPE_CHECKING:
    from hetserve.cost.gpu import GpuCosts, Prediction
    from hetserve.profile.published.check import Error, Report
    from hetserve.profile.published.gather import Published

    from .console import Screen

_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder with published profiles (aiconfigurator, vidur, helix, distserve, llmservingsim)  [default: $HETSERVE_DATA]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def cost() -> None:
    """Ask the cost model of GPUs: what it knows, what a step takes, how good it is."""


@cost.command()
@_json
def devices(as_json: bool) -> None:
    """The catalog's GPUs: peaks, memory, a price, and on what grounds their times are predicted."""
    from dataclasses import asdict

    from hetserve.catalog import rows
    from hetserve.cost.library import known

    from .console import Screen

    screen = Screen(as_json)
    listed = [(row, known(row.name), rows.price(row.name) or rows.price(row.name, "hyperscaler")) for row in rows.devices()]
    screen.json({"devices": [asdict(row) | {"grounds": of.grounds, "price": asdict(price) if price else None} for row, of, price in listed]})
    screen.table(
        "",
        ["device", "TFLOP/s", "GB/s", "GB", "link", "$/h", "products", "attention"],
        [
            (
                *(row.name, f"{row.tensor_flops / 1e12:g}", f"{row.read_bytes / 1e9:,.0f}", f"{row.memory_bytes / 1e9:g}", row.peer),
                *(f"{price.usd_per_hour:.2f}" if price else "", of.grounds["gemm"], of.grounds["decode"]),
            )
            for row, of, price in listed
        ],
        right=(1, 2, 3, 5),
        caption="peaks are dense; prices move: `--json` has their sources and dates, and every row's source and doubts",
    )


@cost.command()
@click.argument("device")
@click.argument("model")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--link", default="", help="Between them, a name of the catalog  [default: the device's own]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Decoding sequences, or prompts with --prompt.")
@click.option("--context", type=click.IntRange(1), default=1024, show_default=True, help="Tokens that each decoding sequence reads.")
@click.option("--prompt", type=click.IntRange(1), help="A prefill step of prompts of so many tokens instead of a decode step.")
@_json
def step(device: str, model: str, tp: int, link: str, batch: int, context: int, prompt: int | None, as_json: bool) -> None:
    """Predict one step of MODEL (a name of the catalog, or a model folder) on DEVICE, part by part."""
    from dataclasses import asdict

    from hetserve.cost.gpu import GpuCosts

    from .console import Screen
    from .shapes import shape_of

    screen, shape = Screen(as_json), shape_of(model)
    costs = GpuCosts(device, shape, tp, link)
    told = costs.decode(batch, context) if prompt is None else costs.prefill(batch, prompt)
    asked = {"device": costs.known.device, "model": shape.name, "tp": tp, "batch": batch, "context": None if prompt else context, "prompt": prompt}
    screen.json(asked | asdict(told))
    _render_step(screen, costs, told, f"{batch} of {prompt:,} tokens" if prompt else f"{batch} at {context:,} tokens")


@cost.command()
@_data
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Write the fit files into this folder.")
@_json
def fit(data: Path | None, output: Path, as_json: bool) -> None:
    """Fit the coefficients of every published GPU, and those for GPUs known by their data sheets. Seconds."""
    from hetserve.cost.library import SHEET, encode_fit
    from hetserve.profile.published.fitting import fit_files

    from .console import Screen

    screen, published = Screen(as_json), _gather(data)
    with screen.progress("fitting"):
        files = fit_files(published, "hetserve cost fit --data DIR -o hetserve/catalog/fits")
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        (output / f"{file.device or SHEET}.toml").write_text(encode_fit(file), encoding="utf-8")
    screen.json({"folder": str(output), "files": [f"{file.device or SHEET}.toml" for file in files]})
    screen.say(f"{len(files)} files in {output}: {', '.join(file.device or SHEET for file in files)}")


@cost.command()
@_data
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON to this file, with commit and inputs.")
@_json
def check(data: Path | None, output: Path | None, as_json: bool) -> None:
    """Errors of the predictions on published times, per device, operator and source: shapes left out, devices left out. Under a minute."""
    import json

    from hetserve.profile.published import check as checks

    from .console import Screen

    screen, published = Screen(as_json), _gather(data)
    with screen.progress("leaving out", checks.ticks(published)) as advance:
        report = checks.check(published, lambda done, note: advance(done, note))
    said = _said(report, published)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    screen.json(said)
    _render_report(screen, report)


def _gather(data: Path | None) -> Published:
    from hetserve.profile.published.gather import gather

    folder = data or (Path(os.environ["HETSERVE_DATA"]) if os.environ.get("HETSERVE_DATA") else None)
    if folder is None:
        raise UsageError(
            "Published profiles are not part of hetserve.",
            hint="`hetserve workload fetch vidur -o DIR` gets some; --data DIR, or the environment's HETSERVE_DATA, names the folder",
        )
    return gather(folder)


def _said(report: Report, published: Published) -> dict[str, Any]:
    """The report with where it comes from."""
    from dataclasses import asdict

    from hetserve.machine import source_state

    return {
        "command": "hetserve cost check --data DIR",
        **source_state(),
        "verdicts": [asdict(verdict) | {"met": verdict.met} for verdict in report.verdicts],
        "operators": [asdict(error) for error in report.operators],
        "steps": [asdict(error) for error in report.steps],
        "inputs": [asdict(one) for one in published.inputs],
    }


def _render_step(screen: Screen, costs: GpuCosts, told: Prediction, what: str) -> None:
    rows = [(name, f"{seconds * 1e3:.3f}", f"{seconds / told.seconds:.1%}") for name, seconds in told.parts.items() if seconds > 0]
    title = f"{costs.model.name} on {costs.tp} x {costs.known.device}, {what}: {told.seconds * 1e3:.2f} ms"
    screen.table(title, ["part", "ms", "share"], rows, right=(1, 2), caption=f"source: {told.source}")


def _render_report(screen: Screen, report: Report) -> None:
    columns = ["device", "of", "source", "ground", "rows", "median", "p90", "bias"]
    for title, errors in (("kernels: predicted against published times", report.operators), ("steps and layers", report.steps)):
        screen.table(title, columns, [_row(error) for error in errors], right=(4, 5, 6, 7))
    screen.table(
        "targets: the median over a device's tables of their median errors",
        ["ground", "phase", "device", "times of", "median", "target", ""],
        [
            (one.ground, one.phase, one.device, one.of, f"{one.median:.1%}", f"{one.target:.0%}", "met" if one.met else "missed")
            for one in report.verdicts
        ],
        right=(4, 5),
    )


def _row(error: Error) -> tuple[str, ...]:
    sizes = (f"{error.median:.1%}", f"{error.p90:.1%}", f"{error.bias:+.1%}")
    return (error.device, error.operator, error.source, error.ground, f"{error.rows:,}", *sizes)
