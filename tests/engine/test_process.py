"""What a worker process tells the libraries it will load."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from hetserve.engine.process import ISA_CAPS, confine
from hetserve.spec.cluster import CPU, CUDA, EMULATED


@pytest.mark.parametrize(("kind", "isa"), [(CPU, ""), (CPU, "avx2"), (EMULATED, ""), (CUDA, "")])
def test_a_process_is_pinned_and_its_libraries_are_told(monkeypatch: pytest.MonkeyPatch, kind: str, isa: str) -> None:
    pinned, told = [], dict[str, str]()
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pinned.append((process, cores)))
    monkeypatch.setattr(os, "environ", told)
    confine(SimpleNamespace(cores=(3, 5), isa=isa, kind=kind))  # type: ignore[arg-type]
    assert pinned == [(0, (3, 5))] and told["OMP_NUM_THREADS"] == "2" and told["OMP_PLACES"] == "{3},{5}"
    assert ISA_CAPS.get(isa, {}).items() <= told.items()
    assert (told.get("CUDA_DEVICE_MAX_CONNECTIONS") == "32") == (kind == CUDA), "communicators that share a queue of the GPU wait for each other"
