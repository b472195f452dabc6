"""Downloads public traces and profiles from where they were published. Keeps only what is, byte for byte, what the table of sources states.

The table is TOML: `workloads/sources/public.toml`, or a file of the same form that names a mirror.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import http.client
import os
import tomllib
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from hetserve.errors import ChecksumError, ResourceError, SpecError, UnsupportedError, UsageError
from hetserve.spec.strict import build

KINDS = ("trace", "profile")
CHUNK = 2**16
SILENCE_S = 30.0  # without a byte from the other side, after which a download is given up


@dataclass(frozen=True)
class SourceFile:
    """One file as it is published."""

    path: str  # below a data folder
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Source:
    """Files that belong together."""

    name: str
    kind: str  # one of KINDS
    about: str
    licence: str
    home: str  # where to get it by hand
    by_hand: str = ""  # why it cannot be fetched; empty: it can
    file: tuple[SourceFile, ...] = ()


@dataclass(frozen=True)
class _Sources:
    source: tuple[Source, ...]


def sources(path: Path | None = None) -> tuple[Source, ...]:
    """The table of sources that comes with hetserve, or the one in a file.

    Raises:
        SpecError: it cannot be read, or what it says makes no sense.
    """
    packaged = resources.files("hetserve.workloads").joinpath("sources", "public.toml")
    where = str(path) if path else "the packaged table of sources"
    try:
        data = tomllib.loads((path or packaged).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{where} cannot be read as a table of sources: {error}") from None
    known = build(_Sources, data, where).source
    for number, one in enumerate(known):
        _check(one, where)
        if one.name in {earlier.name for earlier in known[:number]}:
            raise SpecError(f"{where}: two sources are called {one.name!r}")
    return known


def named(name: str, known: tuple[Source, ...]) -> Source:
    """The source called `name`, which can be fetched.

    Raises:
        UsageError: there is none. UnsupportedError: it has to be got by hand; the message says why, the hint from where.
    """
    found = next((one for one in known if one.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, [one.name for one in known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no trace or profile called {name!r}", f"{hint}known: {', '.join(one.name for one in known)}")
    if found.by_hand:
        raise UnsupportedError(f"{name} cannot be fetched: {found.by_hand}", f"it is at {found.home}")
    return found


def present(file: SourceFile, folder: Path) -> Path | None:
    """The file below a data folder, where it is there and right: in its place or, in a folder of one kind alone, without that kind's name, gzipped
    or not."""
    inner = PurePosixPath(*PurePosixPath(file.path).parts[1:])
    places = [folder / name for name in (file.path, f"{file.path}.gz", inner, f"{inner}.gz")]
    return next((place for place in places if place.is_file() and _sha256(place, file.path) == file.sha256), None)


def fetch(file: SourceFile, folder: Path, came: Callable[[int], None] = lambda count: None) -> Path:
    """Downloads one file into its place below a folder, replacing what is there only once all of it came and is right.

    Args:
        came: told how many bytes have come since it was last told.

    Raises:
        ResourceError: the other side cannot be reached or does not have it. ChecksumError: something else came; nothing of it is kept.
    """
    target = folder / file.path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{target.name}.{os.getpid()}"
    try:
        count, sha256 = _download(file, part, came)
        if count != file.bytes or sha256 != file.sha256:
            got = f"{'over ' if count > file.bytes else ''}{min(count, file.bytes):,} bytes" if count != file.bytes else f"sha256 {sha256[:16]}..."
            wanted = f"{file.bytes:,} bytes" if count != file.bytes else f"{file.sha256[:16]}..."
            said = f"{file.url} sent something else than was published for {file.path}: {got}, expected {wanted}; it was removed"
            raise ChecksumError(said, "try again; if it stays so, the publisher has changed the file")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _download(file: SourceFile, part: Path, came: Callable[[int], None]) -> tuple[int, str]:
    """How many bytes came, at most one chunk more than there should be, and their sha256."""
    digest, count = hashlib.sha256(), 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "hetserve"})
    by_hand = f"by hand: get {file.url} and put it at {file.path} in the data folder"
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as answer, part.open("wb") as out:
            while count <= file.bytes and (chunk := answer.read(CHUNK)):
                digest.update(chunk)
                count += len(chunk)
                out.write(chunk)
                came(len(chunk))
    except urllib.error.HTTPError as error:
        raise ResourceError(f"{file.url} cannot be fetched: the server answers {error.code} {error.reason}", by_hand) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ResourceError(f"{file.url} cannot be fetched, is there a network? ({why})", by_hand) from None
    return count, digest.hexdigest()


def _sha256(path: Path, name: str) -> str:
    """Of the contents as published: those of NAME.gz uncompressed, unless the published file is itself called that."""
    try:
        raw = path.read_bytes()
        packed = path.suffix == ".gz" and not name.endswith(".gz")
        return hashlib.sha256(gzip.decompress(raw) if packed else raw).hexdigest()
    except (OSError, EOFError, zlib.error):
        return ""


def _check(one: Source, where: str) -> None:
    """Raises SpecError where a row of the table makes no sense: nothing is to be written outside the data folder, nothing read from this machine."""
    what = f"{where}: source {one.name!r}"
    if one.kind not in KINDS:
        raise SpecError(f"{what} is of kind {one.kind!r}", f"known: {', '.join(KINDS)}")
    if bool(one.file) == bool(one.by_hand):
        raise SpecError(f"{what} has either files or a word on why it must be got by hand (by_hand)")
    for file in one.file:
        parts = PurePosixPath(file.path).parts
        if len(parts) < 2 or parts[0] != f"{one.kind}s" or ".." in parts or "\\" in file.path:
            raise SpecError(f"{what}: a file's path begins with {one.kind}s/ and stays below it, got {file.path!r}")
        if not file.url.startswith(("https://", "http://")):
            raise SpecError(f"{what}: {file.path} must have an address of http or https, got {file.url!r}")
        if len(file.sha256) != 64 or not set(file.sha256) <= set("0123456789abcdef") or file.bytes < 1:
            raise SpecError(f"{what}: {file.path} needs a sha256 of 64 lower-case hexadecimal digits and a size in bytes")
