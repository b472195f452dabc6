"""python -m hetserve.bench.gpu FOLDER: every stage a process of its own with a limit of its own, its result written at once.

A stage that fails or takes too long costs its own result and no other's; what is left when WHOLE_S is over is not run. Needs torch, pybind11, cmake
and nvcc, and no virtual environment: the kernels are built into `build/gpu`, for this machine's GPU alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetserve import machine
from hetserve.bench.gpu import wheels

ROOT = wheels.ROOT
BUILD = ROOT / "build" / "gpu"


@dataclass(frozen=True)
class Stage:
    """One result file.

    Attributes:
        command: what runs, with Python's own path in front and the path of its result behind.
        limit_s: after which it is killed.
        ending: of the result's name, which the stage's begins; empty: it writes none.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    ending: str = ".json"


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"hetserve.bench.gpu.{name}", *arguments)


# In order of worth. A quick stage leaves its time to those after it.
OP_TESTS = ("-m", "pytest", "-q", "--maxfail=20", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-k", "cuda and not emulated")
ENGINE_TESTS = tuple(f"tests/engine/test_{name}.py" for name in ("device_sampler", "staged", "mover_devices"))
STAGES = (
    Stage("ops", (*OP_TESTS, "tests/ops", *ENGINE_TESTS), 120, ending=""),
    Stage("decode", _module("kernels", "decode"), 110),
    Stage("engine", _module("tokens"), 80),
    Stage("step", _module("steps"), 80),
    Stage("profile", _module("profiled"), 65, ending=".toml"),
    Stage("prefill", _module("kernels", "prefill"), 40),
    Stage("pages", _module("kernels", "pages", "rows"), 40),
    Stage("serving", _module("serving"), 110),
)
# Beside the first stage, which is not timed; no result of its own.
FLASHINFER = Stage("flashinfer", _module("kernels", "flashinfer", str(BUILD / "flashinfer.json")), 110, ending="")
BUILD_S = 150.0
WHEELS_S = 30.0
WHOLE_S = 530.0
LEAST_S = 10.0  # a stage with less time left is not begun


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
    fault = build()
    if not gpu:
        names = ", ".join(stage.name for stage in STAGES)
        print(fault or f"no GPU on this machine: the kernels compile (make cuda-all: for every architecture), and nothing was run ({names})")
        return 1 if fault else 0
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"command": "make gpu-check", "machine": machine.describe(), "stages": {}}
    summary["stages"]["build"] = {"ok": not fault, "seconds": time.monotonic() - started_s, "output": fault}
    packages, summary["wheels"] = wheels.unpacked(wheels.FOLDER, ROOT / "build" / "wheels", WHEELS_S)
    print(summary["wheels"] or f"wheels installed into {packages}")
    _write(folder / "summary.json", summary)
    path = (packages,) if packages else ()
    for stage in () if fault else STAGES:
        aside = begin(FLASHINFER, folder, path) if stage is STAGES[0] else None
        begun_s = time.monotonic()
        try:
            summary["stages"][stage.name] = run(stage, folder, WHOLE_S - (begun_s - started_s), path)
        finally:
            if aside is not None:
                summary["flashinfer"] = end(aside, max(0.0, FLASHINFER.limit_s - (time.monotonic() - begun_s)))
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


def run(stage: Stage, folder: Path, left_s: float, packages: Sequence[Path] = ()) -> dict[str, Any]:
    """Runs one stage; its output is shown as it comes.

    Args:
        left_s: what is left of the time for all.
        packages: folders of Python packages, behind hetserve's own on the path.
    """
    limit_s, command = min(stage.limit_s, left_s), " ".join(("python3", *stage.command))
    if limit_s < LEAST_S and limit_s < stage.limit_s:
        return {"ok": False, "exit": f"not begun: {max(0.0, left_s):.0f} s were left", "seconds": 0.0, "command": command}
    started_s = time.monotonic()
    print(f"--- {stage.name}", flush=True)
    code = end(begin(stage, folder, packages), limit_s)
    return {"ok": code == 0, "exit": code, "seconds": time.monotonic() - started_s, "command": command}


def begin(stage: Stage, folder: Path, packages: Sequence[Path]) -> subprocess.Popen[bytes]:
    """Starts a stage, in a process group of its own."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HETSERVE_TEST_GPU": "required", "FLASHINFER_WORKSPACE_BASE": str(BUILD)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"), *map(str, packages))))
    result = [str(folder / f"{stage.name}{stage.ending}")] if stage.ending else []
    return subprocess.Popen([sys.executable, *stage.command, *result], cwd=ROOT, env=environment, start_new_session=True)


def end(process: subprocess.Popen[bytes], limit_s: float) -> int | str:
    """Waits for a stage, and ends whatever is left of it: nothing of it may hold the GPU any longer. Returns its exit code, or why it has none."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"killed after {limit_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
