"""The data plane: kernels built from csrc/. Every function checks shape, stride, dtype, alignment and page ids and raises ValueError.

Tensors are torch tensors (read by duck typing); int32 arguments may be numpy arrays as well. T is float32 or bfloat16, the same for all arguments
of a call. Row tensors may be strided views as long as their last dimension is contiguous.

All tensors of a call are on the CPU, or all on one CUDA device (int32 arguments and pools too): then the op is put on torch's current stream and not
waited for, T may be float16 as well, and what is in int32 arguments is not checked. `linear` is for the CPU, `argmax` for CUDA devices.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

Tensor = Any  # a torch.Tensor on the CPU
Ints = Any  # int32: a torch.Tensor or a numpy array, contiguous

class Info(TypedDict):
    isa: str  # in use: ref, avx2, avx512, avx512bf16, amx
    isas: Sequence[str]  # usable here, slowest first
    cuda: bool
    compiler: str
    threads: int
    linear_rows: int  # up to how many rows linear() is worth calling instead of a library's product; 0: never

def info() -> Info: ...
def get_threads() -> int:
    """Threads an op may use: torch's number, for this thread."""

def set_threads(n: int) -> None:
    """The same setting as torch.set_num_threads(n); ValueError for n > 1 before torch is imported."""

def use_isa(name: str) -> None:
    """Switches the kernels of this process, for tests and benchmarks. Otherwise HETSERVE_ISA decides at import, or the best one is used."""

def advise_huge(storage: Tensor) -> bool:
    """Asks for huge pages under a tensor's memory (before it is first touched, to be of use); True if the system agreed."""

class KvPool:
    """Pages of KV over `storage`, which it keeps alive: [layers][pages][K then V][page_tokens * head_dim].

    storage: contiguous, 64-byte aligned, at least KvPool.bytes(...). A page is page_tokens tokens of one KV head.
    layout: "plain" K, V = [page_tokens, head_dim]; "packed" (what the vector kernels want) K = [head_dim/p][page_tokens][p],
    V = [page_tokens/p][head_dim][p], p = 2 for bfloat16 and 1 for float32.
    """

    def __init__(self, storage: Tensor, layers: int, pages: int, page_tokens: int, head_dim: int, dtype: Any, layout: str = "packed") -> None: ...
    @staticmethod
    def bytes(layers: int, pages: int, page_tokens: int, head_dim: int, dtype: Any) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def layer_page_bytes(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...

class AttentionPlan:
    """One step's attention work, checked and cut for threads; built once a step, run once a layer.

    items: int32 [n, 6] = (q_row, n_rows, head_group, page_begin, length, 0): rows q_row.. are consecutive tokens of one sequence, whose last sees
    `length` tokens and row i sees length - n_rows + 1 + i; query heads head_group * group .. + group - 1; pages page_ids[page_begin:].
    The ids used are copied: a page table may change once the plan is built. No two items may name the same row and head group.
    threads: 0 is get_threads().
    """

    def __init__(self, pool: KvPool, items: Ints, page_ids: Ints, rows: int, q_heads_total: int, group: int, threads: int = 0) -> None: ...
    @property
    def items(self) -> int: ...
    @property
    def tasks(self) -> int: ...
    @property
    def merges(self) -> int: ...
    @property
    def threads(self) -> int: ...

def attention(plan: AttentionPlan | DeviceAttentionPlan, layer: int, q: Tensor, out: Tensor, scale: float, window: int = 0) -> None:
    """out = softmax(scale * q K^T) V for the plan's rows and heads; the rest of out is left alone. q, out: T [rows, q_heads * head_dim]."""

def kv_store(pool: KvPool, layer: int, k: Tensor, v: Tensor, slots: Ints) -> None:
    """k, v: T [rows, kv_heads * head_dim]; slots: [rows, kv_heads] = page * page_tokens + offset, or -1 for a head not stored here."""

def page_copy(src_pool: KvPool, src_pages: Ints, dst_pool: KvPool, dst_pages: Ints, first_layer: int, last_layer: int) -> None:
    """Copies pages, between layouts too. last_layer is exclusive. A page may be written once, and not be another's source.

    One pool may be on a GPU and the other in pinned memory of the CPU, or on a GPU to which the first has a path: then the source's GPU copies (the
    target's, where the source is the CPU's), and src_pages and dst_pages are on it.
    """

def page_gather(pool: KvPool, pages: Ints, first_layer: int, last_layer: int, out: Tensor) -> None:
    """out: T [n, layers, 2, page_tokens, head_dim], plain; where the pool is on a GPU, also in pinned memory, or on another GPU as for page_copy."""

def page_scatter(pool: KvPool, pages: Ints, first_layer: int, last_layer: int, src: Tensor) -> None:
    """The reverse of page_gather, and src may be where its out may. Pages must be distinct."""

def heads_pack(x: Tensor, pairs: Ints, span: int, out: Tensor) -> None:
    """out[i] = heads pair[i].head * span .. + span - 1 of row pair[i].row. x: [rows, heads * head_dim], out: [m, span * head_dim]."""

def heads_unpack(src: Tensor, pairs: Ints, span: int, x: Tensor) -> None:
    """The reverse of heads_pack; the pairs must be distinct."""

def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float) -> None:
    """x, out: T [rows, dim] or [rows, heads, dim]; out may be x. The normalised value is rounded to T before the weight, as in transformers."""

