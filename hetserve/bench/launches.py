"""The adapters: how to start each system on the same model, cores, dtype, KV memory and window. A baseline is one function here.

The real vLLM gets what its authors ask for on a CPU (tcmalloc, Intel OpenMP, one OpenMP thread bound to each core); BASELINES' pitfalls are met here.
"""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hetserve.bench.process import Launch, free_port
from hetserve.bench.replicas import ReplicaLaunch
from hetserve.bench.vllm_install import VllmInstall
from hetserve.cost.costs import Costs
from hetserve.engine.process import ISA_CAPS
from hetserve.errors import BaselineError, BenchError, ResourceError, UnsupportedError
from hetserve.planner.options import Options
from hetserve.spec.cluster import CPU, CUDA, Cluster, Device
from hetserve.spec.host import this_host
from hetserve.spec.model import ModelSpec

GIB = 2**30
VLLM_BLOCK_TOKENS = {CPU: 128, CUDA: 16}  # vLLM's own defaults
VLLM_ENGINE = {CPU: "VLLM::Worker", CUDA: "VLLM::EngineCore"}  # what the process that computes calls itself
MOST_OF_A_GPU = 0.98  # vLLM wants to be asked for less than all
# A capped vLLM still runs AMX code of its own, which kills it unless the process has asked the kernel for the tiles first (x86-64: arch_prctl,
# ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). Every Python process imports this before anything else.
ASK_FOR_TILES = "import ctypes\nctypes.CDLL(None).syscall(158, 0x1023, 18)\n"
VLLM_NOISE = (" - leaked", " - ... skipped", "nanobind:")  # what a library of its prints by the hundred when it ends


@dataclass(frozen=True)
class Setup:
    """What every system compared gets alike.

    Attributes:
        model: the checkpoint's folder.
        served_name: the model's name in requests.
        kv_bytes: memory for the KV cache.
        kv_bytes_per_token: of this model in this dtype, all layers and heads.
        max_model_len: prompt and output of a request together, tokens.
    """

    model: Path
    served_name: str
    cluster: Cluster
    dtype: str
    kv_bytes: int
    kv_bytes_per_token: int
    max_model_len: int
    log_dir: Path

    @property
    def cores(self) -> tuple[int, ...]:
        """Every core the cluster names."""
        named = {core for device in self.cluster.devices for core in device.cores}
        return tuple(sorted(named | set(self.cluster.control_cores)))


def hetserve_launch(setup: Setup, where: tuple[str, ...], extra: str = "", name: str = "hetserve") -> Launch:
    """`hetserve serve` by this very Python.

    Args:
        where: the flags that say where it runs: --cluster NAME or --plan FILE.
        extra: more arguments, as one string.
        name: what results call it.
    """
    port = free_port()
    command = (
        *(sys.executable, "-m", "hetserve.cli.main", "serve", str(setup.model), *where),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", setup.served_name),
        *(() if where[0] == "--plan" else ("--dtype", setup.dtype, "--max-model-len", str(setup.max_model_len), "--kv-memory", str(setup.kv_bytes))),
        *shlex.split(extra),
    )
    hint = "run that command by hand to see it fail: " + shlex.join(command)
    return Launch(name, command, {}, setup.cores, f"http://127.0.0.1:{port}", setup.log_dir / f"{_file_name(name)}.log", BenchError, hint)


def vllm_launch(setup: Setup, install: VllmInstall, extra: str = "", name: str = "vllm") -> Launch:
    """The real `vllm serve` on the setup's one device; if that is capped to an instruction set, so is vLLM, as far as it can be.

    A GPU it gets alone (as CUDA numbers it), with as much of its memory as the device's budget is, and the same KV memory as everybody.

    Raises:
        UnsupportedError: a cluster that this version cannot give vLLM, or a build of vLLM for other devices.
        ResourceError: the KV memory does not hold one request of max_model_len.
    """
    device = _only_device(setup.cluster)
    if install.device != device.kind:
        raise UnsupportedError(f"device {device.name!r} is a {device.kind} device, and the vLLM in {install.folder} is built for {install.device}")
    port = free_port()
    command = (
        *(str(install.executable), "serve", str(setup.model), "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", setup.served_name, "--dtype", setup.dtype, "--max-model-len", str(setup.max_model_len)),
        "--no-enable-prefix-caching",  # every pair sends the same prompts, which must be computed each time
        *_vllm_blocks(setup, device.kind),
        *(_gpu_share(device) if device.is_gpu else ()),
        *shlex.split(extra),
    )
    environment: dict[str, str | None] = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "PYTHONFAULTHANDLER": "1",  # a crash of a process of its leaves a trace in the log
        **({"CUDA_VISIBLE_DEVICES": str(device.index)} if device.is_gpu else _on_cores(setup, device)),
        "LD_PRELOAD": ":".join(install.preload()) or None,
        **dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "HETSERVE_ISA")),
        **(_capped(device.isa, setup.log_dir) if device.isa else {}),
    }
    return Launch(
        name=name,
        command=command,
        environment=environment,
        cores=setup.cores,  # all of them: its worker binds itself only to cores that it may use from the start
        url=f"http://127.0.0.1:{port}",
        log=setup.log_dir / f"{_file_name(name)}.log",
        error=BaselineError,
        hint="`hetserve baseline remove vllm` and `hetserve baseline install vllm` make it anew",
        noise=VLLM_NOISE,
        control_cores=setup.cluster.control_cores,  # for its API and scheduler processes
        engine=VLLM_ENGINE[device.kind],
    )


