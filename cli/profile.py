"""`hetserve profile`: measures every device and link of a cluster for one model, and how devices slow each other, and writes
what planners and dispatchers compute costs from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import ModelError, SpecError, UsageError

from .console import Screen

if TYPE_CHECKING:
    from hetserve.profile.drift import Drift
    from hetserve.spec.model import ModelSpec
    from hetserve.spec.profile import DenseTimes, Profile

RATES_AT = (1, 8, 64, 1024)  # tokens


@click.command()
@click.argument("model", default="llama-250m")
@click.option("--cluster", default="cpu-hetero", show_default=True, help="A file in workloads/clusters, by name or path.")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True, help="Of the KV.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the profile to this file.")
@click.option("--check", type=click.Path(dir_okay=False, path_type=Path), help="Measure again, and say how far this profile is off.")
@click.option("--quick", is_flag=True, help="A rough measurement in seconds; good for trying, not for plans.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile (and its drift) as one JSON object.")
def profile(model: str, cluster: str, dtype: str, output: Path | None, check: Path | None, quick: bool, as_json: bool) -> None:
    """Measure the devices and links of a cluster for MODEL (a folder, or the name of a model that can be made); under two minutes for two devices."""
    from dataclasses import asdict

    from hetserve.profile import drift
    from hetserve.profile.run import measure, ticks
    from hetserve.profile.tasks import FULL, QUICK
    from hetserve.spec.cluster import require_cores
    from hetserve.spec.load import load_cluster, load_profile, save_profile, this_host
    from hetserve.spec.profile import require

    screen, effort = Screen(as_json), QUICK if quick else FULL
    shape, devices = _shape(model), load_cluster(cluster)
    dtype = dtype if dtype != "auto" else "float32" if shape.dtype == "float32" else "bfloat16"
    require_cores(devices, this_host())
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"the profile cannot be written to {str(output)!r}: there is no such folder", "nothing was measured; mkdir -p makes folders")
    before = load_profile(check) if check else None
    if before is not None:
        require(before, devices, shape, dtype)
    with screen.progress(f"measuring {devices.name} for {shape.name}", ticks(devices, effort)) as advance:
        measured = measure(devices, shape, dtype, effort, advance)
    if output is not None:
        save_profile(measured, output)
    found = drift.drifts(before, measured, shape) if before is not None else []
    screen.json({"profile": asdict(measured), "drift": [_row(one) for one in found]})
    _render(measured, shape, screen)
    if before is not None:
        _render_drift(found, before, measured, screen)
    screen.note(f"written to {output}" if output else "not written anywhere: -o FILE writes it")
    _judge(found, check)


def _shape(name: str) -> ModelSpec:
    """The model's shape; a profile needs no weights, so a model that could be made need not be."""
    from hetserve.engine.model.recipes import RECIPES
    from hetserve.spec.load import load_model
    from hetserve.spec.model import ModelSpec

    if Path(name).is_dir():
        return load_model(name)
    if name not in RECIPES:
        raise ModelError(f"{name!r} is neither a model folder nor a model that can be made here", f"models that can be made: {', '.join(RECIPES)}")
    return ModelSpec.from_hf(RECIPES[name].config, None, name)


