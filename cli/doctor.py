"""`hetserve doctor`: what this machine has, what hetserve will use of it, and what to type where something is missing.

It changes nothing. Exit code 5 when hetserve cannot run here, 3 when a link is not what the cluster file declares, after saying why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import ResourceError, SpecError

if TYPE_CHECKING:
    from hetserve.spec.cluster import Cluster

    from .console import Screen

GIB = 2**30
ROUNDS = 3


@click.command()
@click.option("--cluster", default="cpu", show_default=True, help="A file in workloads/clusters, by name or path: what it would use.")
@click.option("--quick", is_flag=True, help="Measure nothing: neither the memory's read bandwidth nor declared links (a few seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(cluster: str, quick: bool, as_json: bool) -> None:
    """What this machine has (cores, instruction sets, memory, GPUs, torch, vLLM), and what hetserve will use of it."""
    from .console import Screen

    screen = Screen(as_json)
    facts = examine(screen, cluster, quick)
    screen.json(facts)
    screen.table("this machine", ["", "has", "use"], rows(facts))
    screen.table(f"cluster {facts['cluster']['name']}", ["device", "kind", "cores", "isa", "memory", "stretch"], device_rows(facts["cluster"]))
    if facts["links"]:
        columns = ["from", "to", "declared latency", "measured", "declared rate", "measured", "", "fault"]
        screen.table("links", columns, link_rows(facts["links"]), right=(2, 3, 4, 5))
    for fault in facts["missing"]:
        screen.say(f"missing: {fault['what']}; type: {fault['type']}")
    if any(fault["needed"] for fault in facts["missing"]):
        raise ResourceError("hetserve cannot run a model on this machine yet.", hint=facts["missing"][0]["type"])
    refuse_links(facts["cluster"]["name"], facts["links"])


def examine(screen: Screen, cluster: str, quick: bool) -> dict[str, Any]:
    """Everything doctor reports, ready for JSON. Sizes in bytes, bandwidths in bytes per second."""
    from dataclasses import asdict

    from hetserve import machine
    from hetserve.spec.cluster import require_cores
    from hetserve.spec.load import load_cluster, this_host

    devices = load_cluster(cluster)
    require_cores(devices, this_host())
    with screen.progress("looking around"):
        torch = _torch()
        kernels, fault = _kernels()
        facts: dict[str, Any] = {
            "machine": machine.describe(),
            "cluster": asdict(devices),
            "torch": torch,
            "kernels": kernels,
            "kernels_fault": fault,
            "net_fault": _net_fault(),
            "nvcc": machine.nvcc(),
            "baselines": {"vllm": _vllm()},
        }
    facts["read_bytes_per_s"] = None if quick else _read_bandwidth(screen, facts["machine"])
    facts["missing"] = missing(facts)
    ready = not quick and not any(fault["needed"] for fault in facts["missing"])
    facts["links"] = _links(screen, devices) if ready and devices.links else []
    return facts


def missing(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What is not here, what to type to get it, and whether nothing works without it; what is needed comes first. CUDA is missed where the machine
    has a GPU, and needed where the cluster has one."""
    wanted = [
        (facts["torch"], "torch", "make install", True),
        (facts["kernels"], f"the compiled kernels ({facts['kernels_fault']})", "make install", True),
        *((False, what, command, bool(_gpus_of(facts["cluster"]))) for what, command in _gpu_faults(facts)),
        (facts["baselines"]["vllm"], "a real vLLM to compare with", "hetserve baseline install vllm", False),
    ]
    faults = [{"what": what, "type": command, "needed": needed} for there, what, command, needed in wanted if not there]
    return sorted(faults, key=lambda fault: not fault["needed"])


