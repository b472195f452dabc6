"""Threads are torch's, and the instruction set is what HETSERVE_ISA says or the import fails. Each needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hetserve import _C


def run(script, **env):
    full = {k: v for k, v in os.environ.items() if k != "HETSERVE_ISA"} | env
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=full)


THREADS = """
import os, torch
from hetserve import _C
torch.set_num_threads(4)
count = lambda: len(os.listdir("/proc/self/task"))
assert _C.get_threads() == 4, _C.get_threads()
before = count()
x = torch.randn(2048, 1024)
(x @ x.T).sum()                                    # starts torch's pool
after_torch = count()
_C.rms_norm(x, torch.ones(1024), torch.empty_like(x), 1e-5)
page_ids = torch.arange(200, dtype=torch.int32)
pool = _C.KvPool(torch.zeros(_C.KvPool.bytes(1, 200, 16, 64, "float32"), dtype=torch.uint8), 1, 200, 16, 64, "float32")
plan = _C.AttentionPlan(pool, torch.tensor([[0, 1, 0, 0, 3200, 0]], dtype=torch.int32), page_ids, 1, 1, 1)
assert plan.tasks > 4 and plan.threads == 4
_C.attention(plan, 0, torch.randn(1, 64), torch.empty(1, 64), 1.0)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "omp5" in line}
print(before, after_torch, count(), len(libraries))
"""


def test_ops_run_on_torchs_threads_and_start_none():
    done = run(THREADS)
    assert done.returncode == 0, done.stderr
    before, after_torch, after_ops, runtimes = map(int, done.stdout.split())
    assert after_torch >= before + 3  # torch's pool was there to be counted
    assert after_ops == after_torch
    assert runtimes == 1


USED = """
import torch
from hetserve import _C
torch.set_num_threads(3)
import os, time
def cpu():
    return {t: sum(map(int, open(f"/proc/self/task/{t}/stat").read().split()[13:15])) for t in os.listdir("/proc/self/task")}
_C.use_isa("ref")
pool = _C.KvPool(torch.zeros(_C.KvPool.bytes(1, 2000, 16, 64, "float32"), dtype=torch.uint8), 1, 2000, 16, 64, "float32")
plan = _C.AttentionPlan(pool, torch.tensor([[0, 1, 0, 0, 32000, 0]], dtype=torch.int32), torch.arange(2000, dtype=torch.int32), 1, 1, 1)
q, out = torch.randn(1, 64), torch.empty(1, 64)
before = cpu()
until = time.monotonic() + 1.0
while time.monotonic() < until:
    _C.attention(plan, 0, q, out, 1.0)
print(sum(1 for t, ticks in cpu().items() if ticks - before.get(t, 0) >= 5))
"""


def test_one_long_sequence_uses_every_thread():
    done = run(USED, OMP_WAIT_POLICY="passive")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 3


def test_without_torch_there_is_one_thread():
    script = "from hetserve import _C; import sys; assert 'torch' not in sys.modules; print(_C.get_threads()); _C.set_threads(1); _C.set_threads(2)"
    done = run(script)
    assert done.stdout.strip() == "1" and "torch is not imported" in done.stderr


def test_thread_counts_that_make_no_sense():
    for n in (0, -1, 10**6):
        with pytest.raises(ValueError, match="threads"):
            _C.set_threads(n)
    before = torch.get_num_threads()
    _C.set_threads(2)
    assert torch.get_num_threads() == _C.get_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", _C.info()["isas"])
def test_isa_is_forced_by_the_environment(name):
    assert run("from hetserve import _C; print(_C.info()['isa'])", HETSERVE_ISA=name).stdout.strip() == name


def test_the_best_isa_is_the_default():
    for env in ({}, {"HETSERVE_ISA": ""}):
        assert run("from hetserve import _C; print(_C.info()['isa'])", **env).stdout.strip() == _C.info()["isas"][-1]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "neon"])
def test_an_unknown_isa_fails_the_import(name):
    done = run("from hetserve import _C", HETSERVE_ISA=name)
    assert done.returncode == 1 and f"instruction set '{name}' is unknown, not built or not usable on this CPU; usable: ref" in done.stderr
    with pytest.raises(ValueError, match="instruction set"):
        _C.use_isa(name)