def _render(measured: Profile, shape: ModelSpec, screen: Screen) -> None:
    from hetserve.spec.profile import BUSY_SHARE

    screen.say(f"{measured.model}, KV in {measured.dtype}, on {measured.machine} at {measured.clocks_mhz:,.0f} MHz")
    screen.table(
        "attention of one layer: a * query heads + b * cached vectors + c",
        ["device", "cores", "isa", "read GB/s", "a ns", "b ns", "c us", "held-out error", "prefill ns a pair"],
        [
            (
                *(one.name, one.cores, one.isa, f"{one.read_bytes / 1e9:,.1f}", _digits(one.attention.a_s * 1e9), _digits(one.attention.b_s * 1e9)),
                *(_digits(one.attention.c_s * 1e6), f"{one.attention.held_out_error:.1%}", _digits(one.prefill_pair_s * 1e9)),
            )
            for one in measured.devices
        ],
        right=(1, 3, 4, 5, 6, 7, 8),
    )
    columns = ["device", "isa", "weights", *(f"{tokens:,} tokens" for tokens in RATES_AT), "LM head, most rows"]
    rows = [(one.name, one.isa, dense.weights, *_rates(dense, shape)) for one in measured.devices for dense in one.dense]
    screen.table("matrix products, GFLOP/s", columns, rows, right=tuple(range(3, len(columns))))
    for one in measured.devices:
        if one.stretch:
            screen.say(f"{one.name} is emulated: its times are stretched, products {one.stretch.dense:g}, attention {one.stretch.attention:g} times")
        if one.cpu_share < BUSY_SHARE:
            screen.say(
                f"{one.name} was busy with other things: the measuring process had {one.cpu_share:.0%} of its core; measure again when it is quiet"
            )
    if measured.contention:
        screen.table(
            "how many times slower beside each other",
            ["device", "beside", *measured.contention[0].factors],
            [(one.device, one.other, *(f"{factor:.2f}" for factor in one.factors.values())) for one in measured.contention],
            right=(2, 3, 4, 5),
        )
    if measured.links:
        screen.table(
            "links: gamma * vectors + beta",
            ["from", "to", "gamma ns", "beta us", "held-out error", "GB/s"],
            [
                (*(one.source, one.target, f"{one.gamma_s * 1e9:.1f}", f"{one.beta_s * 1e6:.0f}"), *_quality(one.held_out_error, one.bytes_per_s))
                for one in measured.links
            ],
            right=(2, 3, 4, 5),
        )


def _digits(value: float) -> str:
    """Three of them: a GPU's times are thousands of times shorter than a CPU's."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _quality(held_out_error: float, bytes_per_s: float) -> tuple[str, str]:
    return f"{held_out_error:.1%}", f"{bytes_per_s / 1e9:.2f}"


def _rates(dense: DenseTimes, shape: ModelSpec) -> list[str]:
    """GFLOP/s of a layer at RATES_AT and of the output matrix at the most rows measured."""
    from hetserve.profile.dense import head_flops, layer_flops

    times = {point.tokens: point.layer_s for point in dense.layer}
    last = dense.lm_head[-1]
    rates = [tokens * layer_flops(shape) / times[tokens] if tokens in times else 0.0 for tokens in RATES_AT]
    return [f"{rate / 1e9:,.1f}" if rate else "" for rate in (*rates, last.tokens * head_flops(shape) / last.layer_s)]


def _row(one: Drift) -> dict[str, Any]:
    """A number's drift for JSON, which has no infinity: null is no bound, or a number that came out of nothing."""
    finite = {name: value if math.isfinite(value) else None for name, value in (("bound", one.bound), ("share", one.share))}
    return {"where": one.where, "what": one.what, "then": one.then, "now": one.now, **finite, "beyond": one.beyond}


def _render_drift(found: list[Drift], before: Profile, now: Profile, screen: Screen) -> None:
    rows = [
        (*(one.where, one.what, f"{one.then:.4g}", f"{one.now:.4g}", f"{one.share:+.1%}"), _bound(one.bound), "beyond" if one.beyond else "")
        for one in found
    ]
    if before.machine != now.machine:
        screen.say(f"the profile is of another machine: {before.machine}")
    screen.table(f"drift since {before.date}", ["where", "what", "then", "now", "drift", "bound", ""], rows, right=(2, 3, 4, 5))


def _bound(bound: float) -> str:
    return f"{bound:.0%}" if math.isfinite(bound) else ""


def _judge(found: list[Drift], check: Path | None) -> None:
    beyond = [one for one in found if one.beyond]
    if beyond:
        worst = max(beyond, key=lambda one: abs(one.share))
        said = f"{len(beyond)} numbers have drifted beyond their bound, most {worst.what} of {worst.where} ({worst.share:+.0%})"
        raise SpecError(f"{check} no longer describes this machine: {said}", "is the machine busy? if not, measure again with -o")
