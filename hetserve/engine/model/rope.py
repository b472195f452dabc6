"""Rotary position embedding's table of cosines and sines. The rotation itself is `_C.rope`."""

from __future__ import annotations

import math

import torch

from hetserve.spec.model import RopeSpec


def cos_sin_table(rope: RopeSpec, head_dim: int, positions: int) -> torch.Tensor:
    """float32 [positions, 2, head_dim / 2]: cosines, then sines, of position times frequency, as transformers computes them."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies(rope, head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=1).contiguous()


def frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each pair of dimensions, theta^(-2i/head_dim), then scaled."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.kind == "linear":
        return plain / rope.factor
    return _llama3(plain, rope) if rope.kind == "llama3" else plain


def _llama3(plain: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    """Llama 3.1: wavelengths well inside the original context stay, those beyond it are stretched, those between are blended."""
    turns = rope.original_positions * plain / (2 * math.pi)  # how often each pair turns within the original context
    blend = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return (1.0 - blend) * plain / rope.factor + blend * plain
