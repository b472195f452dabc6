"""What `make gpu-check` and `make cuda-all` do without a GPU: stages, limits, and what the compiler says of the kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hetserve.bench.gpu import __main__ as check
from hetserve.bench.gpu import registers
from hetserve.bench.gpu.report import PARTLY, report

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
    hangs = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]]); time.sleep(60)"
    stages = (python("fails", "raise SystemExit(3)"), python("hangs", hangs, 2.0), python("works", write))
    monkeypatch.setattr(check, "STAGES", stages)
    monkeypatch.setattr(check, "RIVALS", (python("quick", "raise SystemExit(5)"), python("slow", hangs)))
    monkeypatch.setattr(check.machine, "package_version", lambda name: "1")
    monkeypatch.setattr(check, "build", lambda: "")
    monkeypatch.setattr(check.machine, "gpus", lambda: [{"name": "a GPU"}])
    monkeypatch.setattr(check.wheels, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
    assert check.main() == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["stages"]
    assert summary["flashinfer"]["slow"] == "killed after 0 s" and summary["flashinfer"]["quick"] in (5, "killed after 0 s"), "nobody waits for it"
    assert "MISSED: exit killed after 2 s" in (tmp_path / "table.md").read_text()
    assert {name: one["ok"] for name, one in found.items()} == {"build": True, "fails": False, "hangs": False, "works": True}
    assert (found["fails"]["exit"], found["hangs"]["exit"]) == (3, "killed after 2 s") and (tmp_path / "works.json").exists()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path / "hangs.json").encode() in read(path)]
    assert not left, "what a stage has started ends with it"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_no_stage_runs_past_the_end_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under nine minutes whatever happens: a stage gets what is left, and none begins with next to nothing."""
    assert check.WHOLE_S < 540 and min(stage.limit_s for stage in check.STAGES) > check.LEAST_S
    assert sum(stage.limit_s for stage in check.STAGES[:-1]) + 60 <= check.WHOLE_S - 40, (
        "the build takes a minute: even then the last gets its engine's rows"
    )
    monkeypatch.setattr(check, "WHOLE_S", 3.0)
    monkeypatch.setattr(check, "LEAST_S", 1.0)
    sleeps = [check.Stage(name, ("-c", "import time; time.sleep(60)"), 50.0) for name in ("long", "late")]
    monkeypatch.setattr(check, "STAGES", sleeps)
    monkeypatch.setattr(check, "RIVALS", ())
    monkeypatch.setattr(check, "build", lambda: "")
    monkeypatch.setattr(check.machine, "gpus", lambda: [{"name": "a GPU"}])
    monkeypatch.setattr(check.wheels, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
    began_s = time.monotonic()
    assert check.main() == 1 and time.monotonic() - began_s < 6
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["stages"]
    assert found["long"]["exit"].startswith("killed after ") and found["late"]["exit"].startswith("not begun")


def test_files_are_eight_at_most_and_none_is_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the stages' own the summary and the table."""
    assert 2 + sum(bool(stage.ending) for stage in check.STAGES) <= 8
    for stage in check.STAGES[1:]:
        (tmp_path / f"{stage.name}{stage.ending}").write_text("{}")
    (tmp_path / f".decode.json{PARTLY}").write_text("{")
    monkeypatch.setattr(check, "build", lambda: "it does not compile")
    monkeypatch.setattr(check, "RIVALS", ())
    monkeypatch.setattr(check.wheels, "FOLDER", tmp_path / "none")
    assert check.check(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "table.md"}


def test_nobody_waits_for_flashinfer_and_its_compiling_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins beside the build, and is over before anything is timed."""
    seen: list[str] = []
    monkeypatch.setattr(check, "begin", lambda stage, *_: seen.append(f"{stage.name} begins"))
    monkeypatch.setattr(check, "end", lambda process, limit_s: seen.append(f"ends within {limit_s:g} s"))
    monkeypatch.setattr(check, "run", lambda stage, *_: seen.append(stage.name) or {"ok": True, "seconds": 0.0, "exit": 0})
    monkeypatch.setattr(check, "build", lambda: "")
    monkeypatch.setattr(check.wheels, "unpacked", lambda *_: (tmp_path, ""))
    assert check.check(tmp_path) == 0
    begins = [f"{stage.name} begins" for stage in check.RIVALS]
    assert seen == [*begins, "ops", "ends within 0 s", "ends within 0 s", *(stage.name for stage in check.STAGES[1:])]
    before = os.getpriority(os.PRIO_PROCESS, 0)
    code = "import os; from hetserve.bench.gpu import rivals; rivals.decode = None; rivals.main(); print(os.getpriority(os.PRIO_PROCESS, 0))"
    said = subprocess.run([sys.executable, "-c", code, "cores"], cwd=check.ROOT, text=True, capture_output=True)
    assert int(said.stdout.split()[-1]) == 19 > before, said.stderr


def test_a_kill_while_a_result_is_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"first": 1}
        monkeypatch.setattr(Path, "write_text", lambda path, text: path.write_bytes(text.encode()[:10]) and killed())
        yield {"second": 2}

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report("decode", rows(), tmp_path / "decode.json")
    monkeypatch.undo()
    assert json.loads((tmp_path / "decode.json").read_text())["rows"] == [{"first": 1}]


def make(target: str, *arguments: str) -> str:
    """What make would run."""
    command = ["make", "--dry-run", "--no-print-directory", target, *arguments]
    return subprocess.run(command, cwd=check.ROOT, check=True, text=True, capture_output=True).stdout


def test_cuda_all_compiles_every_kernel_each_time_and_the_host_side_when_it_changed(tmp_path: Path) -> None:
    for name in ("bin/python", ".torch", ".tools", ".installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    nothing_new = make("cuda-all", f"VENV={tmp_path}")
    assert "cmake --fresh" in nothing_new and "--clean-first --target cuda_kernels cuda_tensor_kernels" in nothing_new
    assert "pip install" not in nothing_new.replace("pip  install", "pip install") and "installing" not in nothing_new
    for changed in ("csrc/cuda/plan.cpp", "csrc/cuda/ops.h", "csrc/cuda/native/device.cuh", "CMakeLists.txt"):
        assert (check.ROOT / changed).exists()
        again = make("cuda-all", f"VENV={tmp_path}", "-W", changed)
        assert "installing hetserve" in again and "cmake --fresh" in again


def test_the_sanitizer_is_asked_what_its_documentation_knows() -> None:
    """Its options as of CUDA 13, only memcheck's own with memcheck, our kernels alone, and a limit."""
    for tool in ("memcheck", "racecheck"):
        said = make("gpu-sanitize", f"TOOL={tool}", "SANITIZE_S=77")
        options = re.findall(r"--(?:tool|kernel-name|target-processes|launch-timeout|error-exitcode|report-api-errors) \S+", said)
        wanted = [f"--tool {tool}", "--kernel-name kns=hetserve", "--target-processes all", "--launch-timeout 0", "--error-exitcode 1"]
        assert options == [*wanted, *(["--report-api-errors no"] if tool == "memcheck" else [])]
        assert "timeout --signal=INT --kill-after=10 77" in said and '-k "cuda and not emulated" tests/ops' in said


def test_every_stage_is_there() -> None:
    modules = [stage.command[1] for stage in check.STAGES if stage.command[1] != "pytest"]
    assert all(importlib.util.find_spec(module) for module in modules) and len(modules) == len(check.STAGES) - 1
    assert all((check.ROOT / path).exists() for path in check.STAGES[0].command[-2:])


def test_stages_find_the_packages_that_were_carried(tmp_path: Path) -> None:
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried" / "only_there.py").write_text("")
    stage = check.Stage("imports", ("-c", "import only_there"), 20.0, ending="")
    assert not check.run(stage, tmp_path, 60.0)["ok"] and check.run(stage, tmp_path, 60.0, (tmp_path / "carried",))["ok"]
