"""What decode attention on other devices sends, by how it is split: in whole head groups, as Hetis does, or along the sequence. Bytes, computed.

papers/hetis.md 4.2 and 5.3; volumes only: a message's fixed cost makes the difference in time smaller (the paper's 2.68 against 4.44 for a fifth of
the heads on one device).
"""

from __future__ import annotations

from hetserve.spec.model import DTYPE_BYTES, ModelSpec


def heads_bytes(model: ModelSpec, share: float = 1.0, dtype: str = "") -> float:
    """Head by head: bytes a token and layer, there and back, with `share` of the head groups elsewhere, on however many devices (Hetis, Eq. 4).

    A head group's r queries, its key and value go, r outputs come back: 2 + 2/r vectors for each query head.
    """
    return share * model.kv_heads * (2 * model.group + 2) * _vector_bytes(model, dtype)


def sequence_bytes(model: ModelSpec, devices: int, dtype: str = "") -> float:
    """Along the sequence: bytes a token and layer when each of so many devices holds some of the tokens. All queries go to each, outputs come back.

    As the paper counts, so in favour of this split: without the outputs' softmax sums, and without the new token's key and value.
    """
    return devices * 2 * model.q_heads * _vector_bytes(model, dtype)


def _vector_bytes(model: ModelSpec, dtype: str) -> int:
    return model.head_dim * DTYPE_BYTES[dtype or model.dtype]
