"""python -m hetserve.bench.gpu.tokens FILE: the engine's greedy text in float32 against transformers', over ways to lay a model out on one GPU.

Where a text leaves that of transformers, the row says after how many tokens, and by how much transformers preferred another one there. A gap of
MARGIN or less is rounding: products and sums have other orders on a GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hetserve.bench.gpu.engines import Ask, device, eager, make_plan, serve
from hetserve.bench.gpu.report import report
from hetserve.engine.model.make import make_checkpoint
from hetserve.errors import HetserveError
from hetserve.spec.cluster import CPU, CUDA
from hetserve.spec.load import load_model
from hetserve.spec.plan import Limits, Online

MODELS = ("tiny", "tiny-mha", "tiny-qwen3", "tiny-mistral", "tiny-opt")  # GQA, MHA, qk-norm, a window, learned positions and LayerNorm
LENGTHS = (1, 5, 16, 17, 40, 75, 300)  # of prompts, tokens
NEW_TOKENS = 32
MARGIN = 1e-3  # of logits whose standard deviation is 8 (`recipes`)


@dataclass(frozen=True)
class Layout:
    """Who serves the layers: stages of (share of the layers, primary, *attention workers); "gpu" and "gpu-2" are one GPU, with a budget each."""

    name: str
    stages: tuple[tuple[Any, ...], ...]
    eager: bool = False
    online: Online = field(default_factory=Online)


DEALT = Online("even", 0.01)  # every request over all devices, some of them moved again and again
LAYOUTS = (
    Layout("one GPU, graphs", ((1.0, "gpu"),)),
    Layout("one GPU, eager", ((1.0, "gpu"),), eager=True),
    Layout("two workers on one GPU, half the layers each", ((0.5, "gpu"), (1.0, "gpu-2"))),
    Layout("an attention worker on the same GPU", ((1.0, "gpu", "gpu-2"),), online=DEALT),
    Layout("an attention worker on the CPU", ((1.0, "gpu", "cpu"),), online=DEALT),
)


def rows(
    kind: str = CUDA, models: Sequence[str] = MODELS, layouts: Sequence[Layout] = LAYOUTS, lengths: Sequence[int] = LENGTHS, new: int = NEW_TOKENS
) -> Iterator[dict[str, Any]]:
    """One row a model and layout. The first model has all layouts, the others the first."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(models):
            folder = make_checkpoint(name, Path(scratch, name))
            judge = Judge(folder)
            prompts = [[(7 * i + 3 * j) % 250 + 5 for j in range(length)] for i, length in enumerate(lengths)]
            for layout in layouts if number == 0 else layouts[:1]:
                yield {"model": name, "layout": layout.name, "prompts": len(prompts), **outcome(folder, layout, kind, prompts, new, judge)}


def outcome(folder: Path, layout: Layout, kind: str, prompts: Sequence[Sequence[int]], new: int, judge: Judge) -> dict[str, Any]:
    """What came of one model in one layout; of an engine that failed, why."""
    spec = load_model(folder)
    devices = [device("gpu", kind), device("gpu-2", kind), device("cpu", CPU)]
    used = {name for _, *names in layout.stages for name in names}
    stages = [(max(1, round(share * spec.layers)), *names) for share, *names in layout.stages]
    longest = max(map(len, prompts)) + new
    limits = Limits(longest, len(prompts), 256, 2, 100)
    plan = make_plan(spec, [one for one in devices if one.name in used], stages, 2 * len(prompts) * longest, limits, "float32", layout.online)
    began_s = time.monotonic()
    try:
        with eager(layout.eager):
            (served,), stats = serve(plan, folder, [[Ask(prompt, new) for prompt in prompts]])
    except HetserveError as error:
        return {"right": False, "fault": error.message}
    took_s = time.monotonic() - began_s
    found = [judge(prompt, answer.tokens) for prompt, answer in zip(prompts, served.answers, strict=True)]
    differs = [{"prompt_tokens": len(prompt), **one} for prompt, one in zip(prompts, found, strict=True) if one]
    right = all(one["gap"] <= MARGIN for one in differs)
    return {"identical": len(prompts) - len(differs), "differs": differs, "moves": stats["moves_total"], "seconds": took_s, "right": right}


class Judge:
    """transformers on the CPU in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM  # late: seconds of imports

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, prompt: Sequence[int], tokens: Sequence[int]) -> dict[str, Any] | None:
        """None for its own greedy text; else after how many tokens another one came, and how much lower that one's logit is."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        for at, (token, row) in enumerate(zip(tokens, logits, strict=True)):
            if token != int(row.argmax()):
                return {"after": at, "gap": float(row.max() - row[token])}
        return None


if __name__ == "__main__":
    sys.exit(report("engine", rows(), Path(sys.argv[1])))
