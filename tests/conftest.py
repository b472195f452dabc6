"""What all tests share: how hard hypothesis tries. No test needs a network, a GPU or a terminal."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Two loaded cores: time per example says nothing about the code. The same examples every run, so that a red run can be repeated.
settings.register_profile("hetserve", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hetserve")
