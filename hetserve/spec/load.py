"""Reads model folders, cluster files, plans and profiles, and writes the last two. The only part of `spec` that touches files or the machine."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from hetserve.errors import ModelError, SpecError
from hetserve.spec.cluster import Cluster, Host, parse_cluster
from hetserve.spec.host import this_host
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.profile import Profile, encode_profile, parse_profile

MOST_BYTES = 16 * 2**20  # no declaration is larger; keeps a mistyped path to a checkpoint from being read whole


def load_model(folder: str | Path) -> ModelSpec:
    """The shape of the Hugging Face model in `folder`, from its config.json and, if present, generation_config.json.

    Raises:
        ModelError: no such folder, no config.json in it, or a config that is damaged or contradicts itself.
        UnsupportedError: a model this engine cannot compute.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"a model is a folder, and {str(folder)!r} is none", "`hetserve model make tiny` writes one to try")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{str(folder)!r} has no config.json", "a Hugging Face model folder has config.json and *.safetensors")
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else None
    return ModelSpec.from_hf(config, generation, folder.resolve().name)


def load_cluster(name_or_path: str | Path, host: Host | None = None) -> Cluster:
    """The cluster file at a path, or one of the packaged clusters by name, resolved against `host` (default: this machine).

    Raises:
        SpecError: no such name or file, not TOML, or a declaration that makes no sense.
    """
    text, where = _cluster_text(str(name_or_path))
    return parse_cluster(_toml(text, where), host or this_host(), where)


def cluster_names() -> list[str]:
    """The clusters that come with hetserve."""
    files = resources.files("hetserve.workloads").joinpath("clusters").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_plan(path: str | Path) -> Plan:
    """The plan in a file.

    Raises:
        SpecError, UnsupportedError: see `decode_plan`; SpecError also when the file cannot be read.
    """
    return decode_plan(_read_text(Path(path), SpecError), str(path))


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan file, replacing what is there at once.

    Raises:
        SpecError: the file cannot be written.
    """
    _replace(Path(path), encode_plan(plan), "plan")


def load_profile(path: str | Path) -> Profile:
    """The profile in a file.

    Raises:
        SpecError, UnsupportedError: see `parse_profile`; SpecError also when the file cannot be read or is not TOML.
    """
    return parse_profile(_toml(_read_text(Path(path), SpecError), str(path)), str(path))


def save_profile(profile: Profile, path: str | Path) -> None:
    """Writes a profile file, replacing what is there at once.

    Raises:
        SpecError: the file cannot be written.
    """
    _replace(Path(path), encode_profile(profile), "profile")


def _replace(path: Path, text: str, what: str) -> None:
    """Writes a file beside its place, then moves it there: nobody ever reads half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise SpecError(f"the {what} cannot be written to {str(path)!r}: {error.strerror}") from None


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: not TOML: {error}") from None


def _cluster_text(name: str) -> tuple[str, str]:
    """The text of a cluster file, and what to call it in errors."""
    if "/" in name or name.endswith(".toml"):
        return _read_text(Path(name), SpecError), name
    names = cluster_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(f"there is no cluster called {name!r}", f"{hint}known: {', '.join(names)}; or give the path of a .toml file")
    return resources.files("hetserve.workloads").joinpath("clusters", f"{name}.toml").read_text(encoding="utf-8"), f"cluster {name}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path, ModelError))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{str(path)!r} holds no JSON object")
    return data


def _read_text(path: Path, kind: type[SpecError] | type[ModelError]) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise kind(f"{str(path)!r} is larger than {MOST_BYTES // 2**20} MiB", "is it the right file?")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise kind(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise kind(f"{str(path)!r} is not text") from None
