"""python -m hetserve.bench.gpu.tokens FILE: the engine's greedy text against transformers', over ways to lay a model out on one GPU.

Every token is held against what transformers would say next after the same text. Where that is another one, the row says where, by how much its
logit is higher, and what would be rounding: in float32 MARGIN, as products and sums have other orders on a GPU; in bfloat16 the bound of the near-tie
rule.
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

from hetserve.bench.agreement import Divergence
from hetserve.bench.agreement import judge as near_tie
from hetserve.bench.gpu.engines import EAGER, GRAPHS, PIECES, Ask, device, launching, make_plan, serve
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
    launched: str = GRAPHS
    online: Online = field(default_factory=Online)


DEALT = Online("even", 0.01)  # every request over all devices, some of them moved again and again
LAYOUTS = (
    Layout("one GPU, graphs", ((1.0, "gpu"),)),
    Layout("one GPU, a graph for each piece", ((1.0, "gpu"),), PIECES),
    Layout("one GPU, eager", ((1.0, "gpu"),), EAGER),
    Layout("two workers on one GPU, half the layers each", ((0.5, "gpu"), (1.0, "gpu-2"))),
    Layout("an attention worker on the same GPU", ((1.0, "gpu", "gpu-2"),), online=DEALT),
    Layout("an attention worker on the CPU", ((1.0, "gpu", "cpu"),), online=DEALT),
)


def rows(
    kind: str = CUDA, models: Sequence[str] = MODELS, layouts: Sequence[Layout] = LAYOUTS, lengths: Sequence[int] = LENGTHS, new: int = NEW_TOKENS
) -> Iterator[dict[str, Any]]:
    """One row a model and layout in float32: the first model has all layouts, the others the first; and each model in bfloat16."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(models):
            folder = make_checkpoint(name, Path(scratch, name))
            judge = Judge(folder)
            prompts = [[(7 * i + 3 * j) % 250 + 5 for j in range(length)] for i, length in enumerate(lengths)]
            for dtype, layout in [*(("float32", one) for one in (layouts if number == 0 else layouts[:1])), ("bfloat16", layouts[0])]:
                row = {"model": name, "layout": layout.name, "dtype": dtype, "prompts": len(prompts)}
                yield row | outcome(folder, layout, kind, prompts, new, judge, dtype)


def outcome(folder: Path, layout: Layout, kind: str, prompts: Sequence[Sequence[int]], new: int, judge: Judge, dtype: str) -> dict[str, Any]:
    """What came of one model in one layout; of an engine that failed, why."""
    spec = load_model(folder)
    devices = [device("gpu", kind), device("gpu-2", kind), device("cpu", CPU)]
    used = {name for _, *names in layout.stages for name in names}
    stages = [(max(1, round(share * spec.layers)), *names) for share, *names in layout.stages]
    longest = max(map(len, prompts)) + new
    limits = Limits(longest, len(prompts), 256, 2, 100)
    plan = make_plan(spec, [one for one in devices if one.name in used], stages, 2 * len(prompts) * longest, limits, dtype, layout.online)
    began_s = time.monotonic()
    try:
        with launching(layout.launched):
            (served,), stats = serve(plan, folder, [[Ask(prompt, new) for prompt in prompts]])
    except HetserveError as error:
        return {"right": False, "fault": error.message}
    took_s = time.monotonic() - began_s
    found = [judge(prompt, answer.tokens, dtype) for prompt, answer in zip(prompts, served.answers, strict=True)]
    differs = [{"prompt_tokens": len(prompt), **one} for prompt, some in zip(prompts, found, strict=True) for one in some]
    right = all(one["gap"] <= one["bound"] for one in differs)
    return {"identical": sum(not some for some in found), "differs": differs, "moves": stats["moves_total"], "seconds": took_s, "right": right}


class Judge:
    """transformers on the CPU, in float32 and in bfloat16."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM  # late: seconds of imports

        self._models = {name: AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")}

    def __call__(self, prompt: Sequence[int], tokens: Sequence[int], dtype: str = "float32") -> list[dict[str, Any]]:
        """Where it would have said something else: after how many tokens, how much higher that one's logit is in float32, and what is rounding."""
        exact, own = self._logits(prompt, tokens, "float32"), self._logits(prompt, tokens, dtype)
        found = []
        for after, (ours, theirs) in enumerate(zip(tokens, own.argmax(-1).tolist(), strict=True)):
            if ours != theirs:
                verdict = near_tie(Divergence((*prompt, *tokens[:after]), ours, theirs), exact[after].numpy(), own[after].numpy())
                found.append({"after": after, "gap": verdict.gap, "bound": MARGIN if dtype == "float32" else verdict.bound})
        return found

    def _logits(self, prompt: Sequence[int], tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """float32 [tokens, vocab]: what each of the tokens was chosen from."""
        with torch.inference_mode():
            return self._models[dtype](torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()


if __name__ == "__main__":
    sys.exit(report("engine", rows(), Path(sys.argv[1])))
