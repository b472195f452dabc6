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
HEAD_BYTES, TASK_BYTES, MERGE_BYTES, PAGE_ID_BYTES, FLOAT_BYTES, WORD_BYTES = 8, 36, 24, 4, 4, 4
MOST_BLOCKS = {CUDA: 2 * 192, EMULATED: 4}  # at once: two for each of a GPU's processors, of which the largest today has 188

# cuBLAS's workspace, 32 MiB for each thread and stream on Hopper: of the thread that loads and captures and, in-process, the one that runs steps; and
# the allocator's rounding
LIBRARY_BYTES = {CUDA: 96 * 2**20, EMULATED: 0}
# What the driver keeps of captured work, for each layer of each graph, whole or in pieces. Not measured here: vLLM's logs tell of 6 MiB a graph of
# 16 layers (its pull request 11349) and of 24 to 28 MiB a graph of a larger model (22897), buffers included.
GRAPH_BYTES = {CUDA: 2**20, EMULATED: 0}
LEAST_ROWS = 256  # that a plan which grows has room for from the start
GROWN = 2  # one that has grown has room for twice what the step needed, and meanwhile the one before is there too
CAPTURED = 8  # rows of all captured steps together, in units of the largest's: powers of two and what lies half-way, whole and in pieces
INPUTS = 3  # words of a row of a captured step, beside a slot for each of its head groups


def plan_bytes(kind: str, model: ModelSpec, items: int, item_rows: int, pages: int, words: int) -> int:
    """At least what a plan in device memory with so much room takes, `words` numbers of its user's among it: slots, and inputs of rows."""
    spare = MOST_BLOCKS[kind] * TASKS_PER_BLOCK
    tiles = items + item_rows // max(1, TILE_VECTORS // model.group)
    tasks, merges = tiles + spare, min(2 * spare // 3, tiles)
    partials = (spare + merges) * max(model.group, TILE_VECTORS)
    listed = (words * WORD_BYTES, items * HEAD_BYTES, tasks * TASK_BYTES, merges * MERGE_BYTES, pages * PAGE_ID_BYTES)
    arrays = (*listed, partials * (model.head_dim + 2) * FLOAT_BYTES)
    return sum(arrays) + (1 + len(arrays)) * ALIGN


def primary_bytes(kind: str, model: ModelSpec, layers: int, weights: str, rows: int, seqs: int, pages: int, last: bool, ranks: int = 1) -> int:
    """Beside the workspace that a CPU needs too: a plan for captured decode steps, one for others, and what every captured step holds.

    Args:
        layers: of the stage.
        rows, seqs: of the largest step.
        pages: of one head group of the longest sequence.
        last: whether the stage has the output matrix.
        ranks: that share the heads.
    """
    heads = -(-model.kv_heads // ranks)
    captured = plan_bytes(kind, model, seqs * heads, seqs * heads, seqs * heads * pages, seqs * (heads + INPUTS))
    held = CAPTURED * seqs * (2 * model.hidden + -(-2 * (model.q_dim + model.kv_dim) // ranks) + (model.vocab if last else 0))
    numbers = held + seqs * row_numbers(model, ranks)  # what one leaves for another or for the host stays, the rest they share
    plans = captured + _growing(kind, model, seqs * heads, rows * heads, pages, heads)
    return plans + numbers * DTYPE_BYTES[weights] + 2 * captured_steps(seqs) * (layers + 1) * GRAPH_BYTES[kind] + LIBRARY_BYTES[kind]


def captured_steps(seqs: int) -> int:
    """At least as many as there are numbers of rows that steps are captured for: 1, 2, 4, 8, two for each power of two above, and `seqs`."""
    return 5 + 2 * max(0, (seqs - 1).bit_length() - 4)


def attention_worker_bytes(kind: str, model: ModelSpec, seqs: int, pages: int) -> int:
    """Beside the messages: its plan, in which every head group is an item with one row."""
    items = seqs * model.kv_heads
    return _growing(kind, model, items, items, pages, 1)


def _growing(kind: str, model: ModelSpec, items: int, item_rows: int, pages: int, groups: int) -> int:
    """A plan that has grown to what is needed, and the one before."""
    most_items, most_rows, most_pages = (max(LEAST_ROWS * groups, GROWN * needed) for needed in (items, item_rows, items * pages))
    return GROWN * plan_bytes(kind, model, most_items, most_rows, most_pages, most_rows)  # each row of an item has a slot
