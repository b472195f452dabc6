"""Short names for data: two things with one fingerprint are the same thing."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

from hetserve.spec.model import ModelSpec

DIGITS = 16


def fingerprint(data: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a dataclass's (or plain data's) canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:DIGITS]


def model_fingerprint(model: ModelSpec) -> str:
    """The fingerprint of a model's shape: where it lies and how it is called do not matter."""
    return fingerprint(replace(model, name=""))


def canonical(data: Any) -> str:
    """JSON without blanks, keys in order, numbers as msgspec writes them: fingerprints must not change, and a GPU's machine may lack msgspec."""
    if is_dataclass(data) and not isinstance(data, type):
        data = {field.name: getattr(data, field.name) for field in fields(data)}
    if isinstance(data, dict):
        return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{canonical(value)}" for key, value in sorted(data.items())) + "}"
    if isinstance(data, list | tuple):
        return "[" + ",".join(map(canonical, data)) + "]"
    return _number(data) if isinstance(data, float) else json.dumps(data, ensure_ascii=False)


def _number(value: float) -> str:
    """The shortest digits that mean the same number; an exponent has no plus and no leading zero, and begins at 1e-6 and 1e16."""
    digits, power, exponent = repr(value).partition("e")
    if not math.isfinite(value):
        return "null"
    if not power:
        return digits
    sign, whole = ("-", digits[1:]) if value < 0 else ("", digits)
    return f"{sign}0.0000{whole.replace('.', '')}" if int(exponent) == -5 else f"{digits}e{int(exponent)}"
