"""A machine with a GPU may have torch, numpy and little else: the engine serves there, its workers on threads, and gpu-check's stages can start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hetserve.bench.gpu import __main__ as check
from hetserve.engine.model.make import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]

# What hetserve installs for itself, and what only its planners and fits use. Everything else the machine has, or torch and transformers bring it.
LACKING = """
import importlib.abc, sys

class Lacking(importlib.abc.MetaPathFinder):
    names = {"msgspec", "zmq", "psutil", "starlette", "fastapi", "uvicorn", "httptools", "uvloop", "aiohttp", "prometheus_client", "ortools", "scipy"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Lacking())
"""

SERVES = """
import sys
from pathlib import Path

from hetserve.bench.gpu.engines import Ask, device, make_plan, serve
from hetserve.planner.options import Options
from hetserve.spec.cluster import Cluster
from hetserve.spec.load import load_model
from hetserve.spec.plan import Limits, Online
from hetserve.systems import system

folder = Path(sys.argv[1])
spec = load_model(folder)
one, other = device("a", "cpu"), device("b", "cpu")
options = Options(dtype="float32", max_model_len=96, kv_memory_bytes=8 << 20, max_seqs=8)
planned = system("uniform").planner(Cluster("one", one.cores, (one,)), spec, None, options)
dealt = make_plan(spec, [one, other], [(spec.layers, "a", "b")], 2000, Limits(96, 8, 64, 2, 8), "float32", Online("even", 0.01))
moved = False
asks = [Ask([(7 * i + 3 * j) % 250 + 5 for j in range(20 + i)], 12) for i in range(4)]
hetis = make_plan(spec, [one, other], [(spec.layers, "a", "b")], 2000, Limits(96, 8, 64, 2, 8), "float32", Online("dealt", 0.5), "hetis")
for plan in (planned, dealt, hetis):
    (served,), stats = serve(plan, folder, [asks])
    print([answer.tokens for answer in served.answers])
    moved = moved or stats["moves_total"] > 0
print(moved)
"""

IMPORTS = """
import hetserve.bench.gpu.__main__, hetserve.bench.gpu.kernels, hetserve.bench.gpu.registers, hetserve.bench.gpu.wheels
import hetserve.bench.gpu.tokens, hetserve.bench.gpu.steps, hetserve.bench.gpu.serving, hetserve.bench.gpu.profiled, hetserve.bench.gpu.table
import hetserve.profile.child, hetserve.profile.attention, hetserve.profile.dense, hetserve.profile.link, hetserve.profile.contention
hetserve.bench.gpu.__main__.machine.describe()
"""


def python(code: str, *arguments: str) -> list[str]:
    """The lines a Python prints that runs `code`."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("models") / "tiny")


def test_the_engine_serves_there_as_everywhere(folder: Path) -> None:
    """One device by a planner's plan, and two with head groups that move; the same tokens, and those of a machine that has everything."""
    alone, dealt, hetis, moved = python(LACKING + SERVES, str(folder))
    assert alone == dealt == hetis and moved == "True"
    assert python(SERVES, str(folder)) == [alone, dealt, hetis, moved]


def test_what_gpu_check_runs_is_imported_there() -> None:
    python(LACKING + IMPORTS)


def test_the_op_tests_are_found_there() -> None:
    """Without hypothesis and pytest-timeout too; one that draws its examples is skipped, and others of its file run."""
    lacking = LACKING.replace('"msgspec"', '"msgspec", "hypothesis"') + "\nimport os; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'"
    targets = [argument for argument in check.STAGES[0].command if argument.startswith("tests/")]
    chosen = ["-q", "-p", "no:cacheprovider", "-k", "cuda and not emulated or any_batch or no_items", *targets]
    (summary,) = [line for line in python(f"{lacking}\nimport pytest; pytest.main({chosen})") if " skipped" in line]
    assert "passed" in summary and "failed" not in summary and "error" not in summary
    assert int(re.search(r"(\d+) skipped", summary)[1]) > 300


def test_flashinfer_can_compile_before_hetserve_is_built() -> None:
    python(
        LACKING.replace('"msgspec"', '"msgspec", "hetserve._C"').replace('name.partition(".")[0] in', "name in") + "import hetserve.bench.gpu.rivals"
    )


def test_the_machine_of_these_tests_does_lack_it() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        python(LACKING + "import msgspec")
