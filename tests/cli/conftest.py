"""The command line as a user meets it: a process of its own, without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """run("doctor", "--json", NO_COLOR="1") -> the finished process; keyword arguments are added to the environment."""

    def go(*args: str, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hetserve.cli.main", *args]
        clean = {key: value for key, value in os.environ.items() if key not in ("HETSERVE_DEBUG", "NO_COLOR", "FORCE_COLOR")}
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, env={**clean, **env}, check=False)

    return go
