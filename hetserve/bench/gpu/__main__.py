"""python -m hetserve.bench.gpu FOLDER: every stage a process of its own with a limit of its own, its result written at once.

A stage that fails or takes too long costs its own result and no other's. Needs torch, pybind11, cmake and nvcc, and no virtual environment: the
kernels are built into `build/gpu`, for this machine's GPU alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetserve import machine

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "gpu"


@dataclass(frozen=True)
class Stage:
    """One result file.

    Attributes:
        command: what runs, with Python's own path in front; it may write `name`.json into the folder that ends it.
        limit_s: after which it is killed.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    writes: bool = True


# In order of worth. Limits add up to under nine minutes.
OP_TESTS = ("-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", "-k", "cuda and not emulated", "tests/ops")
STAGES = (
    Stage("ops", OP_TESTS, 150, writes=False),
    Stage("decode", ("-m", "hetserve.bench.gpu.kernels", "decode"), 120),
    Stage("pages", ("-m", "hetserve.bench.gpu.kernels", "pages"), 45),
    Stage("prefill", ("-m", "hetserve.bench.gpu.kernels", "prefill"), 45),
    Stage("rows", ("-m", "hetserve.bench.gpu.kernels", "rows"), 30),
)
BUILD_S = 150.0


def main() -> int:
    if len(sys.argv) != 2:
        print("error: one argument, the folder for results\nhint: make gpu-check RESULT_DIR=results/gpu/20260101", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    gpu = bool(machine.gpus())
    if not gpu and machine.nvcc() is None:
        print("no GPU and no nvcc on this machine: nothing was compiled, and nothing was run")
        return 0
    started_s = time.monotonic()
    summary: dict[str, Any] = {"command": "make gpu-check", "machine": machine.describe(), "stages": {}}
    fault = build()
    if not gpu:
        print(fault or "no GPU on this machine: the kernels compile (make cuda-all: for every architecture), and nothing was run")
        return 1 if fault else 0
    folder.mkdir(parents=True, exist_ok=True)
    summary["stages"]["build"] = {"ok": not fault, "seconds": time.monotonic() - started_s, "output": fault}
    _write(folder / "summary.json", summary)
    for stage in () if fault else STAGES:
        summary["stages"][stage.name] = run(stage, folder)
        _write(folder / "summary.json", summary)
    for name, result in summary["stages"].items():
        print(f"{name:10} {'ok' if result['ok'] else 'FAILED':7} {result['seconds']:6.1f} s")
    return 0 if all(result["ok"] for result in summary["stages"].values()) else 1


def build() -> str:
    """Builds hetserve._C for this Python and this GPU beside its sources; the end of the output if it failed."""
    import pybind11  # of the Python that runs this

    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DHETSERVE_CUDA=on"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DPYBIND11_FINDPYTHON=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'hetserve'}"]
    if found := machine.nvcc():
        configure += [f"-DCMAKE_CUDA_COMPILER={found['path']}"]
    end_s = time.monotonic() + BUILD_S
    for command in (configure, ["cmake", "--build", str(BUILD), "--target", "_C", "--parallel"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, end_s - time.monotonic()))
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            return (done.stdout + done.stderr)[-8000:]
    return ""


def run(stage: Stage, folder: Path) -> dict[str, Any]:
    """Runs one stage; its output is shown as it comes."""
    started_s = time.monotonic()
    command = [sys.executable, *stage.command, *([str(folder / f"{stage.name}.json")] if stage.writes else [])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HETSERVE_TEST_GPU": "required"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    print(f"--- {stage.name}", flush=True)
    try:
        code: int | str = subprocess.run(command, cwd=ROOT, env=environment, timeout=stage.limit_s).returncode
    except subprocess.TimeoutExpired:
        code = f"killed after {stage.limit_s:g} s"
    return {"ok": code == 0, "exit": code, "seconds": time.monotonic() - started_s, "command": " ".join(("python3", *stage.command))}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
