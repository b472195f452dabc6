"""How far a second measurement is from a first one, number by number. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import Contention, DensePoint, DeviceProfile, LinkProfile, Profile

BOUND = 0.25  # a profile that is further off than this in one of a device's numbers no longer describes its machine
LINK_BOUND = 1.0  # of a link's: waking a process on a busy core takes as long as the message
UNBOUND = math.inf  # there to be looked at, not judged

# Coefficients of one line can trade against each other while its times stay: lines are judged at a point in the middle of what engines do.
BATCH, LENGTH_TOKENS = 16, 1024
MESSAGE_BYTES = 2**16


@dataclass(frozen=True)
class Drift:
    """One number then and now, and how far they may be apart."""

    where: str  # a device, or "source to target"
    what: str
    then: float
    now: float
    bound: float

    @property
    def share(self) -> float:
        """now / then - 1; infinite where a number appeared out of nothing."""
        if self.then == self.now:
            return 0.0
        return self.now / self.then - 1 if self.then else math.inf

    @property
    def beyond(self) -> bool:
        """Beyond the bound, as a factor: 25 % more, or its reverse."""
        return not 1 / (1 + self.bound) <= self.share + 1 <= 1 + self.bound


def drifts(then: Profile, now: Profile, model: ModelSpec) -> list[Drift]:
    """Every number of two profiles of the same devices and model; of contention, where both have measured it."""
    found: list[Drift] = []
    for device in now.devices:
        known = then.device(device.name)
        assert known is not None, "`require` comes first"
        found += _device(known, device, model)
    for link in now.links:
        before = then.link(link.source, link.target)
        assert before is not None
        found += _link(before, link, MESSAGE_BYTES / (model.head_dim * DTYPE_BYTES[now.dtype]))
    for pair in now.contention:
        measured = then.beside(pair.device, pair.other)
        if measured is not None:
            found += _contention(measured, pair)
    return found


def _device(then: DeviceProfile, now: DeviceProfile, model: ModelSpec) -> Iterator[Drift]:
    name, old, new = now.name, then.attention, now.attention
    for what, before, after in (("a_s", old.a_s, new.a_s), ("b_s", old.b_s, new.b_s), ("c_s", old.c_s, new.c_s)):
        yield Drift(name, what, before, after, UNBOUND)
    heads, vectors = BATCH * model.q_heads, 2 * BATCH * LENGTH_TOKENS * model.kv_heads
    then_s, now_s = (line.a_s * heads + line.b_s * vectors + line.c_s for line in (old, new))
    yield Drift(name, f"attention of {BATCH} x {LENGTH_TOKENS:,} tokens, s", then_s, now_s, BOUND)
    yield Drift(name, "prefill_pair_s", then.prefill_pair_s, now.prefill_pair_s, BOUND)
    yield Drift(name, "read_bytes", then.read_bytes, now.read_bytes, BOUND)
    for first, second in zip(then.dense, now.dense, strict=True):
        yield Drift(name, f"layer, {second.weights} weights, mean s", *_means(first.layer, second.layer), BOUND)
        yield Drift(name, f"LM head, {second.weights} weights, mean s", *_means(first.lm_head, second.lm_head), BOUND)


def _link(then: LinkProfile, now: LinkProfile, vectors: float) -> Iterator[Drift]:
    name = f"{now.source} to {now.target}"
    yield Drift(name, "gamma_s", then.gamma_s, now.gamma_s, UNBOUND)
    yield Drift(name, "beta_s", then.beta_s, now.beta_s, UNBOUND)
    then_s, now_s = (link.gamma_s * vectors + link.beta_s for link in (then, now))
    yield Drift(name, "message of 64 KiB, s", then_s, now_s, LINK_BOUND)
    yield Drift(name, "bytes_per_s", then.bytes_per_s, now.bytes_per_s, LINK_BOUND)


def _contention(then: Contention, now: Contention) -> Iterator[Drift]:
    name = f"{now.device} beside {now.other}"
    for what, factor in now.factors.items():
        yield Drift(name, f"{what}, times slower", then.factors[what], factor, BOUND)


def _means(then: tuple[DensePoint, ...], now: tuple[DensePoint, ...]) -> tuple[float, float]:
    """Geometric means over the rows that both measured."""
    known = {point.tokens: point.layer_s for point in then}
    pairs = [(known[point.tokens], point.layer_s) for point in now if point.tokens in known]
    before, after = zip(*pairs, strict=True) if pairs else ((1.0,), (1.0,))
    return _geometric(before), _geometric(after)


def _geometric(values: tuple[float, ...]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
