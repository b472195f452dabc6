"""What Hetis' experiments share: its testbed, models and workloads, and the layouts its paper gives the baselines.

A baseline stands here twice: as the paper lays it out, and as this project's planner for that system does, with the same online policies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hetserve.catalog import rows
from hetserve.errors import ResourceError
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish
from hetserve.planner.estimate import together
from hetserve.planner.options import Options
from hetserve.planner.phases import matched
from hetserve.planner.pipeline import pipeline
from hetserve.reproduce.setup import Requests
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload
from hetserve.systems import system
from hetserve.trace import datasets

TESTBED = "hetis-testbed"
LLAMA_70B = "Llama-2-70B"
MODELS = ("Llama-2-13B", "OPT-30B", LLAMA_70B)
DATASETS = {"sharegpt": "SG", "humaneval": "HE", "longbench": "LB"}  # by the names of length tables: what the paper calls them
SUMMARIES = "gov_report,qmsum,multi_news"  # LongBench's English summaries
ANSWER = 512  # tokens of each
LONGEST = 4096  # tokens of a request, or what the model takes
SLOTS = 256  # sequences at once for each stage of a pipeline
MOST_STAGES = 4  # that slots are counted for
STEP_TOKENS = 2048

A100, RTX_A, RTX_B = tuple(f"a100-{n}" for n in range(4)), ("3090-a-0", "3090-a-1"), ("3090-b-0", "3090-b-1")
P100 = tuple(f"p100-{n}" for n in range(4))


def requests(dataset: str, model: str, data: Path | None, count: int = 1000) -> Requests:
    """Of a workload, those that the model takes; LongBench's prompts are cut to what leaves room for the answer, as its own runs do."""
    longest = longest_of(model)
    if dataset == "longbench":
        return Requests(dataset, count, longest, data, SUMMARIES, longest - ANSWER)
    return Requests(dataset, count, longest, data)


def longest_of(model: str) -> int:
    return min(LONGEST, rows.model(model).max_positions)


def mean_load(drawn: datasets.Workload) -> Workload:
    """What planners are told of requests."""
    lengths = drawn.lengths
    count = len(lengths.input_tokens)
    return Workload(sum(lengths.input_tokens) / count, sum(lengths.output_tokens) / count)


def options_for(model: str, slots: int = SLOTS) -> Options:
    return Options(max_model_len=longest_of(model), max_seqs=slots, max_step_tokens=STEP_TOKENS, max_waiting=100_000)


def plan_for(name: str, model: str, load: Workload) -> Plan:
    """The plan of a system, or, of "NAME as in the paper", of the layout that the paper gives it; a group has SLOTS for each stage of the longest.

    Raises:
        ResourceError: the model does not fit like this.
    """
    stages = max(len(group.stages) for group in _plan(name, model, load, SLOTS).groups)
    return _plan(name, model, load, SLOTS * min(stages, MOST_STAGES))


def _plan(name: str, model: str, load: Workload, slots: int) -> Plan:
    cluster, shape, options = load_cluster(TESTBED), rows.model(model), options_for(model, slots)
    base, _, paper = name.partition(" ")
    if paper:
        return PAPER[base](open_case(cluster, shape, load, options))
    return system(base).planner(cluster, shape, load, options)


def paper_hexgen(case: Case) -> Plan:
    """One pipeline of four stages, a type of GPU each, ranks inside (7.1)."""
    group = pipeline(case, [A100, RTX_A, RTX_B, P100])
    if group is None:
        raise _unfit(case, "HexGen's pipeline")
    return finish(case, "hexgen", together(case, [group]), ["as in Hetis' paper"])


def paper_splitwise(case: Case) -> Plan:
    """Prompts on all A100; two decode instances, each of two RTX 3090 and two P100 in two stages, ranks inside (7.1)."""
    prefill = pipeline(case, [A100], role="prefill")
    decode = [pipeline(case, [fast, slow], role="decode") for fast, slow in ((RTX_A, P100[:2]), (RTX_B, P100[2:]))]
    if prefill is None or None in decode:
        raise _unfit(case, "Splitwise's decode instance")
    phases = matched(case, together(case, [prefill]), together(case, [one for one in decode if one is not None]))
    return finish(case, "splitwise", phases.used, ["as in Hetis' paper"], flow=phases.flow)


PAPER: dict[str, Callable[[Case], Plan]] = {"hexgen": paper_hexgen, "splitwise": paper_splitwise}


def _unfit(case: Case, what: str) -> ResourceError:
    return ResourceError(f"{what} as in Hetis' paper does not hold {case.model.name}")
