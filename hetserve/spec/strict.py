"""Dictionaries from JSON or TOML files to frozen dataclasses, refusing what it does not know: a misspelt key is an error, never ignored."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hetserve.errors import SpecError

T = TypeVar("T")


def build(kind: type[T], data: Any, where: str) -> T:
    """`data` as an instance of the dataclass `kind`.

    Args:
        where: names the source in errors, usually a file's path.

    Raises:
        SpecError: an unknown key (with the nearest known one), a missing key or a value of the wrong type.
    """
    import msgspec  # here: `make gpu-check` asks what machine this is where msgspec is not installed

    for path, key, known in unknown_keys(kind, data, ""):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        raise SpecError(f"{where}: unknown key {key!r} in {path or 'the top level'}", hint)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SpecError(f"{where}: {error}") from None


def unknown_keys(kind: Any, data: Any, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Every key in `data` that `kind` has no field for: (path of its parent, the key, the fields there)."""
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(data, dict):
        hints = get_type_hints(kind)
        known = [field.name for field in fields(kind)]
        for key, value in data.items():
            if key in hints:
                yield from unknown_keys(hints[key], value, f"{path}.{key}".lstrip("."))
            else:
                yield path, str(key), known
    elif get_origin(kind) is tuple and isinstance(data, list):
        inner = get_args(kind)[0]
        for index, value in enumerate(data):
            yield from unknown_keys(inner, value, f"{path}[{index}]")
    elif get_origin(kind) in (Union, types.UnionType):
        for choice in get_args(kind):
            yield from unknown_keys(choice, data, path)
