"""What Hetis' experiments share: its testbed, models and workloads, and the layouts its paper gives the baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hetserve.catalog import rows
from hetserve.planner.options import Options
from hetserve.reproduce.setup import Requests
from hetserve.spec.workload import Workload
from hetserve.trace import datasets

TESTBED = "hetis-testbed"
LLAMA_70B = "Llama-2-70B"
MODELS = ("Llama-2-13B", "OPT-30B", LLAMA_70B)
DATASETS = {"sharegpt": "SG", "humaneval": "HE", "arxiv": "LB"}  # by the names of trace files: what the paper calls what they stand for
LONGEST = 4096  # tokens of a request, or what the model takes
COUNT = 1000

OPTIONS = Options()  # 256 sequences at once and 1024 tokens a step for every group of every system


def requests(dataset: str, model: str, data: Path | None, count: int = COUNT) -> Requests:
    """Of a workload, those that the model takes."""
    return Requests(dataset, count, min(LONGEST, rows.model(model).max_positions), data)


def mean_load(drawn: datasets.Workload) -> Workload:
    """What planners are told of requests."""
    lengths = drawn.lengths
    count = len(lengths.input_tokens)
    return Workload(sum(lengths.input_tokens) / count, sum(lengths.output_tokens) / count)


def options_for(model: str) -> Options:
    """OPTIONS, with room for the longest request."""
    return replace(OPTIONS, max_model_len=min(LONGEST, rows.model(model).max_positions))
