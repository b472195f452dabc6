"""Weights drawn at random on the device that computes with them, in place of a checkpoint's: for timing models that would be slow to write down.

A folder with a config.json and the marker below, and no weights, is such a model. Text from it means nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from hetserve.engine.model.checkpoint import Checkpoint
from hetserve.errors import ModelError
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import embedding_name, tensor_shapes

MARKER = "weights_are_drawn.json"  # {"seed": 0}


class Weights(Protocol):
    """Where a model's tensors come from."""

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor: ...


class DrawnWeights:
    """Normal numbers of a size that keeps activations of order 1; norms are 1, biases 0. A function of name, seed and kind of device.

    Args:
        device: where they are drawn and stay.
    """

    def __init__(self, spec: ModelSpec, seed: int, device: torch.device) -> None:
        self._shapes, self._seed, self._device = tensor_shapes(spec), seed, device
        self._embedding = embedding_name(spec)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(self._shapes[name], dtype=dtype, device=self._device)
        if tensor.dim() == 1:
            return tensor.fill_(0.0 if name.endswith(".bias") else 1.0)
        random = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
        return tensor.normal_(0.0, 1.0 if name == self._embedding else tensor.shape[1] ** -0.5, generator=random)


def open_weights(folder: str | Path, spec: ModelSpec, device: torch.device) -> Weights:
    """The checkpoint in a folder, its tensors on the CPU; or, where the marker says so, drawn weights on `device`.

    Raises:
        ModelError, UnsupportedError: as `Checkpoint` does; ModelError also for a marker that is none.
    """
    path = Path(folder) / MARKER
    if not path.is_file():
        return Checkpoint(folder, spec)
    try:
        seed = json.loads(path.read_text(encoding="utf-8"))["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        seed = None
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ModelError(f"{path} names no seed for drawn weights.", 'It should hold {"seed": 0}.')
    return DrawnWeights(spec, seed, device)


def write_drawn(folder: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """Makes `folder` such a model, of the Hugging Face config's shape."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / MARKER).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
    return folder
