"""python -m hetserve.bench.gpu FOLDER: every stage a process of its own with a limit of its own, its result written at once.

A stage that fails or takes too long costs its own result and no other's; what is left when WHOLE_S is over is not run. Needs torch, pybind11, cmake
and nvcc, and no virtual environment: the kernels are built into `build/gpu`, for this machine's GPU alone. In the end a table (table.py).
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetserve import machine
from hetserve.bench.gpu import report, table, wheels

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


# In order of worth: what is judged first. A quick stage leaves its time to those after it; if all are slow, the last still has its own engine's time.
OP_TESTS = ("-m", "pytest", "-q", "--maxfail=20", "--continue-on-collection-errors", "-p", "no:cacheprovider", "-k", "cuda and not emulated")
ENGINE_TESTS = tuple(f"tests/engine/test_{name}.py" for name in ("device_sampler", "staged", "mover_devices"))
STAGES = (
    Stage("ops", (*OP_TESTS, "tests/ops", *ENGINE_TESTS), 110, ending=""),
    Stage("decode", _module("kernels", "pages", "decode"), 95),
    Stage("engine", _module("tokens"), 60),
    Stage("step", _module("steps"), 60),
    Stage("profile", _module("profiled"), 70, ending=".toml"),
    Stage("prefill", _module("kernels", "prefill", "rows", "transfers"), 35),
    Stage("serving", _module("serving"), 110),
)
# Beside the build and the first stage, of which nothing is timed; no results of their own, and nobody waits for them.
RIVALS = tuple(Stage(name, _module("rivals", way), 0, ending="") for way, name in (("cores", "flashinfer"), ("tensor", "flashinfer on tensor cores")))
BUILD_S = 300.0  # far more than 16 cores need; what it leaves is better than nothing, and the folder is used again
WHEELS_S = 60.0  # beside the build
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
    if gpu:
        return check(folder)
    fault = build()
    names = ", ".join(stage.name for stage in STAGES)
    print(fault or f"no GPU on this machine: the kernels compile (make cuda-all: for every architecture), and nothing was run ({names})")
    return 1 if fault else 0


def check(folder: Path) -> int:
    """Builds, runs all stages on this machine's GPU and prints what they found."""
    started_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / f"{stage.name}{stage.ending}" for stage in STAGES if stage.ending):
        old.unlink(missing_ok=True)  # of an earlier run: a stage that writes nothing must not seem to have
    summary: dict[str, Any] = {"command": "make gpu-check", "machine": machine.describe(), "stages": {}, "flashinfer": {}}
    rivals: dict[str, subprocess.Popen[bytes]] = {}
    with ThreadPoolExecutor(1) as aside:
        preparing = aside.submit(prepare, folder, rivals)
        try:
            fault = build()
            summary["stages"]["build"] = {"ok": not fault, "seconds": time.monotonic() - started_s, "output": fault}
            path, summary["wheels"] = preparing.result()
            print(summary["wheels"] or f"wheels installed into {path[0]}", flush=True)
            for stage in () if fault else STAGES:
                if stage is not STAGES[0]:
                    summary["flashinfer"] |= {name: end(rivals.pop(name), 0.0) for name in list(rivals)}
                summary["stages"][stage.name] = run(stage, folder, WHOLE_S - (time.monotonic() - started_s), path)
                _write(folder, summary)
        finally:
            preparing.result()
            summary["flashinfer"] |= {name: end(rivals.pop(name), 0.0) for name in list(rivals)}
            _write(folder, summary)
    for partly in folder.glob(f".*{report.PARTLY}"):  # a stage was killed while it wrote
        partly.unlink()
    print(fault, told(folder, summary), sep="\n")
    return 0 if all(result["ok"] for result in summary["stages"].values()) else 1


def prepare(folder: Path, rivals: dict[str, subprocess.Popen[bytes]]) -> tuple[tuple[Path, ...], str]:
    """Installs the wheels and has FlashInfer begin to compile. Returns what the wheels add to Python's path, and why they add nothing."""
    packages, why = wheels.unpacked(wheels.FOLDER, ROOT / "build" / "wheels", WHEELS_S)
    path = (packages,) if packages else ()
    if packages or machine.package_version("flashinfer-python") is not None:
        rivals.update({stage.name: begin(stage, folder, path) for stage in RIVALS})
    return path, why


def build() -> str:
    """Builds hetserve._C for this Python and this GPU beside its sources; the end of the output if it failed."""
    import pybind11  # of the Python that runs this

    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DHETSERVE_CUDA=on"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DPYBIND11_FINDPYTHON=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'hetserve'}", "-DHETSERVE_CUDA_FLAGS=-lineinfo"]  # for compute-sanitizer's reports
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


def _write(folder: Path, summary: dict[str, Any]) -> None:
    """What is known so far: a kill of this process too loses only what follows."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "table.md").write_text(told(folder, summary) + "\n")


def told(folder: Path, summary: dict[str, Any]) -> str:
    """The table; a fault in it is no reason to end the run."""
    try:
        return table.table(folder, summary)
    except Exception as error:
        return f"no table: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
