"""What all tests share: how hard hypothesis tries. No test needs a network, a GPU or a terminal.

A machine with a GPU and no network may lack hypothesis: there, its tests are skipped, and the others of a file run all the same.
"""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    lacking = MagicMock()
    lacking.given = lambda *_, **__: pytest.mark.skip("hypothesis is not installed")
    lacking.settings = lambda **_: lambda test: test
    sys.modules["hypothesis"] = lacking
else:
    # Two loaded cores: time per example says nothing about the code. The same examples every run, so that a red run can be repeated.
    settings.register_profile("hetserve", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("hetserve")
