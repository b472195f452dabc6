"""`hetserve cluster list|make`: the clusters that come with hetserve, and others drawn at random, of any size, to plan and simulate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hetserve.spec.cluster import Cluster

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def cluster() -> None:
    """List the clusters that come with hetserve, or draw others at random."""


@cluster.command("list")
@_json
def list_(as_json: bool) -> None:
    """The packaged clusters: devices, machines, memory, dollars an hour. Those of this machine are as large as it is."""
    from hetserve.errors import ResourceError
    from hetserve.spec.load import cluster_names, load_cluster

    from .console import Screen

    screen, found = Screen(as_json), []
    for name in cluster_names():
        try:
            found.append(_summary(load_cluster(name)) | {"name": name})
        except ResourceError as error:
            found.append({"name": name, "absent": error.message})
    screen.json({"clusters": found})
    rows = [(one["name"], *(one[key] for key in ("nodes", "gib", "price", "devices"))) for one in found if "absent" not in one]
    screen.table("", ["cluster", "machines", "GiB", "$/h", "devices"], rows, right=(1, 2, 3))
    for one in found:
        if "absent" in one:
            screen.say(f"{one['name']} is not for this machine: {one['absent']}")


@cluster.command()
@click.option("--devices", type=click.IntRange(1, 8192), required=True, help="GPUs in all.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The same seed gives the same file.")
@click.option("--kinds", default="", help="GPUs to draw from, names of the catalog: 'A100,L40,3090'  [default: all of `hetserve cost devices`]")
@click.option("--networks", default="", help="Links between machines to draw from, names of the catalog  [default: ethernet-100g]")
@click.option("--per-node", type=click.IntRange(1, 8), default=8, show_default=True, help="GPUs of one machine, at most.")
@click.option("--name", default="", help="The cluster's name  [default: drawn-DEVICES-SEED]")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the file here  [default: to standard output]")
def make(devices: int, seed: int, kinds: str, networks: str, per_node: int, name: str, output: Path | None) -> None:
    """Draw a cluster: machines of 1 to --per-node like GPUs, each with its kind's own links inside and a network outside."""
    from hetserve.catalog.drawn import NETWORK, cluster_toml, draw

    from .console import Screen

    gpus, wires = _names(kinds), _names(networks)
    machines = draw(devices, seed, gpus, wires or [NETWORK], per_node)
    flags = [f"--devices {devices} --seed {seed}", *(f"--{key} {','.join(names)}" for key, names in (("kinds", gpus), ("networks", wires)) if names)]
    flags += [f"--per-node {per_node}"] if per_node != 8 else []
    text = cluster_toml(name or f"drawn-{devices}-{seed}", machines, f"hetserve cluster make {' '.join(flags)}")
    if output is None:
        click.echo(text, nl=False)
        return
    output.write_text(text, encoding="utf-8")
    Screen().say(f"{devices} GPUs in {len(machines)} machines, written to {output}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _summary(loaded: Cluster) -> dict[str, Any]:
    """What a row of the list says."""
    from hetserve.planner.price import hourly

    paid = hourly(loaded)
    known = len(paid.unpriced) < paid.devices
    kinds = Counter(device.gpu or device.kind for device in loaded.devices)
    return {
        "devices": ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        "nodes": len({device.node for device in loaded.devices}),
        "gib": f"{sum(device.memory_bytes for device in loaded.devices) / 2**30:,.1f}",
        "price": f"{'' if not paid.unpriced else 'over '}{paid.usd_per_hour:.2f}" if known else "",
        "usd_per_hour": None if paid.unpriced else paid.usd_per_hour,
        "unpriced": list(paid.unpriced),
    }
