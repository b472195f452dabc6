"""Builds hetserve._C and, where torch's headers are, hetserve._net with CMake; installs hetserve/, cli/ (as hetserve.cli) and workloads/."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"

REQUIRES = [
    "aiohttp>=3.9",
    "click>=8.1",
    "httptools>=0.6",
    "jinja2>=3.1",
    "msgspec>=0.18",
    "numpy>=1.26",
    "ortools>=9.10",
    "pandas>=2.1",
    "prometheus-client>=0.20",
    "psutil>=5.9",
    "pyzmq>=25",
    "rich>=13",
    "safetensors>=0.4",
    "scipy>=1.11",
    "starlette>=0.37",
    "tokenizers>=0.21",
    "torch>=2.11",
    "transformers>=5",
    "uvicorn>=0.30",
    "uvloop>=0.19",
]
EXTRAS = {
    "plot": ["matplotlib>=3.8"],
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "httpx>=0.27",
        "openai>=1.40",
        "networkx>=3.2",
        "matplotlib>=3.8",
        "ruff>=0.6",
        "mypy>=1.11",
        "build>=1.2",
        "pandas-stubs",
        "types-psutil",
    ],
}


class CMakeBuild(build_ext):
    """Runs CMake for each extension and puts the library where setuptools wants it (beside the sources in an editable install)."""

    def build_extensions(self) -> None:
        import pybind11

        self.build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        self.torch = torch_folder()
        configure = ["cmake", "-S", str(ROOT), "-B", str(self.build), "-DCMAKE_BUILD_TYPE=Release", f"-DTORCH_FOLDER={self.torch or ''}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DPYBIND11_FINDPYTHON=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        configure += [f"-DHETSERVE_CUDA={os.environ.get('HETSERVE_CUDA', 'auto')}"]
        configure += [f"-DHETSERVE_CUDA_STRICT={'ON' if os.environ.get('CI') else 'OFF'}"]  # a warning or a spilled register is an error
        if shutil.which("ninja") and not (self.build / "Makefile").exists():
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        name, target = ext.name.rpartition(".")[2], Path(self.get_ext_fullpath(ext.name))
        fault = "" if self.torch or not ext.optional else "torch's headers were not found"
        if not fault and subprocess.run(["cmake", "--build", self.build, "--target", name, "--parallel", str(os.cpu_count() or 1)]).returncode:
            fault = f"cmake could not build {name}"
        if fault:
            for stale in (target, ROOT / "hetserve" / target.name):
                stale.unlink(missing_ok=True)
            raise CompileError(fault)  # an optional extension's is only a warning
        target.parent.mkdir(parents=True, exist_ok=True)
        built = next(self.build.glob(f"{name}.*.so"))
        temporary = target.with_suffix(".new")
        shutil.copyfile(built, temporary)
        temporary.replace(target)  # a process that runs the old one keeps it


def torch_folder() -> Path | None:
    """Where torch is installed, if its headers for process groups are there too."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    return folder if folder is not None and (folder / "include/torch/csrc/distributed/c10d/Backend.hpp").exists() else None


def packages() -> list[str]:
    """hetserve and its subpackages, hetserve.cli from cli/, hetserve.workloads from workloads/."""
    cli = ["hetserve.cli", *(f"hetserve.cli.{name}" for name in find_packages("cli"))]
    return [*find_packages(include=["hetserve", "hetserve.*"]), *cli, "hetserve.workloads"]


setup(
    name="hetserve",
    version=VERSION,
    description="Serves one LLM over unlike devices, and measures what that is worth",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages(),
    package_dir={"hetserve": "hetserve", "hetserve.cli": "cli", "hetserve.workloads": "workloads"},
    package_data={
        "hetserve": ["*.pyi", "py.typed"],
        "hetserve.catalog": ["*.toml", "fits/*"],
        "hetserve.reproduce": ["*.toml"],
        "hetserve.workloads": ["clusters/*", "runs/*", "lengths/*", "sources/*"],
    },
    include_package_data=False,
    ext_modules=[Extension("hetserve._C", sources=[]), Extension("hetserve._net", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hetserve = hetserve.cli.main:main"]},
    zip_safe=False,
)
