"""Measured times of whole layers, steps or models: what predictions composed of kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepTable:
    """Steps of one model on one kind of device.

    Attributes:
        model: a name of the catalog.
        link: between the ranks of tensor parallelism, a name of the catalog; empty: the device's own.
        parts: which of a step's parts (`cost.step.PARTS`) the times hold.
        layers: how many the times hold; 0: all of the model.
        sequences: [rows], decoding, or prompts.
        new, before: [rows], tokens of each sequence in this step, and before it.
        seconds: [rows].
    """

    device: str
    source: str
    model: str
    tp: int
    phase: str  # "decode" or "prefill"
    parts: tuple[str, ...]
    layers: int
    sequences: Floats
    new: Floats
    before: Floats
    seconds: Floats
    link: str = ""

    def __len__(self) -> int:
        return len(self.seconds)