def rows(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table for people: what, what is here, what becomes of it."""
    here, kernels, torch, vllm = facts["machine"], facts["kernels"], facts["torch"], facts["baselines"]["vllm"]
    caches = ", ".join(f"{name.upper()} {size / 2**10:,.0f} KiB" for name, size in here["caches"].items())
    quota = f", limited to {here['cpu_quota']:g} cores' time" if here["cpu_quota"] else ""
    return [
        ("CPU", here["cpu"], ""),
        ("cores", f"{here['cores']} of {here['cores_total']}{quota}", _cores_use(facts["cluster"])),
        ("instruction sets", " ".join(here["isa"]) or "none we have fast kernels for", _kernel_use(kernels)),
        ("memory", f"{_gib(here['memory_bytes'])}, {_gib(here['memory_free_bytes'])} free", _memory_use(facts["cluster"])),
        ("caches", caches or "unknown", ""),
        ("read bandwidth", _bandwidth(facts["read_bytes_per_s"]), "what bounds decode attention"),
        ("GPUs", _gpu_names(here["gpus"]) or "none", _gpu_use(facts) if here["gpus"] else ""),
        ("nvcc", _nvcc(facts["nvcc"]), "CUDA kernels are built" if kernels and kernels["cuda"] else "CUDA kernels are not built"),
        ("Python, torch", f"{here['python']}, {torch['version'] if torch else 'no torch'}", _torch_use(facts["net_fault"]) if torch else "needed"),
        ("vLLM", _baseline(vllm), "bench --baseline vllm" if vllm else "nothing to compare with"),
    ]


def device_rows(cluster: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cluster's devices, for people."""
    return [
        (
            *(one["name"], _kind(one), _listed(one["cores"]), one["isa"] or ("native" if one["kind"] == "cpu" else ""), _gib(one["memory_bytes"])),
            "" if one["stretch"] is None else f"dense {one['stretch']['dense']:g}, attention {one['stretch']['attention']:g}: emulated",
        )
        for one in cluster["devices"]
    ]


def link_rows(links: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Declared links beside what was measured, for people."""
    return [
        (
            *(one["link"]["source"], one["link"]["target"], f"{one['link']['latency_s'] * 1e6:,.0f} us", f"{one['latency_s'] * 1e6:,.0f} us"),
            *(f"{one['link']['bytes_per_s'] / 1e9:,.2f} GB/s", f"{one['bytes_per_s'] / 1e9:,.2f} GB/s"),
            *("emulated" if one["link"]["emulate"] else "", one["fault"]),
        )
        for one in links
    ]


def refuse_links(cluster: str, links: list[dict[str, Any]]) -> None:
    """Raises SpecError if a declared link is not what the machine has."""
    wrong = [one for one in links if one["fault"]]
    if wrong:
        ends = f"{wrong[0]['link']['source']!r} to {wrong[0]['link']['target']!r}"
        raise SpecError(
            f"cluster {cluster!r}: the link from {ends} is {wrong[0]['fault']}", "correct its [[link]]; a link may be off by a factor of 2"
        )


def _links(screen: Screen, cluster: Cluster) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from hetserve.profile.links import measure_declared
    from hetserve.profile.tasks import FULL

    with screen.progress("measuring declared links") as advance:
        return [asdict(one) | {"fault": one.fault} for one in measure_declared(cluster, FULL, advance)]


def _cores_use(cluster: dict[str, Any]) -> str:
    workers = "; ".join(f"{device['name']} on {_listed(device['cores'])}" for device in cluster["devices"])
    return f"cluster {cluster['name']}: {workers}; control on {_listed(cluster['control_cores'])}"


def _memory_use(cluster: dict[str, Any]) -> str:
    budgets = "; ".join(f"{device['name']} {_gib(device['memory_bytes'])}" for device in cluster["devices"])
    return f"weights and KV cache: {budgets}"


def _listed(cores: Sequence[int]) -> str:
    """Core numbers, briefly: 0-3,8."""
    ends = [core for core in cores if core + 1 not in cores]
    starts = [core for core in cores if core - 1 not in cores]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True))


def _kernel_use(kernels: dict[str, Any] | None) -> str:
    if kernels is None:
        return "kernels are not built"
    others = [isa for isa in kernels["isas"] if isa != kernels["isa"]]
    return f"kernels run {kernels['isa']}" + (f"; HETSERVE_ISA can force {', '.join(others)}" if others else "")


def _torch_use(net_fault: str) -> str:
    return "matrix multiplications; messages posted from " + (f"Python (hetserve._net: {net_fault})" if net_fault else "C++")


def _gpu_names(gpus: list[dict[str, Any]]) -> str:
    return ", ".join(f"{gpu['name']} ({_gib(gpu['memory_bytes'])})" for gpu in gpus)


def _gpu_faults(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Why GPUs that are here cannot be used, and what to type."""
    torch, kernels, found = facts["torch"], facts["kernels"], []
    if not facts["machine"]["gpus"]:
        return []
    if torch and not torch["cuda"]:
        plain = torch["version"].partition("+")[0]
        found.append((f"a torch that can use GPUs (this {torch['version']} was built without CUDA)", f"pip install --force-reinstall torch=={plain}"))
    elif torch and not torch["gpus"]:
        found.append((f"GPUs for torch (built for CUDA {torch['cuda']}, it finds none: an older driver, or CUDA_VISIBLE_DEVICES?)", "nvidia-smi"))
    if kernels and not kernels["cuda"]:
        why = "hetserve was built without them" if facts["nvcc"] else "nvcc 12 or newer, which builds them, is not here"
        found.append((f"the CUDA kernels ({why})", "rm .venv/.installed; make install"))
    return found


def _gpus_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [device for device in cluster["devices"] if device["kind"] == "cuda"]


def _gpu_use(facts: dict[str, Any]) -> str:
    if _gpu_faults(facts) or not (facts["torch"] and facts["kernels"]):
        return "not used: see what is missing"
    used = "; ".join(f"{device['name']} on GPU {device['index']}" for device in _gpus_of(facts["cluster"]))
    return f"cluster {facts['cluster']['name']}: {used}" if used else "not used by this cluster; --cluster gpu and gpu-plus-cpu do"


def _kind(device: dict[str, Any]) -> str:
    return f"{device['kind']} {device['index']}" if device["kind"] == "cuda" else str(device["kind"])


def _nvcc(found: dict[str, str] | None) -> str:
    return f"{found['release']}, {found['path']}" if found else "none"


def _baseline(found: dict[str, Any] | None) -> str:
    return f"{found['version']} ({found['device']}), {found['folder']}" if found else "not installed"


def _bandwidth(measured: dict[str, float] | None) -> str:
    if measured is None:
        return "not measured"
    return f"{measured['one_core'] / 1e9:.1f} GB/s one core, {measured['all_cores'] / 1e9:.1f} GB/s all"


def _read_bandwidth(screen: Screen, here: dict[str, Any]) -> dict[str, float]:
    from hetserve import machine

    enough = max(GIB, 4 * max(here["caches"].values(), default=0))
    size_bytes = min(enough, (here["memory_free_bytes"] or 4 * enough) // 4)
    cores = machine.usable_cores()
    with screen.progress("measuring read bandwidth", total=2 * ROUNDS) as advance:
        return {
            "one_core": machine.read_bandwidth(cores[:1], size_bytes, ROUNDS, advance),
            "all_cores": machine.read_bandwidth(cores, size_bytes, ROUNDS, advance),
        }


def _torch() -> dict[str, Any] | None:
    try:
        import torch
    except ImportError:
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "cpu": capability, "cuda": torch.version.cuda, "gpus": gpus}


def _kernels() -> tuple[dict[str, Any] | None, str]:
    """What the compiled extension says of itself; or None, and why it could not be loaded."""
    try:
        from hetserve import _C

        return dict(_C.info()), ""
    except (ImportError, ValueError) as error:  # not built; or HETSERVE_ISA names what this CPU lacks
        return None, str(error)


def _net_fault() -> str:
    """Why messages are posted from Python; empty: they are not."""
    try:
        import torch  # noqa: F401  # it stands on torch's libraries, which have to be there first

        from hetserve import _net  # noqa: F401
    except ImportError as error:  # not built, for another torch, or HETSERVE_NET is off
        return str(error)
    return ""


def _vllm() -> dict[str, Any] | None:
    from dataclasses import asdict

    from hetserve.bench import vllm_install

    from .baseline import baselines_folder

    found = vllm_install.listed(baselines_folder(None))
    return asdict(found[0]) if found else None


def _gib(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / GIB:.2f}".removesuffix("0") + " GiB"
