"""Short names for data: two things with one fingerprint are the same thing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec

from hetserve.spec.model import ModelSpec

DIGITS = 16


def fingerprint(data: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a dataclass's (or plain data's) canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(data, order="sorted")).hexdigest()[:DIGITS]


def model_fingerprint(model: ModelSpec) -> str:
    """The fingerprint of a model's shape: where it lies and how it is called do not matter."""
    return fingerprint(replace(model, name=""))
