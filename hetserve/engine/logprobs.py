"""Log-probabilities of sampled tokens for the rows that asked: the model's own, before temperature and filters (vLLM's default, `raw_logprobs`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetserve.control.messages import Sampling
from hetserve.engine.accelerator import sent
from hetserve.engine.wire import TokenLogprobs


def token_logprobs(logits: torch.Tensor, sampling: Sequence[Sampling], tokens: torch.Tensor) -> tuple[TokenLogprobs | None, ...]:
    """Per row what it asked for (None: nothing); an empty tuple if no row did.

    Args:
        logits: [n, vocab] on any device, where tokens, int32 or int64 [n], are too.
    """
    wanted = [i for i, row in enumerate(sampling) if row.logprobs >= 0]
    if not wanted:
        return ()
    rows = sent(torch.tensor(wanted), logits.device)
    values = logits[rows].float().log_softmax(-1)
    found, ids = values.topk(min(max(sampling[i].logprobs for i in wanted), values.shape[1]))
    own = values.gather(1, tokens[rows].long()[:, None])[:, 0]
    told = zip(wanted, *(part.tolist() for part in (tokens[rows], own, found, ids)), strict=True)
    out: list[TokenLogprobs | None] = [None] * len(sampling)
    for i, token, logprob, top, at in told:
        likeliest = sorted(zip(at, top, strict=True), key=lambda pair: (-pair[1], pair[0]))
        out[i] = TokenLogprobs(token, logprob, tuple(likeliest[: sampling[i].logprobs]))
    return tuple(out)
