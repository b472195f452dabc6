"""Everything the collections have, as tables of kernels and of steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hetserve.cost.fits import Table, merged
from hetserve.errors import SpecError
from hetserve.profile.published import aiconfigurator, composed, distserve, helix, llmservingsim, vidur
from hetserve.profile.published.files import HINT, Input, open_folder
from hetserve.profile.published.steps import StepTable


@dataclass(frozen=True)
class Published:
    """What was found below a folder."""

    tables: tuple[Table, ...]
    steps: tuple[StepTable, ...]
    inputs: tuple[Input, ...]

    def of(self, kind: str, device: str = "") -> list[Table]:
        """Tables of one kind of kernel, of one device or of all."""
        return [table for table in self.tables if table.kind == kind and device in ("", table.device)]


def gather(path: Path) -> Published:
    """All tables below a folder.

    Raises:
        SpecError: it has none, or one of them is damaged.
    """
    folder = open_folder(path)
    tables = merged([table for reader in (aiconfigurator, vidur, llmservingsim) for table in reader.tables(folder) if len(table)])
    if not tables:
        raise SpecError(f"the folders in {str(folder.root)!r} hold no table of kernels", HINT)
    steps = [table for reader in (vidur, llmservingsim, helix, distserve) for table in reader.steps(folder) if len(table)]
    steps += composed.steps(tables, steps)
    return Published(tuple(tables), tuple(steps), tuple(folder.read[name] for name in sorted(folder.read)))
