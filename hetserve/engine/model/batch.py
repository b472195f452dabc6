"""What one forward pass of a stage is given besides the KV cache. Rows are tokens: decode tokens and prefill chunks side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StepBatch:
    """One row per token; the tokens of a chunk are consecutive rows in order of position. What each row attends to is known to `attend` alone."""

    token_ids: torch.Tensor  # int32 or int64 [rows]
    positions: torch.Tensor  # int32 [rows] 0-based position in its sequence
    sample_rows: torch.Tensor | None  # int64 [n_sample] rows whose logits are wanted, in this order; None: every row

    @property
    def rows(self) -> int:
        return int(self.token_ids.shape[0])
