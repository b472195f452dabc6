"""python -m hetserve.bench.gpu.wheels FOLDER: fills a folder with what hetserve installs and a GPU's machine may lack, to be carried there.

Wheels for Python 3.12 on x86-64 Linux, MOST_BYTES at most. pip alone fetches them, from wherever its configuration says. `make gpu-check` installs
what lies there (`unpacked`) into build/, and does without where nothing does.

FlashInfer comes with what its paged decode imports and no more: with all that it names it would be several times as large as the folder may be. So
would its compiled kernels; it compiles the two that are compared with on the GPU's machine, with the nvcc there. Of its versions one that is small:
the wheels of 0.7 are 62 MB each.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hetserve import machine

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".wheels"  # git does not see it
MOST_BYTES = 40 << 20
THERE = {"torch", "numpy", "click", "rich", "pandas", "transformers", "tokenizers", "safetensors"}  # on a machine with a GPU
FOR_TESTS = ("hypothesis>=6.100", "pytest-timeout>=2.3")
FLASHINFER = ("flashinfer-python==0.6.7.post3",)
FOR_FLASHINFER = ("apache-tvm-ffi<0.2", "einops", "nvidia-ml-py", "packaging", "requests", "tabulate", "tqdm")
PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_26_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        plain, flashinfer = Path(scratch, "plain"), Path(scratch, "flashinfer")
        if fault := fetch(plain, (*requirements(), *FOR_TESTS)):
            return _fail(f"pip could not fetch the wheels\n{fault}")
        if size_bytes(plain) > MOST_BYTES:
            return _fail(f"the wheels take {_mib(size_bytes(plain))}, and {_mib(MOST_BYTES)} is the most that is carried")
        missing = fetch(flashinfer, FLASHINFER, "--no-deps") or fetch(flashinfer, FOR_FLASHINFER)
        if not missing and size_bytes(plain, flashinfer) > MOST_BYTES:
            missing = f"{_mib(size_bytes(plain, flashinfer))} with it, and {_mib(MOST_BYTES)} is the most that is carried"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.whl"):
            old.unlink()
        for wheel in [*plain.iterdir(), *(() if missing else flashinfer.iterdir())]:
            shutil.copy(wheel, folder / wheel.name)
    said = f"; without FlashInfer: {missing.splitlines()[-1]}" if missing else ", FlashInfer among them"
    print(f"{len(list(folder.glob('*.whl')))} wheels, {_mib(size_bytes(folder))}, in {folder}{said}")
    return 0


def fetch(folder: Path, wanted: Sequence[str], *flags: str) -> str:
    """Has pip put the wheels of these packages, and of what they need, into a folder. Returns the end of what it said if it failed."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    asked = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms, "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *asked, *flags, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr)[-2000:].strip() or "pip failed" if done.returncode else ""


def size_bytes(*folders: Path) -> int:
    """Of all wheels in the folders."""
    return sum(wheel.stat().st_size for wheel in {wheel.name: wheel for folder in folders for wheel in folder.glob("*.whl")}.values())


def _fail(said: str) -> int:
    print(f"error: {said}", file=sys.stderr)
    return 1


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def requirements() -> list[str]:
    """What setup.py asks for and such a machine does not have."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRES":
            return [one for one in ast.literal_eval(node.value) if re.split(r"[<>=~! ]", one, maxsplit=1)[0] not in THERE]
    raise AssertionError("setup.py has no REQUIRES")


def unpacked(wheels: Path, into: Path, limit_s: float) -> tuple[Path | None, str]:
    """The folder that the wheels were installed into, for PYTHONPATH, and why there is none. What this Python has already is left out."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        return None, f"no wheels in {wheels.name}: `make gpu-wheels` fetches them where there is a network"
    lacking = [str(wheel) for wheel in found if machine.package_version(wheel.name.partition("-")[0]) is None]
    if not lacking:
        return None, "nothing of the wheels is missing here"
    flags = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(into)]
    try:
        done = subprocess.run([sys.executable, "-m", "pip", "install", *flags, *lacking], capture_output=True, text=True, timeout=limit_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"the wheels were not installed: {error}"
    return (None, f"the wheels were not installed: {done.stderr[-500:].strip()}") if done.returncode else (into, "")


if __name__ == "__main__":
    sys.exit(main())
