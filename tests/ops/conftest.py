"""Every op test that takes `isa` runs once per instruction set; one this CPU lacks is skipped by name, so the report says what was not tried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from on_device import need_gpu, use_device

from hetserve import _C

# amx-emulated is the AMX kernel with its tiles in memory: what can be tested of it without AMX.
# cuda-emulated is csrc/cuda with its threads as fibers; cuda is the same kernels on a GPU.
ISAS = ("ref", "avx2", "avx512", "avx512bf16", "amx-emulated", "amx", "cuda-emulated", "cuda")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Forces one instruction set for the test, or puts its calls on a GPU."""
    if request.param == "cuda":
        need_gpu()
        use_device(monkeypatch, "cuda")
        yield "cuda"
        return
    before = _C.info()["isa"]
    try:
        _C.use_isa(request.param)
    except ValueError:
        pytest.skip(f"{request.param} is not usable on this CPU")
    yield request.param
    _C.use_isa(before)


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    """The references are small; ops that want threads ask for them. Spinning pools on a loaded machine would only slow the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Lets row ops use threads."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)
