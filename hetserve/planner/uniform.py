"""The plainest plan: one group, all layers on one device, the fastest. What everything else is compared with."""

from __future__ import annotations

from hetserve.cost.rates import device_rates
from hetserve.cost.roofline import Roofline, token_pages
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.options import Options
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import MOST_PAGES, PAGE_TOKENS, Group, Limits, Plan, PlanModel, Pool, Stage, page_bytes
from hetserve.spec.workload import Workload

KV_BYTES = 4 * 2**30  # a CPU device's memory is the machine's: unless told otherwise, KV takes no more of it than this
MIB = 2**20


def plan_uniform(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """One mixed group on the device with the highest dense rate (the first of equals).

    Raises:
        ResourceError: the device's budget does not hold the weights and one sequence of max_model_len tokens.
        UsageError: options that contradict each other.
    """
    if options.max_step_tokens < options.max_seqs:
        raise UsageError(f"a step of {options.max_step_tokens} tokens has no room for {options.max_seqs} decoding sequences", "lower --max-num-seqs")
    dtype = options.dtype or ("float32" if model.dtype == "float32" else "bfloat16")
    device = max(cluster.devices, key=lambda one: device_rates(one, dtype).dense_flops)
    cost = Roofline(model, dtype, device_rates(device, dtype))
    layers = (0, model.layers)
    size_bytes = page_bytes(model, layers, dtype)
    pages = _kv_bytes(device, cost, options) // size_bytes
    usable = options.max_seqs * token_pages(model.max_positions) * model.kv_heads
    pages = min(pages, MOST_PAGES if options.kv_memory_bytes else min(usable, MOST_PAGES))
    limits = Limits(
        max_model_len=_model_len(model, pages, size_bytes, device, options),
        max_seqs=options.max_seqs,
        max_step_tokens=options.max_step_tokens,
        steps_in_flight=options.steps_in_flight,
        max_waiting=options.max_waiting,
    )
    stage = Stage(layers, (device.name,), (), (Pool(device.name, pages, size_bytes),), dtype)
    return Plan("uniform", PlanModel(model, dtype), cluster, limits, (Group("mixed", (stage,)),))


def _kv_bytes(device: Device, cost: Roofline, options: Options) -> int:
    """How much of the device's budget KV pages may take."""
    weights, workspace = cost.weight_bytes(), cost.workspace_bytes(options.max_step_tokens, options.max_seqs)
    left = device.memory_bytes - weights - workspace
    if left <= 0 or options.kv_memory_bytes > left:
        wanted = f", {options.kv_memory_bytes / MIB:,.0f} MiB of KV" if options.kv_memory_bytes else ""
        raise ResourceError(
            f"device {device.name!r} has a budget of {device.memory_bytes / MIB:,.0f} MiB, but {cost.model.name} in {cost.dtype} needs "
            f"{weights / MIB:,.0f} MiB of weights, {workspace / MIB:,.0f} MiB of workspace{wanted}",
            "give the device more memory in its cluster file, less KV memory, or take a smaller model",
        )
    return options.kv_memory_bytes or min(left, KV_BYTES)


def _model_len(model: ModelSpec, pages: int, size_bytes: int, device: Device, options: Options) -> int:
    """The longest sequence: what the user asked for, or as much of the model's own limit as the pages hold."""
    if options.max_model_len > model.max_positions:
        raise ResourceError(f"{model.name} takes at most {model.max_positions} tokens, not {options.max_model_len}", "lower --max-model-len")
    held = pages // model.kv_heads * PAGE_TOKENS
    needed = options.max_model_len or min(model.max_positions, held)
    if held < max(needed, 2):
        wanted_mib = token_pages(max(needed, 2)) * model.kv_heads * size_bytes / MIB
        raise ResourceError(
            f"device {device.name!r} has room for the KV of {held} tokens, one sequence of {max(needed, 2)} needs {wanted_mib:,.1f} MiB",
            "give more KV memory, or lower --max-model-len",
        )
    return needed