def _on_cores(setup: Setup, device: Device) -> dict[str, str | None]:
    """Where on a CPU it computes, and its KV memory there, which it takes in whole GiB only."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(setup.kv_bytes / GIB)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, device.cores)),  # its own choice would leave a core idle
    }


def _gpu_share(device: Device) -> tuple[str, ...]:
    """How much of its GPU a device may use, as vLLM is told.

    Raises:
        ResourceError: there is no such GPU here.
    """
    gpus = this_host().gpus
    if device.index >= len(gpus):
        said = f"device {device.name!r} is GPU {device.index}, but this machine has {len(gpus)} NVIDIA GPUs"
        raise ResourceError(said, "`hetserve doctor` lists them")
    share = min(MOST_OF_A_GPU, device.memory_bytes / gpus[device.index])
    return ("--block-size", str(VLLM_BLOCK_TOKENS[CUDA]), "--gpu-memory-utilization", f"{share:.3f}")


def _vllm_blocks(setup: Setup, kind: str) -> tuple[str, ...]:
    """The blocks: one more than the memory holds, as the first never holds anything."""
    tokens = VLLM_BLOCK_TOKENS[kind]
    blocks = setup.kv_bytes // (tokens * setup.kv_bytes_per_token)
    if blocks * tokens < setup.max_model_len:
        raise ResourceError(
            f"--kv-memory {setup.kv_bytes:,} bytes holds {blocks * tokens:,} tokens, fewer than --max-model-len {setup.max_model_len:,}.",
            hint="a larger --kv-memory or a smaller --max-model-len",
        )
    return ("--num-gpu-blocks-override", str(blocks + 1))


def _only_device(cluster: Cluster) -> Device:
    if len(cluster.devices) != 1 or cluster.devices[0].kind not in VLLM_ENGINE or cluster.devices[0].stretch:
        raise UnsupportedError(
            f"cluster {cluster.name!r} has several devices, or one that is no CPU or GPU as it is; one vLLM is started on one such device",
            hint="--cluster cpu or cpu-1; --system NAME compares systems on several; or start vLLM yourself and give --baseline-url",
        )
    return cluster.devices[0]


def on_device(setup: Setup, device: Device, spec: ModelSpec) -> Setup:
    """The setup of one device of the cluster alone: what its budget leaves for KV beside weights and the workspace that planners count.

    Raises:
        ResourceError: the weights do not fit.
    """
    options = Options()
    alone = replace(setup.cluster, devices=(device,), links=())
    costs, layers = Costs(spec, setup.dtype, alone), (0, spec.layers)
    used_bytes = costs.weight_bytes(device.name, layers, setup.dtype)
    used_bytes += costs.workspace_bytes(device.name, layers, setup.dtype, options.max_step_tokens, options.max_seqs)
    kv_bytes = device.memory_bytes - used_bytes
    if kv_bytes <= 0:
        raise ResourceError(f"device {device.name!r} has no room for {spec.name}: its budget is {device.memory_bytes:,} bytes.")
    return replace(setup, cluster=alone, kv_bytes=kv_bytes)


def vllm_first_launch(setup: Setup, install: VllmInstall, spec: ModelSpec, extra: str = "") -> Launch:
    """The real vLLM on the cluster's first device alone, the fast one."""
    return vllm_launch(on_device(setup, setup.cluster.devices[0], spec), install, extra)


def vllm_replicas_launch(setup: Setup, install: VllmInstall, spec: ModelSpec, extra: str = "") -> ReplicaLaunch:
    """A real vLLM on every device whose budget holds the model and a request, requests dealt over them.

    Raises:
        ResourceError: there are no two such devices.
    """
    launches = []
    for device in setup.cluster.devices:
        try:
            launches.append(vllm_launch(on_device(setup, device, spec), install, extra, f"vllm on {device.name}"))
        except (ResourceError, UnsupportedError):
            continue
    if len(launches) < 2:
        what = f"only {len(launches)} of {len(setup.cluster.devices)} devices have room for the model and a request, and suit the installed vLLM"
        raise ResourceError(f"{what}: no replicas")
    return ReplicaLaunch("vllm-replicas", tuple(launches))


def vllm_all_launch(setup: Setup, install: VllmInstall, spec: ModelSpec, extra: str = "") -> Launch:
    """The real vLLM on all cores, uncapped, with all budgets together: other hardware than the cluster, for scale.

    Raises:
        UnsupportedError: the cluster has a GPU.
    """
    if any(device.is_gpu for device in setup.cluster.devices):
        raise UnsupportedError(f"cluster {setup.cluster.name!r} has a GPU, whose memory and that of cores are no one device's")
    cores = tuple(sorted({core for device in setup.cluster.devices for core in device.cores}))
    whole = Device("all", "cpu", cores, "", sum(device.memory_bytes for device in setup.cluster.devices))
    unbound = replace(setup, cluster=replace(setup.cluster, control_cores=cores))
    return vllm_launch(on_device(unbound, whole, spec), install, extra, "vllm-all")


def _capped(isa: str, folder: Path) -> dict[str, str | None]:
    """Environment that caps vLLM's libraries."""
    (folder / "tiles").mkdir(exist_ok=True)
    (folder / "tiles" / "sitecustomize.py").write_text(ASK_FOR_TILES)
    return {**ISA_CAPS.get(isa, {}), "PYTHONPATH": str(folder / "tiles")}


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name)
