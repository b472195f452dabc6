"""What the ops should give, in plain torch and float64, and pools whose unused parts are poisoned with NaN.

Independent of csrc: page layouts are written out here once more, as reshapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hetserve import _C

PAGE_TOKENS = 16
DTYPES = (torch.float32, torch.bfloat16)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_layout(kv: torch.Tensor, layout: str) -> torch.Tensor:
    """kv [layers, pages, 2, page_tokens, head_dim] -> the same elements in a pool's memory order, flat."""
    if layout == "plain":
        return kv.reshape(-1)
    layers, pages, _, tokens, dim = kv.shape
    p = 4 // kv.element_size()
    k = kv[:, :, 0].reshape(layers, pages, tokens, dim // p, p).transpose(2, 3)
    v = kv[:, :, 1].reshape(layers, pages, tokens // p, p, dim).transpose(3, 4)
    return torch.stack([k.flatten(2), v.flatten(2)], 2).reshape(-1)


@dataclass
class Pool:
    """A KvPool over memory full of NaN. `kv` is what it should hold, plain: [layers, pages, 2, page_tokens, head_dim]."""

    layers: int
    pages: int
    head_dim: int
    dtype: torch.dtype
    layout: str = "packed"
    page_tokens: int = PAGE_TOKENS
    kv: torch.Tensor = field(init=False)
    memory: torch.Tensor = field(init=False)
    pool: _C.KvPool = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.layers, self.pages, 2, self.page_tokens, self.head_dim)
        self.kv = torch.full(shape, math.nan, dtype=self.dtype)
        self.memory = aligned(self.kv.numel(), self.dtype)
        self.memory.fill_(math.nan)
        self.pool = _C.KvPool(self.memory, self.layers, self.pages, self.page_tokens, self.head_dim, self.dtype, self.layout)

    def write(self) -> None:
        """Puts `kv` into the pool's memory, without csrc."""
        self.memory.copy_(self.expected())

    def expected(self) -> torch.Tensor:
        """The pool's memory if it held `kv`."""
        return in_layout(self.kv, self.layout)


def aligned(count: int, dtype: torch.dtype, fill: float = 0.0) -> torch.Tensor:
    """A tensor of `count` elements that starts on a cache line."""
    size = dtype.itemsize
    raw = torch.empty(count * size + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start : start + count * size].view(dtype).fill_(fill)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal including NaNs."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_length: int, scale: float, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention in float64 of q [n, r, d] over k, v [tokens, d]; row i sees first_length + i tokens, at most the last `window`.

    Returns the result [n, r, d] and its scale of rounding errors: the softmax's weighted sum of |v|.
    """
    scores = torch.einsum("nrd,td->nrt", q.double(), k.double()) * scale
    seen = first_length + torch.arange(q.shape[0])[:, None]
    token = torch.arange(k.shape[0])[None, :]
    visible = (token < seen) & ((token >= seen - window) if window > 0 else torch.ones_like(token < seen))
    weights = scores.masked_fill(~visible[:, None, :], -math.inf).softmax(-1)
    return weights @ v.double(), weights @ v.double().abs()


def tolerance(dtype: torch.dtype) -> float:
    """Of attention, as a share of the weighted sum of |v|.

    bfloat16: weights rounded to bfloat16 (2^-8) and the result rounded (2^-8), and a tenth more for sums and exp. float16: 2^-11 likewise.
    """
    return {torch.float32: 1e-5, torch.bfloat16: 2.2 * 2**-8, torch.float16: 2.2 * 2**-11}[dtype]
