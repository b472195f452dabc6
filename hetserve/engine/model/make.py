"""Writes made-up checkpoints: seeded random weights, a tokenizer, a config. Hugging Face and vLLM load them unchanged.

A folder appears whole or not at all. Never overwrites a folder it did not make itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from hetserve.engine.model.make_tokenizer import write_tokenizer
from hetserve.engine.model.recipes import RECIPES, Recipe
from hetserve.errors import UsageError
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import tensor_shapes

RECIPE_FILE = "made_by_hetserve.json"
FORMAT = 2  # raise when the same recipe and seed give other weights than before
Floats = NDArray[np.float32]


def make_checkpoint(name: str, folder: str | Path, seed: int = 0, shard_bytes: int | None = None) -> Path:
    """Writes the model `name` (a row of RECIPES) into `folder`; keeps it as it is if the same one lies there already.

    The same model as an earlier FORMAT wrote it is replaced.

    Args:
        seed: 0 <= seed < 2**63; the weights are a function of name and seed.
        shard_bytes: split the weights into files of at most so many bytes (a larger tensor gets its own file); None: one file.

    Raises:
        UsageError: no such model, or the folder holds something else.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise UsageError(f"There is no made-up model called {name!r}.", "One of: " + ", ".join(RECIPES) + ".")
    target = Path(folder)
    stamp = {"format": FORMAT, "name": name, "seed": seed, "shard_bytes": shard_bytes}
    if _holds(target, stamp):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(scratch, name, recipe, seed, shard_bytes)
        (scratch / RECIPE_FILE).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        _put_in_place(scratch, target, stamp)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _holds(target: Path, stamp: dict[str, object]) -> bool:
    """Whether the folder is the model asked for; False if it is free to be written."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    found = _found(target)
    if not isinstance(found, dict) or {**found, "format": FORMAT} != stamp:
        raise UsageError(f"{target} exists and holds something else than the model asked for.", "Name another folder, or remove that one.")
    return bool(found == stamp)


def _found(target: Path) -> object:
    try:
        return json.loads((target / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _put_in_place(scratch: Path, target: Path, stamp: dict[str, object]) -> None:
    if _found(target) is not None and not _holds(target, stamp):
        shutil.rmtree(target)  # an earlier format of the same model
    try:
        os.rename(scratch, target)  # atomic; replaces an empty folder
    except OSError:
        if not _holds(target, stamp):  # another process may have made the same one meanwhile
            raise


def _write(folder: Path, name: str, recipe: Recipe, seed: int, shard_bytes: int | None) -> None:
    spec = ModelSpec.from_hf(recipe.config, name=name)
    _dump(folder / "config.json", recipe.config)
    _dump(folder / "generation_config.json", {"bos_token_id": spec.bos_token_id, "eos_token_id": list(spec.eos_token_ids)})
    write_tokenizer(folder, spec.vocab, spec.max_positions, recipe.adds_bos)
    dtype = getattr(torch, spec.dtype)
    shards = list(_shards(spec, shard_bytes))
    weight_map = {}
    for i, names in enumerate(shards):
        file = "model.safetensors" if shard_bytes is None else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {tensor: torch.from_numpy(_weights(spec, recipe, tensor, seed)).to(dtype) for tensor in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if shard_bytes is not None:
        _dump(folder / "model.safetensors.index.json", {"metadata": {"total_size": spec.weight_bytes()}, "weight_map": weight_map})


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(spec: ModelSpec, shard_bytes: int | None) -> Iterator[list[str]]:
    limit = float("inf") if shard_bytes is None else shard_bytes
    names: list[str] = []
    used_bytes = 0
    for name, shape in tensor_shapes(spec).items():
        size_bytes = int(np.prod(shape)) * getattr(torch, spec.dtype).itemsize
        if names and used_bytes + size_bytes > limit:
            yield names
            names, used_bytes = [], 0
        names.append(name)
        used_bytes += size_bytes
    yield names


def _weights(spec: ModelSpec, recipe: Recipe, name: str, seed: int) -> Floats:
    """One tensor, float32. Its random stream depends on seed and name alone, so stages and shards can be made apart."""
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    shape = tensor_shapes(spec)[name]
    return _kind(spec, recipe, name)(random, shape)


def _kind(spec: ModelSpec, recipe: Recipe, name: str) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    """How this tensor is drawn. Norm weights scatter around their mean, so that a norm applied with another's weight shows."""
    part = name.rsplit(".", 2)[-2]
    if part in ("q_norm", "k_norm"):
        return _around(recipe.scores**0.5)
    if name.endswith("norm.weight"):
        return _around(1.0)
    if name.endswith(".bias"):
        return _normal(0.1)
    embedding = recipe.logits * spec.embed_dim**-0.5 if spec.tie_embeddings else 1.0
    if part == "embed_tokens":
        return _normal(embedding)
    if part == "embed_positions":
        return _normal(2.0 * embedding)
    gains = {
        "lm_head": recipe.logits,
        "q_proj": recipe.scores**0.5,
        "k_proj": recipe.scores**0.5,
        "gate_proj": 1.5,
        "o_proj": 1.5 * recipe.branch,
        "out_proj": 1.5 * recipe.branch,
        "down_proj": recipe.branch,
        "fc2": recipe.branch,
    }
    width = tensor_shapes(spec)[name][1]
    draw = _normal(gains.get(part, 1.0) * width**-0.5)
    return _centred(draw) if part == "fc2" else draw


def _normal(scale: float) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values = random.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        return values

    return draw


def _centred(draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    """Rows that sum to 0: what relu and gelu put out on average then adds nothing, and text does not settle on one token."""

    def draw_centred(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values = draw(random, shape)
        values -= values.mean(axis=1, keepdims=True)
        return values

    return draw_centred


def _around(mean: float) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return random.uniform(0.75 * mean, 1.25 * mean, shape).astype(np.float32)

    return draw
