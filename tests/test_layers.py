"""Who may import whom (DESIGN section 4), held over every import and #include in the tree, imports inside functions too.

The rule is the table below. Each kind of violation is also planted in a made-up tree, so that the checks are known to be able to fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

EVERYWHERE = ("errors", "spec")  # what every layer may use, besides itself
MESSAGES = ("control.messages", "control.codec")  # what an executor knows of the control plane: the words, and their bytes
RUNNABLE = (
    *("systems", "drive", "planner", "sim", "engine", "control", "policy", "cost", "solve", "trace", "metrics", "machine", "catalog"),
    *("_C", "_net"),
)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "spec": (),
    "machine": (),
    "catalog": (),
    "solve": (),
    "policy": ("solve",),
    "cost": ("catalog",),
    "planner": ("cost", "solve", "catalog"),
    "control": ("policy", "cost"),
    "drive": ("control",),
    "sim": (*MESSAGES, "cost"),
    "engine": (*MESSAGES, "_C", "_net"),
    "systems": ("planner", "policy", "cost"),
    "trace": (),
    "metrics": (),
    "bench": RUNNABLE,
    "profile": RUNNABLE,
    "reproduce": (*RUNNABLE, "bench", "profile"),
    "cli": (*RUNNABLE, "bench", "profile", "reproduce"),
}
# The one file that joins an executor, a controller, a system's policies and the loop into something a server can hold; and gpu-check's stage that
# runs `hetserve profile` where the command line cannot.
ASSEMBLY = {"engine.engine": ("control", "drive", "systems"), "bench.gpu.profiled": ("profile",)}

ONLY_CLI = ("click", "rich")
NO_TORCH = ("errors", "spec", "machine", "solve", "policy", "cost", "planner", "control", "drive", "sim", "systems", "trace", "metrics")

# `policy`, `control`, `solve`, and `spec` but its load.py: no clocks, randomness, I/O or torch.
# A list of what is allowed cannot be outwitted by a new library.
PURE = ("policy", "control", "solve", "spec")
READS_FILES = ("spec.load", "spec.host")
PURE_MODULES = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum", "fractions", "functools", "hashlib"),
    *("heapq", "itertools", "json", "math", "operator", "re", "struct", "textwrap", "types", "typing"),
    *("numpy", "scipy", "ortools", "msgspec", "hetserve"),
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}

INCLUDE_MAY: dict[str, tuple[str, ...]] = {
    "include": (),
    "ref": ("include",),
    "cpu": ("include",),
    "cuda": ("include",),
    "net": ("include",),
    "bind": ("include", "ref", "cpu", "cuda"),
    "bench": ("include", "ref", "cpu", "cuda"),
}
FOREIGN_ONLY_IN = {  # what an include begins with: the layers that may have it
    r"pybind11/|Python\.h": ("bind", "net"),
    r"torch/|ATen/|c10/": ("net",),
    r"cuda|cublas|nccl|mma\.h|cooperative_groups": ("cuda",),
}
READ_ENVIRONMENT = ("csrc/cpu/isa.cpp", "csrc/net/module.cpp")  # HETSERVE_ISA, HETSERVE_NET


# ------------------------------------------------------------------------------------------------------------ Python


def python_files(root: Path) -> Iterator[tuple[str, ast.Module, Path]]:
    """(module name below `hetserve`, its tree, its path) of every file of the package and of cli/."""
    for folder, prefix in ((root / "hetserve", ""), (root / "cli", "cli.")):
        for path in sorted(folder.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_text()), path


def imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name the file imports, wherever in the file, relative ones and import_module("...") resolved."""
    here = ["hetserve", *module.split(".")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1 if is_package else node.level
            base = here[: len(here) - up] if node.level else []
            yield from (".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value).lstrip(".")


def python_violations(root: Path) -> list[str]:
    """One line for each import that the tables forbid."""
    found = []
    for module, tree, path in python_files(root):
        layer = module.split(".")[0]
        if not module or module == "__init__":
            continue
        where = path.relative_to(root)
        if layer not in MAY_IMPORT:
            found.append(f"{where}: layer {layer!r} is in no table")
            continue
        for name in imported(tree, module, path.name == "__init__.py"):
            found += [f"{where}: {why}" for why in _forbidden(module, layer, name)]
    return found


def _forbidden(module: str, layer: str, name: str) -> Iterator[str]:
    top, _, below = name.partition(".")
    if top == "hetserve" and below:
        allowed = (layer, *EVERYWHERE, *MAY_IMPORT[layer], *ASSEMBLY.get(module, ()))
        if not any(below == one or below.startswith(one + ".") for one in allowed):
            yield f"{layer} may not import {below}"
    if top in ONLY_CLI and layer != "cli":
        yield f"only cli uses {top}"
    if top == "torch" and layer in NO_TORCH:
        yield f"{layer} does without torch"
    if layer in PURE and module not in READS_FILES and top not in PURE_MODULES:
        yield f"{layer} is pure and may not import {top}"
    if layer in PURE and name.startswith("numpy.random"):
        yield f"{layer} has no randomness"


def impure_uses(root: Path) -> list[str]:
    """One line for each use, in a pure layer, of a call that reads, writes or is random."""
    found = []
    for module, tree, path in python_files(root):
        if module.split(".")[0] not in PURE or module in READS_FILES:
            continue
        for node in ast.walk(tree):
            what = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if what in IMPURE_CALLS or re.match(r"(np|numpy)\.(random|load|save|fromfile|memmap)\b", what):
                found.append(f"{path.relative_to(root)}:{node.lineno}: {what}")  # type: ignore[attr-defined]
    return found


def environment_reads(root: Path) -> list[str]:
    """One line for each setting read from the environment outside cli/. Handing the whole environment to a child is no reading."""
    found = []
    for module, tree, path in python_files(root):
        if module.split(".")[0] == "cli":
            continue
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.expr) else ""
            reads = (
                (isinstance(node, ast.Call) and re.match(r"(os\.)?(getenv|environb?\.(get|pop|setdefault))\(", text))
                or (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and re.match(r"(os\.)?environb?\[", text))
                or (isinstance(node, ast.Compare) and re.search(r" in (os\.)?environb?$", text))
            )
            if reads:
                found.append(f"{path.relative_to(root)}:{node.lineno}: {text}")  # type: ignore[attr-defined]
    return found


# --------------------------------------------------------------------------------------------------------------- C++


def include_violations(root: Path) -> list[str]:
    """One line for each #include that the tables forbid, and each getenv outside the two files that choose."""
    csrc = root / "csrc"
    found = []
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in {".h", ".hpp", ".cuh", ".cpp", ".cu", ".inc"}:
            continue
        where, layer = path.relative_to(root), path.relative_to(csrc).parts[0]
        text = path.read_text()
        if layer not in INCLUDE_MAY:
            found.append(f"{where}: layer {layer!r} is in no table")
            continue
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
            target = _included_layer(csrc, path, name)
            if target and target != layer and target not in INCLUDE_MAY[layer]:
                found.append(f"{where}: {layer} may not include {name}")
            homes = [homes for begins, homes in FOREIGN_ONLY_IN.items() if re.match(begins, name) and not target]
            found += [f"{where}: {layer} may not include {name}" for allowed in homes if layer not in allowed]
        if re.search(r"\bgetenv\b", text) and where.as_posix() not in READ_ENVIRONMENT:
            found.append(f"{where}: only {' and '.join(READ_ENVIRONMENT)} read the environment")
    return found


def _included_layer(csrc: Path, path: Path, name: str) -> str | None:
    """The layer of csrc an include points into; None for a header from elsewhere."""
    if name.startswith("hetserve/"):
        return "include"
    for base in (path.parent, csrc):
        target = (base / name).resolve()
        if target.is_relative_to(csrc.resolve()) and target.exists():
            return target.relative_to(csrc.resolve()).parts[0]
    return None


# ------------------------------------------------------------------------------------------------------------- tests


def test_imports_follow_the_arrows() -> None:
    assert python_violations(ROOT) == []


def test_policy_and_control_are_pure() -> None:
    assert impure_uses(ROOT) == []


def test_settings_come_from_the_command_line_alone() -> None:
    assert environment_reads(ROOT) == []


def test_includes_follow_the_arrows() -> None:
    assert include_violations(ROOT) == []


def test_the_tables_have_no_cycle() -> None:
    """Layers in the tables can be put in an order in which each imports only earlier ones."""
    assembly = {name: (*needs, name.split(".")[0]) for name, needs in ASSEMBLY.items()}  # sits above the rest of its package
    left = {layer: {name.split(".")[0] for name in may} - {"_C", "_net"} for layer, may in (MAY_IMPORT | assembly).items()}
    while left:
        ready = [layer for layer, needs in left.items() if not needs & left.keys()]
        assert ready, f"a cycle among {sorted(left)}"
        left = {layer: needs for layer, needs in left.items() if layer not in ready}


PLANTED = [
    ("hetserve/solve/a.py", "from hetserve.cost import roofline", python_violations),
    ("hetserve/policy/a.py", "def f():\n    from hetserve.control import pages", python_violations),
    ("hetserve/policy/a.py", "from time import monotonic", python_violations),
    ("hetserve/control/a.py", "import torch", python_violations),
    ("hetserve/control/a.py", "from ..engine import worker", python_violations),
    ("hetserve/control/a.py", "import importlib\nimportlib.import_module('hetserve.engine')", python_violations),
    ("hetserve/control/a.py", "from numpy import random", python_violations),
    ("hetserve/control/__init__.py", "from . import messages\nfrom .. import sim", python_violations),
    ("hetserve/engine/a.py", "from hetserve.control.controller import Controller", python_violations),
    ("hetserve/engine/a.py", "from hetserve.control import pages", python_violations),
    ("hetserve/engine/a.py", "import rich.table", python_violations),
    ("hetserve/sim/a.py", "if True:\n    import hetserve.engine.executor", python_violations),
    ("hetserve/bench/a.py", "from hetserve.cli.console import Screen", python_violations),
    ("hetserve/bench/a.py", "import click", python_violations),
    ("hetserve/spec/plan.py", "from pathlib import Path", python_violations),
    ("hetserve/newcomer/a.py", "", python_violations),
    ("hetserve/policy/a.py", "import numpy as np\nx = np.random.rand()", impure_uses),
    ("hetserve/control/a.py", "print('here')", impure_uses),
    ("hetserve/spec/model.py", "open('config.json')", impure_uses),
    ("hetserve/engine/a.py", "import os\nx = os.environ['HOME']", environment_reads),
    ("hetserve/engine/a.py", "import os\nx = os.getenv('HOME')", environment_reads),
    ("hetserve/engine/a.py", "from os import environ\nx = 'HOME' in environ", environment_reads),
    ("csrc/ref/a.cpp", "#include <pybind11/pybind11.h>", include_violations),
    ("csrc/bind/a.cpp", "  #  include <torch/extension.h>", include_violations),
    ("csrc/include/hetserve/a.h", '#include "../../cpu/isa.h"', include_violations),
    ("csrc/cpu/a.cpp", '#include "ref/ops.h"', include_violations),
    ("csrc/ref/a.cpp", "#include <cuda_runtime.h>", include_violations),
    ("csrc/bind/a.cpp", 'auto x = std::getenv("HOME");', include_violations),
    ("csrc/net/a.cpp", '#include "cpu/isa.h"', include_violations),
    ("csrc/net/a.h", 'auto x = std::getenv("HETSERVE_NET");', include_violations),
    ("csrc/include/hetserve/a.h", "#include <torch/csrc/utils/pybind.h>", include_violations),
]


@pytest.mark.parametrize(("path", "text", "check"), PLANTED)
def test_a_planted_violation_is_found(tmp_path, path, text, check) -> None:
    for header in ("csrc/cpu/isa.h", "csrc/ref/ops.h"):
        (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / header).write_text("#include <vector>\n#include <hetserve/ops.h>\n")
    assert check(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text + "\n")
    assert any(line.startswith(path) for line in check(tmp_path))


ALLOWED = [
    ("hetserve/control/a.py", "import numpy as np\nfrom . import messages\nfrom ..policy import batch\nfrom hetserve.spec.plan import Plan"),
    ("hetserve/engine/a.py", "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nchild = dict(os.environ)\nfrom hetserve import _C, errors"),
    ("hetserve/spec/load.py", "from pathlib import Path\nopen('x')"),
    ("cli/a.py", "import click, os\nx = os.environ.get('HETSERVE_DEBUG')\nfrom .console import Screen"),
    ("csrc/cpu/isa.cpp", '#include "isa.h"\n#include <hetserve/ops.h>\nauto x = getenv("HETSERVE_ISA");'),
    ("csrc/net/module.cpp", '#include <torch/csrc/utils/pybind.h>\n#include "net/a.h"\n#include <hetserve/run.h>\nauto x = getenv("HETSERVE_NET");'),
]


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_passes(tmp_path, path, text) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text + "\n")
    for check in (python_violations, impure_uses, environment_reads, include_violations):
        assert check(tmp_path) == []


def test_no_two_test_modules_share_a_name() -> None:
    """pytest imports them by their names alone, and stops at the second: a folder by itself passes."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
