"""DistServe's fits (Apache-2.0): whole steps of OPT on A100-80, in ms, for its own engine and for the vLLM of its time. Checks only.

prefill = a + b * tokens + c * sum of squares; decode = a + b * context tokens + c * sequences, one set of coefficients up to a number of sequences,
another beyond. They are somebody's fits, not measurements, so a few steps of each are asked of them.
"""

from __future__ import annotations

import json

import numpy as np

from hetserve.cost.step import PARTS
from hetserve.errors import SpecError
from hetserve.profile.published.files import Folder
from hetserve.profile.published.steps import StepTable

SOURCES = {"distserve": "distserve, own engine", "vllm": "distserve, vLLM of 2023"}
DEVICE = "A100-SXM-80GB"
MODELS = {"facebook/opt-13b": "OPT-13B", "facebook/opt-66b": "OPT-66B"}
DEGREES = (1, 2, 4, 8)
SEQUENCES = (1, 4, 16, 32, 64)
CONTEXTS = (256, 512, 1024)
PROMPTS = (128, 256, 512, 1024, 2048)


def steps(folder: Folder) -> list[StepTable]:
    """Steps as the fits tell them, all parts in them."""
    found = []
    for name, source in SOURCES.items():
        for path in folder.files(f"distserve/profiler-a100-80g.{name}.json"):
            try:
                data = json.loads(folder.bytes(path))
                for theirs, model in MODELS.items():
                    for tp in (degree for degree in DEGREES if str(degree) in data[theirs]):
                        found += _steps(source, model, tp, data[theirs][str(tp)])
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise SpecError(f"{path.name} does not hold DistServe's coefficients: {type(error).__name__} {error}") from None
    return found


def _steps(source: str, model: str, tp: int, fit: dict[str, list[float]]) -> list[StepTable]:
    parts = tuple(part for part in PARTS if tp > 1 or part != "allreduce")
    common = (DEVICE, source, model, tp)
    count, context = (grid.ravel().astype(float) for grid in np.meshgrid(SEQUENCES, CONTEXTS))
    a, b, c = fit["decoding_smallbs"]
    decode_s = (a + b * count * context + c * count) * 1e-3
    new = np.array(PROMPTS, float)
    a, b, c = fit["prefill"]
    prefill_s = (a + b * new + c * new**2) * 1e-3
    return [
        StepTable(*common, "decode", parts, 0, count, np.ones_like(count), context - 1, decode_s),
        StepTable(*common, "prefill", parts, 0, np.ones_like(new), new, np.zeros_like(new), prefill_s),
    ]
