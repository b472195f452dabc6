"""RMSNorm and LayerNorm with one shape of call, so that the layer loop need not know which a model has. Computed by `_C`."""

from __future__ import annotations

from typing import Protocol

import torch

from hetserve import _C


class Norm(Protocol):
    """Normalises rows [rows, hidden]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """norm(x)."""

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place, then norm(residual)."""


class RmsNorm:
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        _C.rms_norm(x, self._weight, out, self._eps)
        return out

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        _C.add_rms_norm(x, residual, self._weight, x, self._eps)
        return x

    def in_place(self, x: torch.Tensor) -> None:
        """x [rows, heads, head_dim], any strides but the last: each head normalised (qk-norm)."""
        _C.rms_norm(x, self._weight, x, self._eps)


class LayerNorm:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        _C.layer_norm(x, self._weight, self._bias, out, self._eps)
        return out

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        _C.add_layer_norm(x, residual, self._weight, self._bias, x, self._eps)
        return x


class NoNorm:
    """Where an OPT model leaves its last norm out."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual.add_(x)
