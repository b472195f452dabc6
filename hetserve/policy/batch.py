"""How a step's token budget is shared out once every decoding sequence has had its token."""

from __future__ import annotations

from hetserve.policy.row import Ints


def in_order(budget: int, remaining: Ints) -> list[int]:
    """Prefill chunks first come, first served: each as large as what is left of the budget.

    Args:
        budget: tokens left in the step.
        remaining: [prefilling] known tokens each sequence still has to compute, in order of arrival.

    Returns: tokens for each; trailing zeros are left out.
    """
    chunks: list[int] = []
    for tokens in remaining:
        chunk = min(int(tokens), budget)
        if chunk <= 0:
            break
        chunks.append(chunk)
        budget -= chunk
    return chunks
