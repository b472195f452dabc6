"""What decode attention elsewhere sends: head by head, as Hetis splits it, or along the sequence; bytes, and time with a message's fixed cost."""

from __future__ import annotations

from collections.abc import Mapping

from hetserve.catalog import rows
from hetserve.cost.costs import Costs
from hetserve.cost.volume import heads_bytes, sequence_bytes
from hetserve.reproduce.hetis_case import LLAMA_70B, TESTBED
from hetserve.reproduce.report import Cell, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.spec.load import load_cluster

BATCH = 64  # sequences of a step; ours
CASES = {"hetis-split-four": (1.0, 4), "hetis-split-one": (0.2, 1)}  # share of the head groups elsewhere, on so many devices


def run(setup: Setup) -> Report:
    """A token and layer of Llama-70B, from an A100 to P100s over the testbed's network."""
    model, cluster = rows.model(LLAMA_70B), load_cluster(TESTBED)
    wire = Costs(model, "float16", cluster, None).link_cost("a100-0", "p100-0")
    told: list[Mapping[str, Cell]] = []
    found: dict[str, Found] = {}
    for name, (share, devices) in CASES.items():
        by_heads, along = heads_bytes(model, share, "float16"), sequence_bytes(model, devices, "float16")
        # both ways over one wire, messages to several devices one after the other, each with its fixed cost
        seconds = [2 * devices * wire.beta_s + BATCH * size / wire.bytes_per_s for size in (by_heads, along)]
        found[name] = Found(along / by_heads if devices > 1 else seconds[1] / seconds[0], "bytes" if devices > 1 else f"time of a step of {BATCH}")
        told.append(
            {
                "elsewhere": f"{share:.0%} on {devices}",
                "head-wise, bytes": by_heads,
                "along the sequence, bytes": along,
                "ratio of bytes": along / by_heads,
                "head-wise, us": seconds[0] * 1e6,
                "along the sequence, us": seconds[1] * 1e6,
                "ratio of times": seconds[1] / seconds[0],
            }
        )
    return Report(found, (Table(f"A token and layer, {LLAMA_70B}; times of a step of {BATCH} sequences", "computed", tuple(told)),))
