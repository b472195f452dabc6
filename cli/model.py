"""`hetserve model make|show`: a random-weight checkpoint to try things with, and what a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hetserve.spec.model import ModelSpec

    from .console import Screen

MIB = 2**20
SPLIT = 4  # devices, as in the paper's comparison (Hetis, Fig. 5)


@click.group()
def model() -> None:
    """Make a random-weight checkpoint, or show what a model folder holds."""


@model.command()
@click.argument("name")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The same seed gives the same weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def make(name: str, folder: Path | None, seed: int, as_json: bool) -> None:
    """Write the random-weight checkpoint NAME to FOLDER (default: models/NAME), tokenizer included.

    NAME is tiny, tiny-opt, tiny-qwen3, llama-250m, ...; a wrong one lists them all. transformers and vLLM load the folder unchanged.
    """
    from hetserve.engine.model.make import make_checkpoint

    from .console import Screen

    screen = Screen(as_json)
    target = folder or Path("models") / name
    with screen.progress(f"making {name} in {target}"):
        make_checkpoint(name, target, seed)
    _print(screen, target)


@model.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, as_json: bool) -> None:
    """The shapes, weights and KV cache size of the Hugging Face model in FOLDER."""
    from .console import Screen

    _print(Screen(as_json), folder)


def _print(screen: Screen, folder: Path) -> None:
    from dataclasses import asdict

    from hetserve.cost import volume
    from hetserve.spec.load import load_model

    spec = load_model(folder)
    sizes = {
        "parameters": spec.parameters,
        "weight_bytes": spec.weight_bytes(),
        "kv_bytes_per_token": spec.kv_bytes_per_token(),
        "heads_bytes_per_token_and_layer": volume.heads_bytes(spec),
        "sequence_bytes_per_token_and_layer": volume.sequence_bytes(spec, SPLIT),
        "sequence_devices": SPLIT,
    }
    screen.json({"folder": str(folder), "spec": asdict(spec), **sizes})
    screen.table(str(folder), ["", ""], _rows(spec))


def _rows(spec: ModelSpec) -> list[tuple[str, str]]:
    from hetserve.cost import volume

    heads, sequence = volume.heads_bytes(spec), volume.sequence_bytes(spec, SPLIT)
    window = f", each token sees {spec.sliding_window:,}" if spec.sliding_window else ""
    extras = [name for name, on in (("qkv bias", spec.qkv_bias), ("qk-norm", spec.qk_norm), ("tied embeddings", spec.tie_embeddings)) if on]
    return [
        ("family", ", ".join([spec.family, *extras])),
        ("layers", f"{spec.layers} x hidden {spec.hidden:,}"),
        ("heads", f"{spec.q_heads} query, {spec.kv_heads} KV (groups of {spec.group}), head_dim {spec.head_dim}"),
        ("MLP", f"{spec.activation}{', gated' if spec.gated else ''}, intermediate {spec.intermediate:,}"),
        ("vocabulary", f"{spec.vocab:,}, end of text {', '.join(map(str, spec.eos_token_ids)) or 'not set'}"),
        ("positions", f"{spec.max_positions:,}, {_position_kind(spec)}{window}"),
        ("weights", f"{spec.parameters / 1e6:,.1f} M parameters, {spec.weight_bytes() / MIB:,.1f} MiB as {spec.dtype}"),
        ("KV cache", f"{spec.kv_bytes_per_token():,} bytes a token, {spec.kv_bytes_per_token() * 1024 / MIB:,.1f} MiB per 1,024 tokens"),
        (
            "attention traffic",
            f"{heads:,.0f} bytes a token and layer head by head; along the sequence over {SPLIT} devices {sequence / heads:.2f} times",
        ),
    ]


def _position_kind(spec: ModelSpec) -> str:
    if spec.rope is None:
        return "learned"
    scaling = "" if spec.rope.kind == "default" else f", {spec.rope.kind} x{spec.rope.factor:g}"
    return f"rope theta {spec.rope.theta:,.0f}{scaling}"
