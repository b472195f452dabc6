"""What `make gpu-check` and `make cuda-all` do without a GPU: stages, limits, and what the compiler says of the kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hetserve.bench.gpu import __main__ as check
from hetserve.bench.gpu import registers

LOG = """
ptxas info    : Compiling entry function '_ZN8hetserve4cuda11rope_kernelIfEEvNS_10RopeParamsE' for 'sm_90'
ptxas info    : Function properties for _ZN8hetserve4cuda11rope_kernelIfEEvNS_10RopeParamsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 34 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z4spillv' for 'sm_80'
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem
"""


def test_what_the_compiler_says_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text(LOG)
    monkeypatch.setattr(sys, "argv", ["registers", str(tmp_path / "log"), str(tmp_path / "out.json")])
    assert registers.main() == 0
    first, second = json.loads((tmp_path / "out.json").read_text())["kernels"]
    assert (first["arch"], first["registers"], first["spill_bytes"], first["stack_bytes"], first["shared_bytes"]) == ("sm_80", 255, 20, 24, 1024)
    assert (second["arch"], second["registers"], second["spill_bytes"]) == ("sm_90", 34, 0)
    assert "34 registers" in capsys.readouterr().out
    (tmp_path / "log").write_text("nothing was compiled")
    assert registers.main() == 2


def test_without_a_gpu_the_kernels_are_compiled_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "results")])
    monkeypatch.setattr(check.machine, "gpus", list)
    for nvcc, fault, code in (({"path": "/bin/nvcc"}, "", 0), ({"path": "/bin/nvcc"}, "a warning", 1), (None, "never asked", 0)):
        monkeypatch.setattr(check.machine, "nvcc", lambda nvcc=nvcc: nvcc)
        monkeypatch.setattr(check, "build", lambda fault=fault: fault)
        assert check.main() == code
    assert not (tmp_path / "results").exists()
    assert "nothing was run" in capsys.readouterr().out


def test_a_stage_that_fails_or_takes_too_long_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def python(name: str, code: str, limit_s: float = 20.0) -> check.Stage:
        return check.Stage(name, ("-c", code), limit_s)

    write = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')"
    stages = (python("fails", "raise SystemExit(3)"), python("hangs", "import time; time.sleep(60)", 0.5), python("works", write))
    monkeypatch.setattr(check, "STAGES", stages)
    monkeypatch.setattr(check, "build", lambda: "")
    monkeypatch.setattr(check.machine, "gpus", lambda: [{"name": "a GPU"}])
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
    assert check.main() == 1
    found = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert {name: one["ok"] for name, one in found.items()} == {"build": True, "fails": False, "hangs": False, "works": True}
    assert (found["fails"]["exit"], found["hangs"]["exit"]) == (3, "killed after 0.5 s") and (tmp_path / "works.json").exists()


def test_all_limits_together_are_under_nine_minutes_and_files_are_eight_at_most() -> None:
    assert check.BUILD_S + sum(stage.limit_s for stage in check.STAGES) <= 540
    assert 1 + sum(stage.writes for stage in check.STAGES) <= 8


def test_nothing_is_imported_that_such_a_machine_lacks() -> None:
    """A machine with a GPU has torch and numpy, but not everything that hetserve installs for itself."""
    code = """
import sys
for name in ("msgspec", "zmq", "starlette", "uvicorn", "ortools", "scipy", "prometheus_client", "aiohttp"):
    sys.modules[name] = None
import hetserve.bench.gpu.__main__, hetserve.bench.gpu.kernels, hetserve.bench.gpu.registers
hetserve.bench.gpu.__main__.machine.describe()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(check.__file__).parents[3])
