"""What goes wrong with devices in a simulated run, and when."""

from __future__ import annotations

from dataclasses import dataclass

LOST = float("inf")


@dataclass(frozen=True)
class Fault:
    """From `at_s` on, the device is so many times slower than its costs say: 1 as it should be (and back, if it was lost), LOST gone."""

    at_s: float
    device: str
    slower: float

    def __post_init__(self) -> None:
        if not (self.at_s >= 0 and self.slower > 0):
            raise ValueError(f"a fault at {self.at_s:g} s that makes {self.device!r} {self.slower:g} times slower")
