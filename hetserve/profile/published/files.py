"""Finds and reads the raw tables. A table that is cut off, or lacks a column, is an error, never read in part."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hetserve.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

COLLECTIONS = {  # folder: licence
    "aiconfigurator": "Apache-2.0",
    "vidur": "MIT",
    "helix": "Apache-2.0",
    "distserve": "Apache-2.0",
    "llmservingsim": "MIT",
}
PER_OCTAVE = 16
MANIFEST = "MANIFEST.csv"
HINT = f"a folder with some of {', '.join(COLLECTIONS)} in it, as the README of the profiles describes them"


@dataclass(frozen=True)
class Input:
    """One file that was read."""

    file: str  # below the folder
    licence: str
    sha256: str  # of its contents, uncompressed


@dataclass
class Folder:
    """The collections below a folder, and which files were read so far."""

    root: Path
    read: dict[str, Input] = field(default_factory=dict)
    manifest: dict[str, str] = field(default_factory=dict)  # sha256 of the uncompressed contents of files, where the folder has a list of them
    _parsed: dict[Path, pd.DataFrame] = field(default_factory=dict)

    def files(self, pattern: str) -> list[Path]:
        """The files that match, gzipped or not, in the order of their names."""
        return sorted([*self.root.glob(pattern), *self.root.glob(f"{pattern}.gz")])

    def table(self, path: Path, columns: dict[str, str] | None = None, names: list[str] | None = None) -> pd.DataFrame:
        """A CSV file, parsed once.

        Args:
            columns: those that are needed, and the type of each: "f" a number, "s" text; anything but a number in an "f" is an error.
            names: of the columns, for a file without a header.

        Raises:
            SpecError: it cannot be read, is cut off, or lacks a column.
        """
        import pandas as pd

        if path in self._parsed:
            return self._parsed[path]
        where = self._name(path)
        try:
            table = pd.read_csv(io.BytesIO(self.bytes(path)), names=names, header=None if names else 0)
        except (ValueError, pd.errors.ParserError) as error:
            raise SpecError(f"{where} is no CSV table: {error}") from None
        needed = columns or {name: "f" for name in table.columns}
        missing = [name for name in needed if name not in table.columns]
        if missing:
            raise SpecError(f"{where} has no column {missing[0]!r}", f"it has {', '.join(map(str, table.columns[:12]))}")
        for name in (name for name, kind in needed.items() if kind == "f"):
            table[name] = pd.to_numeric(table[name], errors="coerce")
        damaged = table[list(needed)].isna().any(axis=1)
        if damaged.any() or not len(table):
            row = f"row {int(damaged.to_numpy().argmax()) + 1} lacks a value" if len(table) else "it has no rows"
            raise SpecError(f"{where} is damaged: {row}", "was it cut off while it was copied?")
        self._parsed[path] = table
        return table

    def bytes(self, path: Path) -> bytes:
        """A file's contents, uncompressed; noted as read.

        Raises:
            SpecError: it cannot be read or is cut off.
        """
        where = self._name(path)
        try:
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError, zlib.error) as error:
            raise SpecError(f"{where} cannot be read: {error}", "was it cut off while it was copied?") from None
        licence, sha256 = COLLECTIONS[path.relative_to(self.root).parts[0]], hashlib.sha256(raw).hexdigest()
        if self.manifest.get(where, sha256) != sha256:
            raise SpecError(f"{where} is not the file that {MANIFEST} lists: its sha256 is {sha256[:12]}...", "was it cut off while it was copied?")
        self.read[where] = Input(where, licence, sha256)
        return raw

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def open_folder(path: Path) -> Folder:
    """The folder of the collections: `path` itself, or `profiles` in it.

    Raises:
        SpecError: there are none.
    """
    for root in (path, path / "profiles"):
        if any((root / name).is_dir() for name in COLLECTIONS):
            return Folder(root, manifest=_manifest(root / MANIFEST))
    what = "there is no such folder" if not path.is_dir() else f"it has no folder {', '.join(COLLECTIONS)}"
    raise SpecError(f"no published profiles in {str(path)!r}: {what}", HINT)


def _manifest(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return {row["file"]: row["sha256_uncompressed"] for row in rows if row.get("file") and row.get("sha256_uncompressed")}


def spread(counts: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which rows to keep of a table with one for every count: about PER_OCTAVE an octave, so that few tokens weigh as much as many."""
    bins = np.floor(PER_OCTAVE * np.log2(np.maximum(counts, 1)))
    return np.sort(np.unique(bins, return_index=True)[1])


def text(values: Sequence[Any]) -> NDArray[np.str_]:
    """[rows] of strings from columns joined by "x": how shapes are named."""
    return np.array(["x".join(str(int(value)) for value in row) for row in zip(*values, strict=True)], str)
