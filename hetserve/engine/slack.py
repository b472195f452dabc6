"""Sleeping to the microsecond. Linux rounds a thread's sleeps up by its timer slack, 50 us by default, more than a small operation takes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_TIMERSLACK = 29
PR_GET_TIMERSLACK = 30


def sleep_s(seconds: float) -> None:
    """Sleeps, if there is anything to sleep."""
    if seconds > 0:
        time.sleep(seconds)


@contextmanager
def without_slack() -> Iterator[None]:
    """This thread's timer slack is 1 ns meanwhile."""
    libc = ctypes.CDLL(None)
    before_ns = libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_TIMERSLACK, max(1, before_ns), 0, 0, 0)
