"""How a stage tells what it finds: rows, each printed and written as soon as it is there, so that a kill loses only what follows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hetserve import machine

PARTLY = ".partly"


def report(bench: str, rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes the rows into `path`. Returns the exit code: 1 if a row says that something is not `right`."""
    result: dict[str, Any] = {"bench": f"gpu {bench}", "label": "measured", "machine": machine.describe(), "rows": []}
    for row in rows:
        result["rows"].append(row)
        print(" ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True)
        partly = path.with_name(f".{path.name}{PARTLY}")
        partly.write_text(json.dumps(result, indent=1) + "\n")
        partly.replace(path)  # whoever is killed while writing leaves what was there
    return 0 if all(row.get("right", True) for row in result["rows"]) else 1
