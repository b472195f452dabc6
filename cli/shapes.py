"""What --model means where no weights are needed: a folder, a model of the catalog, or one that can be made here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hetserve.errors import ModelError

if TYPE_CHECKING:
    from hetserve.spec.model import ModelSpec


def shape_of(name: str) -> ModelSpec:
    """The model's shape.

    Raises:
        ModelError: there is no such folder or name; the hint names the nearest. ModelError, UnsupportedError: as load_model.
    """
    import difflib

    from hetserve.catalog import rows
    from hetserve.engine.model.recipes import RECIPES
    from hetserve.spec.load import load_model
    from hetserve.spec.model import ModelSpec

    if Path(name).is_dir():
        return load_model(name)
    known = {one.name.lower(): one.name for one in rows.models()}
    if name.lower() in known:
        return rows.model(name)
    if name in RECIPES:
        return ModelSpec.from_hf(RECIPES[name].config, None, name)
    near = difflib.get_close_matches(name.lower(), [*known, *RECIPES], n=1)
    hint = f"did you mean {known.get(near[0], near[0])!r}? " if near else ""
    hint += f"known: {', '.join([*known.values(), *RECIPES])}; `hetserve model make tiny` writes a folder"
    raise ModelError(f"{name!r} is neither a model folder nor a model known here", hint)
