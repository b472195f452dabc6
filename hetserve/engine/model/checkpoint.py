"""Reads the weights of an untrusted Hugging Face folder: safetensors only, no pickle, no file outside the folder.

Names, shapes and dtypes of all tensors are compared with the config before any weight is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hetserve.errors import ModelError, UnsupportedError
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import LM_HEAD, Shapes, embedding_name, tensor_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_INDEX_BYTES = 64 << 20
DTYPES = ("F32", "F16", "BF16")  # as safetensors spells them
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DAMAGED = "The download may be incomplete: fetch the file again."


class Checkpoint:
    """The tensors of one model's folder, checked but not yet read.

    Args:
        folder: a Hugging Face model folder.
        spec: what its config says; every tensor must be there, with this shape, and no unknown one.

    Raises:
        ModelError: no weights, only pickled weights, a damaged file, an index that leaves the folder, or tensors that are not the config's.
        UnsupportedError: weights of a dtype that is not supported.
    """

    def __init__(self, folder: str | Path, spec: ModelSpec) -> None:
        self.folder = Path(folder)
        self._spec = spec
        files = _weight_files(self.folder)
        self._files = {name: _open(path) for name, path in files.items()}
        self._where = self._locate(_index(self.folder))
        self._check(tensor_shapes(spec))

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A copy of one tensor, converted to `dtype`; the file's memory map is not held by it."""
        file, stored = self._where[name]
        try:
            tensor: torch.Tensor = self._files[file].get_tensor(stored)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelError(f"{self.folder / file}: tensor {name} cannot be read: {error}.", DAMAGED) from None
        return tensor.to(dtype, copy=True)

    def _locate(self, index: Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
        """Canonical name -> (file, name in the file). Some checkpoints leave out the leading `model.`."""
        wanted = tensor_shapes(self._spec)
        where: dict[str, tuple[str, str]] = {}
        for file, handle in self._files.items():
            for stored in handle.keys():  # noqa: SIM118 (a safetensors handle is no dictionary)
                name = stored if stored in wanted or f"model.{stored}" not in wanted else f"model.{stored}"
                if name in where:
                    raise ModelError(f"{self.folder}: tensor {name} lies in both {where[name][0]} and {file}.", DAMAGED)
                where[name] = (file, stored)
        for stored, file in (index or {}).items():
            if stored not in self._files[file].keys():  # noqa: SIM118
                raise ModelError(f"{self.folder / INDEX} promises tensor {stored} in {file}, which does not hold it.", DAMAGED)
        return where

    def _check(self, wanted: Shapes) -> None:
        missing = [name for name in wanted if name not in self._where]
        if missing:
            raise ModelError(f"{self.folder} lacks {_some(missing)}, which its config.json asks for.", DAMAGED)
        unknown = [name for name in self._where if name not in wanted and not self._harmless(name)]
        if unknown:
            raise ModelError(f"{self.folder} holds {_some(unknown)}, which its config.json does not describe.", "Is it another model's config?")
        for name, shape in wanted.items():
            self._check_tensor(name, shape)
        if LM_HEAD in self._where and LM_HEAD not in wanted:
            self._check_tied()

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        file, stored = self._where[name]
        view = self._files[file].get_slice(stored)
        found, dtype = tuple(view.get_shape()), view.get_dtype()
        if found != shape:
            raise ModelError(f"{self.folder / file}: tensor {name} has shape {list(found)}, config.json asks for {list(shape)}.")
        if dtype not in DTYPES:
            raise UnsupportedError(f"{self.folder / file}: tensor {name} is stored as {dtype}.", "supported: " + ", ".join(DTYPES) + ".")

    def _check_tied(self) -> None:
        """A tied model may store its output matrix all the same; a different one would be ignored silently, so it is refused."""
        name = embedding_name(self._spec)
        if tuple(self._files[self._where[LM_HEAD][0]].get_slice(self._where[LM_HEAD][1]).get_shape()) == tensor_shapes(self._spec)[name]:
            head, embedding = self.read(LM_HEAD, torch.float32), self.read(name, torch.float32)
            if head.equal(embedding):
                return
        message = f"{self.folder} ties {LM_HEAD} to {name} in its config.json but stores different weights."
        raise ModelError(message, "Perhaps tie_word_embeddings should be false.")

    def _harmless(self, name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq") or (self._spec.tie_embeddings and name == LM_HEAD)


def _weight_files(folder: Path) -> dict[str, Path]:
    """File name -> path, of every safetensors file the folder's weights are in."""
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}.", "Name a folder with config.json and safetensors files.")
    index = _index(folder)
    if index is not None:
        return {name: _inside(folder, name) for name in sorted(set(index.values()))}
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return {SINGLE: _inside(folder, SINGLE)}
    if any(path.suffix in PICKLED for path in folder.iterdir()):
        raise ModelError(
            f"{folder} holds its weights only as pickle files, which can run code when read and are never opened.",
            "Convert them to safetensors (transformers: save_pretrained), or take a checkpoint that has them.",
        )
    raise ModelError(f"{folder} holds no {SINGLE} and no {INDEX}.", "Only safetensors weights are read.")


def _index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX
    if not path.exists():
        return None
    _inside(folder, INDEX)
    if path.stat().st_size > MOST_INDEX_BYTES:
        raise ModelError(f"{path} is larger than {MOST_INDEX_BYTES >> 20} MiB.", DAMAGED)
    try:
        weight_map: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is no index of safetensors files ({type(error).__name__}).", DAMAGED) from None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{path} needs an object of tensor names and file names in 'weight_map'.", DAMAGED)
    return weight_map


def _inside(folder: Path, name: str) -> Path:
    """The path of a file named by the checkpoint, if it lies in the folder itself (or is the Hugging Face cache's own link)."""
    plain = name not in ("", ".", "..") and os.path.basename(name) == name and "\\" not in name and "\0" not in name
    if not plain or not (name.endswith(".safetensors") or name == INDEX):
        message = f"{folder / INDEX} names the file {name[:200]!r}, which is no safetensors file of this folder."
        raise ModelError(message, "The index is damaged or hostile.")
    path = folder / name
    real = Path(os.path.realpath(path))
    if real.parent not in _homes(folder):
        raise ModelError(f"{path} is a link that leads out of its folder.", "Copy the file itself into the folder.")
    if not real.is_file():
        raise ModelError(f"{folder} lacks the file {name}.", DAMAGED)
    return real


def _homes(folder: Path) -> list[Path]:
    """Where this folder's files may really lie: in it; and, in a Hugging Face cache (models--x/snapshots/<revision>), in its `blobs`."""
    real = Path(os.path.realpath(folder))
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]


def _open(path: Path) -> Any:
    """An open, header-checked safetensors file. The library refuses headers that are too long, overlap, leave gaps or end past the file."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}.", DAMAGED) from None


def _some(names: Iterable[str]) -> str:
    listed = [name if len(name) <= 80 else name[:77] + "..." for name in names]
    rest = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ("tensor " if len(listed) == 1 else "tensors ") + ", ".join(listed[:3]) + rest