def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, eps: float) -> None:
    """residual becomes residual + x (rounded to T), out its rms_norm."""

def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, eps: float) -> None: ...
def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, out: Tensor, eps: float) -> None: ...
def rope(q: Tensor, k: Tensor, positions: Ints, cos_sin: Tensor, head_dim: int) -> None:
    """Turns q and k in place, rotate-half, in float32. cos_sin: float32 [max_pos, 2, rot_dim / 2], cosines then sines; positions: [rows]."""

def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """out = silu(gate) * up. gate_up: T [rows, 2 * n], out: T [rows, n]."""

def argmax(x: Tensor, out: Ints) -> None:
    """out[i] = index of the largest element of row i, the lowest of several; a NaN is larger than any number. x: T [rows, n], out: [rows]."""

class DeviceAttentionPlan:
    """Attention of a pool on a CUDA device: what AttentionPlan is on the CPU, in memory of fixed size, so that one captured graph serves every step.

    Args:
        pool: on the device.
        q_heads_total, group: as for AttentionPlan.
        items, item_rows, pages: the most that a step may have: items, rows of all items together, page ids.
        memory: uint8 [n] on the device; staging: uint8 [n] on the CPU, best pinned; `bytes` says how many each needs.
        words: int32 numbers of the caller's own that go along with each step. They lie at byte `first_word` of memory, and of each half of staging.

    A captured graph keeps the q and out of its capture: no later step may have more rows. Run the step once before capturing it: a first launch
    loads its kernels. One stream at a time may run a plan.
    """

    def __init__(
        self, pool: KvPool, q_heads_total: int, group: int, items: int, item_rows: int, pages: int, memory: Tensor, staging: Tensor, words: int = 0
    ) -> None: ...
    @staticmethod
    def bytes(pool: KvPool, group: int, items: int, item_rows: int, pages: int, words: int = 0) -> tuple[int, int]:
        """(device, host)"""
    @property
    def first_word(self) -> int: ...
    @property
    def half(self) -> int:
        """The half of staging, 0 or 1, that the next step goes through, in turn: it is read meanwhile, so the step before the last must be done."""
    def set(self, items: Ints, page_ids: Ints, rows: int) -> None:
        """Checks a step, cuts it, and sends it to the device in one copy on the current stream; items and page_ids are on the CPU.

        Of page_ids only those that the items need are sent; pages counts these, an item's one after the other.
        """
    def most(self, rows: int) -> tuple[int, int]:
        """(tasks, merges): the blocks that attention for so many rows of q is launched with; no step of theirs has more."""

def device_split(items: Ints, group: int, blocks: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """How a step is cut for so many blocks at once: (tasks, merges, partials), the fields of csrc's AttentionTask and AttentionMerge in order."""

def device_capacity(items: int, item_rows: int, group: int, blocks: int) -> tuple[int, int, int]:
    """(tasks, merges, partials): no step of so many items and rows has more."""

def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, out: Tensor) -> None:
    """out = x W^T + bias, at least 0 where relu; bfloat16, summed in float32 and rounded once. For few rows: it reads the weight
    at nearly the speed of memory.

    x: [rows, inputs], out: [rows, outputs], bias: [outputs]; weight: [outputs / 64, inputs / 32, 16, 64, 2], where [o, i, p, c, e] is
    W[64 o + c, 32 i + 2 p + e] (oneDNN's AB16b64a2b), so inputs is a multiple of 32 and outputs of 64.
    """
