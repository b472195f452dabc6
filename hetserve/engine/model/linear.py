"""Matrix products with weights made ready once. On a CPU bfloat16 goes through oneDNN with the weight in oneDNN's own blocked order; all else through
torch (cuBLAS on a GPU).

Measured on 2 cores with AVX512-BF16, K 1024, N 5632, against torch's F.linear, which reorders in every call: 1.8 times as fast at 1 row, 1.7 at 16,
1.2 at 64, 1.04 at 512. The blocked order is the same for every number of rows, so one copy serves decode and prefill.

With few rows, as decoding has them, oneDNN's AVX-512 product reads the weight at half the speed of memory. `_C.linear` reads the same copy:
1.2 to 2.0 times as fast at 1 to 8 rows (Zen 4, one core), 1.1 times at 64; results/profile has whole layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch.nn import functional

from hetserve import _C

COLUMNS, PAIRS = 64, 16  # of the blocks that `_C.linear` reads
Apply = Callable[[torch.Tensor], torch.Tensor]


class Linear:
    """y = act(x W^T + b). x: [rows, in] with contiguous rows -> [rows, out].

    Args:
        weight: [out, in]; kept only as a packed copy where packing is possible, so the caller should drop its own.
        bias: [out] or None.
        activation: "none", "relu" or "gelu" (exact), applied to the accumulated product.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none") -> None:
        self.out_features, self.in_features = weight.shape
        packs = weight.device.type == "cpu" and can_pack(weight.dtype)
        self._apply = (_packed if packs else _plain)(weight, bias, activation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._apply(x)


def can_pack(dtype: torch.dtype) -> bool:
    """oneDNN multiplies bfloat16 on x86 only with AVX-512 (or AVX2's bf16 extension)."""
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed(weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> Apply:
    weight = weight.contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    linear = torch.ops.mkldnn._linear_pointwise.default  # the overload itself: a third of the packet's call time
    algorithm = "none" if activation == "gelu" else ""  # gelu's "none" is the exact one

    def apply(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = linear(x, packed, bias, activation, [], algorithm)
        return out

    blocks, most_rows = _blocks(packed, weight), _C.info()["linear_rows"]
    if blocks is None or activation == "gelu" or most_rows == 0:
        return apply
    outputs, relu = weight.shape[0], activation == "relu"

    def apply_few(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > most_rows:
            return apply(x)
        out = x.new_empty(x.shape[0], outputs)
        _C.linear(x, blocks, bias, relu, out)
        return out

    return apply_few


def _blocks(packed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """The memory of `packed`, valid as long as it, as `_C.linear` reads it; None where oneDNN keeps it otherwise.

    That order is oneDNN's affair and documented nowhere, so it is compared, not assumed.
    """
    outputs, inputs = weight.shape
    bytes_ = weight.numel() * weight.element_size()
    if outputs % COLUMNS or inputs % (2 * PAIRS) or not hasattr(torch.ops.mkldnn, "data_ptr") or torch.ops.mkldnn._nbytes(packed) != bytes_:
        return None
    memory = (ctypes.c_uint8 * bytes_).from_address(torch.ops.mkldnn.data_ptr(packed))
    blocks = torch.frombuffer(memory, dtype=torch.bfloat16).view(outputs // COLUMNS, inputs // (2 * PAIRS), PAIRS, COLUMNS, 2)
    expected = weight.view(torch.int16).view(outputs // COLUMNS, COLUMNS, inputs // (2 * PAIRS), PAIRS, 2).permute(0, 2, 3, 1, 4)
    same = all(torch.equal(found, wanted) for found, wanted in zip(blocks.view(torch.int16), expected, strict=True))
    return blocks if same else None


def _plain(weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> Apply:
    if activation == "relu":
        return lambda x: functional.linear(x, weight, bias).relu_()
    if activation == "gelu":
        return lambda x: functional.gelu(functional.linear(x, weight, bias))
    return lambda x: functional.linear(x, weight, bias)
