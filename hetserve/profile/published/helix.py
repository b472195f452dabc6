"""Helix's tables (Apache-2.0): milliseconds of one layer by tokens of a batch, on Google Cloud's A100-40, L4, T4 and V100. Checks only, never fitted
but for what boards of few watts keep of their peak.

Prompts and contexts of the batches are not stated: decode steps of more than MOST_DECODE sequences, where KV counts, are left out, and prompts
are taken as of PROMPT tokens. Prompt times are rounded to 1 ms, so those below LEAST_PROMPT_S are left out.
"""

from __future__ import annotations

import numpy as np

from hetserve.cost.step import PRODUCTS
from hetserve.profile.published.files import Folder
from hetserve.profile.published.steps import StepTable

SOURCE = "helix"
MODELS = {"llama1_30b": "Llama-1-30B", "llama2_70b": "Llama-2-70B"}
DEVICES = {"a100": ("A100-SXM-40GB", 1), "v100": ("V100-SXM2-16GB", 1), "l4": ("L4-24GB", 1), "t4": ("T4-16GB", 1)}
SEVERAL = {"l4x2": ("L4-24GB", 2), "t4x2": ("T4-16GB", 2), "t4x4": ("T4-16GB", 4)}
MOST_DECODE = 16
CONTEXT = 512  # tokens, of a decoding sequence
PROMPT = 1000  # tokens
LEAST_PROMPT_S = 0.01
MOST_PROMPT_TOKENS = 8000


def steps(folder: Folder) -> list[StepTable]:
    """One layer's decode and prompt steps of every device and model there is a table of."""
    found = []
    for theirs, model in MODELS.items():
        for name, (device, tp) in (DEVICES | SEVERAL).items():
            for phase, stem in (("decode", "decode"), ("prefill", "prompt")):
                for path in folder.files(f"{SOURCE}/{theirs}/{name}/{stem}_bs2time.csv"):
                    rows = folder.table(path, names=["tokens", "ms"])
                    found.append(_step(device, model, tp, phase, rows.tokens.to_numpy(float), rows.ms.to_numpy(float) * 1e-3))
    return found


def _step(device: str, model: str, tp: int, phase: str, tokens: np.ndarray, seconds: np.ndarray) -> StepTable:
    known = {"decode": (tokens > 0) & (tokens <= MOST_DECODE), "prefill": (seconds >= LEAST_PROMPT_S) & (tokens <= MOST_PROMPT_TOKENS)}
    used = known[phase]
    tokens, seconds = tokens[used], seconds[used]
    parts = (*PRODUCTS, phase, "norm", "rope", "store", "act", *(["allreduce"] if tp > 1 else []))
    if phase == "decode":
        count, new, before = tokens, np.ones_like(tokens), np.full(len(tokens), CONTEXT - 1.0)
    else:
        count, new, before = np.maximum(tokens / PROMPT, 1), np.minimum(tokens, PROMPT), np.zeros(len(tokens))
    link = "" if tp == 1 else "pcie3" if device.startswith("T4") else "pcie4"
    return StepTable(device, SOURCE, model, tp, phase, parts, 1, count, new, before, seconds, link)
