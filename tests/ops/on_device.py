"""The op tests' calls on a CUDA device: arguments are copied there, whole storages with what lies around a view, and everything is copied back.

The tests themselves know nothing of it: they call `hetserve._C` with tensors on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hetserve import _C

OPS = ("kv_store", "page_copy", "page_gather", "page_scatter", "heads_pack", "heads_unpack")
OPS += ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "rope", "silu_mul", "argmax")
KvPool, DevicePlan = _C.KvPool, _C.DeviceAttentionPlan  # the real ones
BLOCKS = 264  # about what `AttentionPlan.tasks` is asked about; the device's own number decides what runs


def need_gpu() -> None:
    """Skips the test where there is no GPU, or fails it where HETSERVE_TEST_GPU=required says that there should be one."""
    if _C.info()["cuda"] and torch.cuda.is_available():
        return
    what = "no GPU, or a build without CUDA kernels"
    if os.environ.get("HETSERVE_TEST_GPU") == "required":
        pytest.fail(what)
    pytest.skip(what)


class Pool:
    """Stands for a KvPool: made anew on the device for every call, from the memory that the test looks at."""

    bytes = staticmethod(KvPool.bytes)

    def __init__(self, storage: torch.Tensor, *shape: Any) -> None:
        self.here = None if storage.dtype == torch.float16 else KvPool(storage, *shape)  # for its checks; a CPU has no float16
        self.storage, self.shape = storage, shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.here, name)


class Plan:
    """Stands for an AttentionPlan."""

    def __init__(self, pool: Pool, items: Any, page_ids: Any, rows: int, q_heads_total: int, group: int, threads: int = 0) -> None:
        self.pool, self.rows, self.heads, self.group = pool, rows, q_heads_total, group
        self.given, self.page_ids = torch.as_tensor(items).clone(), torch.as_tensor(page_ids).clone()
        tasks, merges, _ = _C.device_split(self.given, group, threads or BLOCKS)
        self.items, self.tasks, self.merges, self.threads = len(self.given), len(tasks), len(merges), threads or BLOCKS


class Calls:
    """Calls on `device`; `copies` of one call share what shares memory."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.real = {name: getattr(_C, name) for name in (*OPS, "attention")}

    def op(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self._run(self.real[name], arguments)

        return call

    def attention(self, plan: Plan, layer: int, q: torch.Tensor, out: torch.Tensor, scale: float, window: int = 0) -> None:
        def run(pool: Any, q: torch.Tensor, out: torch.Tensor) -> None:
            most = (max(1, len(plan.given)), max(1, int(plan.given[:, 1].sum())), max(1, len(plan.page_ids)))
            device_bytes, host_bytes = DevicePlan.bytes(pool, plan.group, *most)
            memory = torch.full((device_bytes,), 0xFF, dtype=torch.uint8, device=self.device)
            staging = torch.empty(host_bytes, dtype=torch.uint8, pin_memory=self.device != "cpu")
            made = DevicePlan(pool, plan.heads, plan.group, *most, memory, staging)
            made.set(plan.given, plan.page_ids, plan.rows)
            self.real["attention"](made, layer, q, out, scale, window)

        self._run(run, (plan.pool, q, out))

    def _run(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        pools: list[tuple[torch.Tensor, torch.Tensor]] = []

        def there(argument: Any) -> Any:
            if isinstance(argument, Pool):
                memory = next((copy for original, copy in pools if original is argument.storage), None)
                if memory is None:
                    memory = argument.storage.to(self.device, copy=True)
                    pools.append((argument.storage, memory))
                return KvPool(memory, *argument.shape)
            if isinstance(argument, np.ndarray):
                return torch.from_numpy(argument).to(self.device, copy=True)
            if not isinstance(argument, torch.Tensor) or argument.numel() == 0:
                return argument.to(self.device) if isinstance(argument, torch.Tensor) else argument
            storage = argument.untyped_storage()
            if storage.data_ptr() not in storages:
                flat = torch.empty(0, dtype=argument.dtype).set_(storage)
                storages[storage.data_ptr()] = (flat, flat.to(self.device, copy=True))
            copy = storages[storage.data_ptr()][1]
            return copy.view(argument.dtype).as_strided(argument.shape, argument.stride(), argument.storage_offset())

        function(*map(there, arguments))
        for original, copy in [*storages.values(), *pools]:
            original.copy_(copy)


def use_device(patch: pytest.MonkeyPatch, device: str) -> None:
    """From now on the ops of `_C` run on that device ("cpu": the emulated one)."""
    calls = Calls(device)
    for name in OPS:
        patch.setattr(_C, name, calls.op(name))
    patch.setattr(_C, "attention", calls.attention)
    patch.setattr(_C, "KvPool", Pool)
    patch.setattr(_C, "AttentionPlan", Plan)
