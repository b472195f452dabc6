"""What a worker on a GPU allocates beside weights and KV, bounded from the step's limits alone: attention plans, and what captured steps hold.

The planner may not ask the kernels (`_C.DeviceAttentionPlan.bytes`), nor does it know the GPU; tests hold these bounds against what they say.
"""

from __future__ import annotations

from hetserve.cost.roofline import row_numbers
from hetserve.spec.cluster import CUDA, EMULATED
from hetserve.spec.model import DTYPE_BYTES, ModelSpec

# csrc/include/hetserve/device_plan.h and csrc/cuda/plan.cpp, csrc/bind/device_attention.cpp
TILE_VECTORS = 64
TASKS_PER_BLOCK = 4
ALIGN = 256
HEAD_BYTES, TASK_BYTES, MERGE_BYTES, PAGE_ID_BYTES, FLOAT_BYTES = 8, 36, 24, 4, 4
MOST_BLOCKS = {CUDA: 2 * 192, EMULATED: 4}  # at once: two for each of a GPU's processors, of which the largest today has 188

LIBRARY_BYTES = {CUDA: 64 * 2**20, EMULATED: 0}  # cuBLAS's workspace, 32 MiB a stream on Hopper, and the allocator's rounding
LEAST_ROWS = 256  # that a plan which grows has room for from the start
GROWN = 2  # one that has grown has room for twice what the step needed, and meanwhile the one before is there too
CAPTURED = 8  # rows of all captured steps together, in units of the largest's: powers of two and what lies half-way, whole and in pieces


def plan_bytes(kind: str, model: ModelSpec, items: int, item_rows: int, pages: int) -> int:
    """At least what a plan in device memory with so much room takes."""
    spare = MOST_BLOCKS[kind] * TASKS_PER_BLOCK
    tiles = items + item_rows // max(1, TILE_VECTORS // model.group)
    tasks, merges = tiles + spare, min(2 * spare // 3, tiles)
    partials = (spare + merges) * max(model.group, TILE_VECTORS)
    arrays = (items * HEAD_BYTES, tasks * TASK_BYTES, merges * MERGE_BYTES, pages * PAGE_ID_BYTES, partials * (model.head_dim + 2) * FLOAT_BYTES)
    return sum(arrays) + (1 + len(arrays)) * ALIGN


def primary_bytes(kind: str, model: ModelSpec, weights: str, rows: int, seqs: int, pages: int, last: bool, ranks: int = 1) -> int:
    """Beside the workspace that a CPU needs too: a plan for captured decode steps, one for others, and what every captured step holds.

    Args:
        rows, seqs: of the largest step.
        pages: of one head group of the longest sequence.
        last: whether the stage has the output matrix.
        ranks: that share the heads.
    """
    heads = -(-model.kv_heads // ranks)
    captured = plan_bytes(kind, model, seqs * heads, seqs * heads, seqs * heads * pages)
    held = CAPTURED * seqs * (2 * model.hidden + -(-2 * (model.q_dim + model.kv_dim) // ranks) + (model.vocab if last else 0))
    numbers = held + seqs * row_numbers(model, ranks)  # what one leaves for another or for the host stays, the rest they share
    return captured + _growing(kind, model, seqs * heads, rows * heads, pages, heads) + numbers * DTYPE_BYTES[weights] + LIBRARY_BYTES[kind]


def attention_worker_bytes(kind: str, model: ModelSpec, seqs: int, pages: int) -> int:
    """Beside the messages: its plan, in which every head group is an item with one row."""
    items = seqs * model.kv_heads
    return _growing(kind, model, items, items, pages, 1)


def _growing(kind: str, model: ModelSpec, items: int, item_rows: int, pages: int, groups: int) -> int:
    """A plan that has grown to what is needed, and the one before."""
    most = [max(LEAST_ROWS * groups, GROWN * needed) for needed in (items, item_rows, items * pages)]
    return GROWN * plan_bytes(kind, model, *most)
