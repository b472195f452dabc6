"""The token that every slot's sequence sampled last, on the device: the next step takes it from there, before the host knows what it is."""

from __future__ import annotations

import torch

UNKNOWN = -1  # a token that the host does not know yet


class LastTokens:
    """Of one group.

    Args:
        max_seqs: slots.
        device: where they are, as is whatever is given to the calls.
    """

    def __init__(self, max_seqs: int, device: torch.device) -> None:
        self._tokens = torch.zeros(max_seqs, dtype=torch.int32, device=device)

    def fill(self, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """int32 [rows] the tokens, where they are UNKNOWN what their slots sampled last. May be captured."""
        return torch.where(tokens < 0, self._tokens.index_select(0, slots), tokens)

    def put(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Notes what slots, int32 [n], have sampled, int32 [n]."""
        self._tokens.index_copy_(0, slots.long(), tokens)
