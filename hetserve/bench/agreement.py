"""Do two systems say the same? Outputs compared token by token; where they part, a reference decides between a tie and a fault.

Near-tie rule (DESIGN 8): teacher-forced on the common prefix, the float32 reference's logit gap between the two tokens is at most twice the
largest |bfloat16 - float32| difference of the reference's logits at that position. Anything else is wrong. Run after all timing: it uses every core.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TIE_FACTOR = 2.0
MOST_CHECKED = 16


@dataclass(frozen=True)
class Answers:
    """Both systems' outputs for one request, as token ids; None where that system failed it."""

    prompt: tuple[int, ...]
    ours: tuple[int, ...] | None
    theirs: tuple[int, ...] | None


@dataclass(frozen=True)
class Divergence:
    """Where two answers part: after `prefix` (prompt and common output) one goes on with `ours`, the other with `theirs`."""

    prefix: tuple[int, ...]
    ours: int
    theirs: int


@dataclass(frozen=True)
class Verdict:
    """A divergence with the reference's word on it. All in logits."""

    near_tie: bool
    gap: float
    bound: float
    position: int  # length of the prefix in tokens
    ours: int
    theirs: int


@dataclass(frozen=True)
class Agreement:
    """How many answers were compared and what they are.

    Attributes:
        compared: answers that both systems gave.
        near_tie, wrong: answers that differ, as the reference judges them. An answer that ends early is wrong.
        unchecked: answers that differ and were beyond the cap; who is judged is settled before any is, evenly over context lengths.
        verdicts: those that were judged, by context length.
    """

    compared: int
    identical: int
    near_tie: int
    wrong: int
    unchecked: int
    verdicts: tuple[Verdict, ...]


class Reference(Protocol):
    """The logits that follow the first `lengths[i]` tokens of a text: ([n, vocab] of the float32 model, [n, vocab] of the bfloat16 model)."""

    def logits(self, text: Sequence[int], lengths: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...


def divergence(answers: Answers) -> Divergence | None:
    """Where the two answers part, or None when one merely ends earlier (or both are equal)."""
    assert answers.ours is not None and answers.theirs is not None
    for index, (ours, theirs) in enumerate(zip(answers.ours, answers.theirs, strict=False)):
        if ours != theirs:
            return Divergence(answers.prompt + answers.ours[:index], ours, theirs)
    return None


def judge(one: Divergence, exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> Verdict:
    """The near-tie rule on one divergence, by the float32 and bfloat16 logits [vocab] after its prefix."""
    inside = max(one.ours, one.theirs) < len(exact)
    gap = abs(float(exact[one.ours]) - float(exact[one.theirs])) if inside else float("inf")
    bound = TIE_FACTOR * float(np.abs(rounded - exact).max())
    return Verdict(gap <= bound, gap, bound, len(one.prefix), one.ours, one.theirs)


def agree(
    pairs: Sequence[Answers],
    open_reference: Callable[[], Reference],
    most_checked: int = MOST_CHECKED,
    judged: Callable[[int, int], None] = lambda done, total: None,
) -> Agreement:
    """Compares all answers.

    Args:
        open_reference: called once, and only if an answer differs.
        most_checked: how many texts are put to the reference (see `texts`); what parts elsewhere is reported as unchecked. 0: all.
        judged: told how many of how many texts have been.
    """
    both = [one for one in pairs if one.ours is not None and one.theirs is not None]
    differing = [one for one in both if one.ours != one.theirs]
    found = [divergence(one) for one in differing]
    short = found.count(None)
    chosen = spread(texts({one for one in found if one is not None}), most_checked)
    reference = open_reference() if chosen else None
    verdicts: dict[Divergence, Verdict] = {}
    for done, text in enumerate(chosen, 1):
        assert reference is not None
        exact, rounded = reference.logits(text[-1].prefix, [len(one.prefix) for one in text])
        verdicts |= {one: judge(one, exact[index], rounded[index]) for index, one in enumerate(text)}
        judged(done, len(chosen))
    known = [verdicts[one].near_tie for one in found if one in verdicts]
    return Agreement(
        compared=len(both),
        identical=len(both) - len(differing),
        near_tie=known.count(True),
        wrong=known.count(False) + short,
        unchecked=len(found) - short - len(known),
        verdicts=tuple(verdicts.values()),
    )


def texts(divergences: Collection[Divergence]) -> list[list[Divergence]]:
    """The divergences that lie on one text, shortest prefix first, so that one forward pass serves them all; texts by length."""
    found: list[list[Divergence]] = []
    for one in sorted(divergences, key=lambda one: (-len(one.prefix), one.prefix, one.ours, one.theirs)):
        on = next((text for text in found if text[0].prefix[: len(one.prefix)] == one.prefix), None)
        if on is None:
            found.append([one])
        else:
            on.append(one)
    return [text[::-1] for text in found[::-1]]


def spread(ordered: Sequence[list[Divergence]], most: int) -> list[list[Divergence]]:
    """At most `most` of them (0: all), evenly spaced in the given order: the middle one of each of `most` equal parts."""
    if not most or len(ordered) <= most:
        return list(ordered)
    return [ordered[(2 * part + 1) * len(ordered) // (2 * most)] for part in range(most)]


class HfReference:
    """Hugging Face transformers on the checkpoint itself, in float32 and in bfloat16, on the CPU. Loads both once."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch = torch
        self._models = [
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True).eval()
            for dtype in (torch.float32, torch.bfloat16)
        ]

    def logits(self, text: Sequence[int], lengths: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits of the token after each of the prefixes of `text`, [len(lengths), vocab], as float32."""
        ids, rows = self._torch.tensor([list(text)]), self._torch.tensor([length - 1 for length in lengths])
        with self._torch.inference_mode():
            exact, rounded = (model(ids, use_cache=False, logits_to_keep=rows).logits[0].float().numpy() for model in self._models)
        return exact, rounded
