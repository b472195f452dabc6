"""Seconds and bytes of running a model's layers on a device, from its shape and the device's rates. Counted exactly, never by 12 * H^2."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.cost.curve import Curve
from hetserve.cost.rates import Rates
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.plan import PAGE_TOKENS


@dataclass(frozen=True)
class StepCost:
    """A step's time as a formula in what the controller knows of it. Frozen into its config, so a journal replays without the model."""

    fixed_s: float
    layers: Curve  # dense work, by tokens
    head: Curve  # the LM head, by sampled tokens
    attend_s: float  # decode attention at all
    context_s: float  # per token of context a decoding sequence reads
    pair_s: float  # per (token, earlier token) pair of a prefill chunk
    source: str
    sequence_s: float = 0.0  # decode attention per sequence, whatever its length
    prompt_s: float = 0.0  # prefill attention at all

    @property
    def token_s(self) -> float:
        """Dense work per token of a large step, the LM head not in it."""
        return self.layers.row_s

    def step_s(self, tokens: int, samples: int, decode_context: int, prefill_pairs: float, decoding: int = 0) -> float:
        """Seconds of one step.

        Args:
            tokens: rows of the pass, decode and chunks.
            samples: rows that go through the LM head.
            decode_context: sum of the decoding sequences' lengths.
            prefill_pairs: sum over chunks of tokens times the mean context they see.
            decoding: sequences that decode; of little weight beside their lengths.
        """
        dense_s = self.layers.at(tokens) + (self.head.at(samples) if samples else 0.0)
        decode_s = self.attend_s + decode_context * self.context_s + decoding * self.sequence_s if decode_context else 0.0
        prefill_s = self.prompt_s + prefill_pairs * self.pair_s if prefill_pairs else 0.0
        return self.fixed_s + dense_s + (decode_s + prefill_s)


@dataclass(frozen=True)
class Roofline:
    """Answers step_s, kv_bytes and memory for a model on a device; `source` says on what grounds."""

    model: ModelSpec
    dtype: str
    rates: Rates

    @property
    def source(self) -> str:
        return self.rates.source

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the KV of `tokens` tokens, all heads and layers."""
        return tokens * self.model.kv_bytes_per_token(self.dtype)

    def weight_bytes(self) -> int:
        """Bytes of the weights as the worker stores them."""
        return self.model.weight_bytes(self.dtype)

    def workspace_bytes(self, step_tokens: int, samples: int) -> int:
        """As `workspace_bytes` below."""
        return workspace_bytes(self.model, self.dtype, step_tokens, samples)

    def step_cost(self) -> StepCost:
        """The step-time formula of all layers on this device."""
        model, rates = self.model, self.rates
        head = model.vocab * model.embed_dim
        dense = model.parameters - (head if model.tie_embeddings else 2 * head)  # the input embedding is a lookup, no product
        return StepCost(
            fixed_s=rates.step_s,
            layers=self._products(dense),
            head=self._products(head),
            attend_s=0.0,
            context_s=self.kv_bytes(1) / rates.read_bytes,
            pair_s=4 * model.layers * model.q_dim / rates.dense_flops,
            source=rates.source,
        )

    def _products(self, weights: int) -> Curve:
        """Few rows wait for the weights, many for arithmetic."""
        return Curve.floor(weights * DTYPE_BYTES[self.dtype] / self.rates.read_bytes, 2 * weights / self.rates.dense_flops)


def token_pages(tokens: int, page_tokens: int = PAGE_TOKENS) -> int:
    """Pages of one KV head that `tokens` tokens need."""
    return -(-tokens // page_tokens)


def workspace_bytes(model: ModelSpec, dtype: str, step_tokens: int, samples: int, ranks: int = 1) -> int:
    """Bytes a worker needs beside weights and KV for steps of `step_tokens` rows, `samples` of which get logits.

    A device's budget holds weights as they are stored, this workspace and KV. What every worker process takes by itself (Python, torch, the
    kernels' code) is in no system's budget. Of tensor-parallel ranks each has its share of heads and MLP columns, and whole hidden states and logits.
    """
    return 2 * step_tokens * row_numbers(model, ranks) * DTYPE_BYTES[dtype] + 3 * samples * model.vocab * 4


def row_numbers(model: ModelSpec, ranks: int = 1) -> int:
    """Numbers of a row's activations in a layer, on one of so many ranks."""
    return 6 * model.hidden + -(-(2 * (model.q_dim + 2 * model.kv_dim) + 3 * model.intermediate) // ranks)
