"""`hetserve worker`: lends a device of this machine to an engine on another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hetserve.errors import UnsupportedError

_file = click.Path(dir_okay=False, path_type=Path)


def far_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags for what will one day carry tensors between machines and start workers there; see `require_built`."""
    transport = click.option(
        "--transport", default="gloo", show_default=True, type=click.Choice(["gloo", "nixl"]), help="How tensors travel between workers."
    )
    placement = click.option(
        "--placement", default="join", show_default=True, type=click.Choice(["join", "ray"]), help="Who starts workers on other machines."
    )
    return transport(placement(command))


def require_built(transport: str, placement: str) -> None:
    """Raises UnsupportedError for what this version does not have."""
    if transport != "gloo":
        raise UnsupportedError("NIXL is not built yet", "--transport gloo carries KV and heads over TCP")
    if placement != "join":
        raise UnsupportedError("Ray is not built yet", "start `hetserve worker --join` on each machine")


@click.command()
@click.option("--join", "engine", required=True, metavar="HOST:PORT", help="The engine's door: `hetserve serve --join-address HOST:PORT`.")
@click.option("--token", required=True, type=_file, help="A file with the secret that the engine has too.")
@click.option("--device", required=True, help="Which device of the engine's cluster file this worker is; one that has a node.")
@click.option("--model", default="", help="The model's folder on this machine  [default: the same path as on the engine's]")
@click.option("--address", default="", help="Where other workers reach this one  [default: the interface by which the engine is reached]")
@far_options
def worker(engine: str, token: Path, device: str, model: str, address: str, transport: str, placement: str) -> int:
    """Join an engine as one of its cluster's devices, and serve it until it stops.

    Steps and results travel encrypted under the token. What workers send each other (q, k, v, KV pages) does not: use a private network.
    """
    require_built(transport, placement)
    from hetserve.engine.joined import serve_joined
    from hetserve.engine.keys import read_token
    from hetserve.spec.load import this_host

    from .console import Screen

    return serve_joined(engine, read_token(token), device, model, address, this_host(), Screen(False).note)
