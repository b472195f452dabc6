"""A stage of a decoder-only model: embedding, layers, output matrix, on torch and `_C`. Attention and the KV cache are the caller's (`attend`).

Knows nothing of pages, requests or devices, and holds no state between passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.blocks import Block, build_block, layer_norm
from hetserve.engine.model.drawn import Weights, open_weights
from hetserve.engine.model.linear import Linear
from hetserve.engine.model.memory import require
from hetserve.engine.model.norms import NoNorm, Norm, RmsNorm
from hetserve.engine.model.rope import cos_sin_table
from hetserve.errors import UnsupportedError
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import LM_HEAD, embedding_name, tensor_shapes

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CPU = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Stream:
    """What flows through a stage from one attention to the next: the layer's input, normed, and the residual stream it is added to."""

    x: torch.Tensor
    residual: torch.Tensor


class Model:
    """Layers [first, last) of a model, loaded from its folder; the embedding with the first layer, the output matrix with the last.

    Args:
        spec: the model's shape (`load_model`).
        folder: the checkpoint, or drawn weights (`engine.model.drawn`).
        dtype: "bfloat16" or "float32", of weights and activations.
        layers: (first, last); None: all.
        max_positions: positions that will occur, 0: all the model has (sizes the rope table).
        device: where its weights are to lie; batches and hidden states are on it too.

    Raises:
        ModelError, UnsupportedError: as `open_weights` does; a dtype that is not supported.
        ResourceError: the weights do not fit into memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: str | Path,
        dtype: str = "bfloat16",
        layers: tuple[int, int] | None = None,
        max_positions: int = 0,
        device: torch.device = CPU,
    ) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(f"Models cannot run in {dtype} here.", "supported: " + ", ".join(DTYPES) + ".")
        self.spec = spec
        self.dtype = DTYPES[dtype]
        self.device = device
        self.first, self.last = layers or (0, spec.layers)
        self.ends_model = self.last == spec.layers
        positions = min(max_positions or spec.max_positions, spec.max_positions)
        self.weight_bytes = stage_bytes(spec, dtype, (self.first, self.last), positions, device)
        weights = open_weights(folder, spec, device)
        if device.type == "cpu":
            hint = "Use a smaller model, or spread its layers over more devices."
            require(self.weight_bytes, f"Loading the weights of {spec.name} in {dtype}", hint)
        with torch.inference_mode():
            self._load(weights, positions)

    def forward(self, batch: StepBatch, attend: Attend, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """One pass of the stage.

        Args:
            batch: the rows.
            attend: attend(layer, q, k, v) -> out stores k and v and attends; q, out: [rows, q_heads * head_dim], k, v: [rows, kv_heads * head_dim],
                all after rope and qk-norm; `layer` counts from the model's first layer. q, k and v are views of one buffer: rows are strided.
            hidden: [rows, hidden] from the stage before, overwritten; None in the first stage.

        Returns:
            of a stage that ends the model, logits [n_sample, vocab] of batch.sample_rows, in that order, in the model's dtype; of another the
            residual stream [rows, hidden] for the next stage.
        """
        with torch.inference_mode():
            stream = self.enter(batch, hidden)
            for layer in range(self.first, self.last):
                self.after(layer, stream, batch, attend(layer, *self.before(layer, stream, batch)))
            return self.leave(stream)

    # The same pass in pieces, for whoever captures what lies between two attentions. Layers count from the model's first.

    def enter(self, batch: StepBatch, hidden: torch.Tensor | None = None) -> Stream:
        """The first layer's input."""
        residual = self._embed(batch) if hidden is None else hidden
        return Stream(self._blocks[0].attention_norm(residual) if self.spec.norm_before else residual, residual)

    def before(self, layer: int, stream: Stream, batch: StepBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of a layer."""
        return self._blocks[layer - self.first].project(stream.x, batch.positions)

    def after(self, layer: int, stream: Stream, batch: StepBatch, attended: torch.Tensor) -> None:
        """The rest of a layer, and the norm before the next one."""
        number = layer - self.first
        block = self._blocks[number]
        is_last = number + 1 == len(self._blocks)
        if is_last and self.ends_model and batch.sample_rows is not None:  # nothing but the KV of the other rows was wanted
            attended, stream.residual = attended.index_select(0, batch.sample_rows), stream.residual.index_select(0, batch.sample_rows)
        if self.spec.norm_before:  # h += attention(norm(h)); h += mlp(norm(h)), each addition fused with the norm that follows it
            x = block.mlp(block.mlp_norm.add(block.output(attended), stream.residual))
            following = self._final_norm if is_last else self._blocks[number + 1].attention_norm
            stream.x = following.add(x, stream.residual)
        else:  # h = norm(h + attention(h)); h = norm(h + mlp(h))
            x = block.attention_norm.add(block.output(attended), stream.residual)
            stream.x = stream.residual = block.mlp_norm.add(block.mlp(x), x)

    def leave(self, stream: Stream) -> torch.Tensor:
        """What `forward` returns."""
        if not self.ends_model:
            return stream.x
        return self._logits(stream.x) if stream.x.shape[0] else stream.x.new_empty((0, self.spec.vocab))

    def _load(self, weights: Weights, positions: int) -> None:
        spec = self.spec

        def get(name: str) -> torch.Tensor:
            return weights.read(name, self.dtype).to(self.device)

        if self.first == 0:
            self._load_front(get)
        cos_sin = cos_sin_table(spec.rope, spec.head_dim, positions).to(self.device) if spec.rope else None
        self._blocks: list[Block] = [build_block(spec, layer, get, cos_sin) for layer in range(self.first, self.last)]
        self._final_norm: Norm = NoNorm()
        if self.ends_model:
            self._load_back(get)

    def _load_front(self, get: Callable[[str], torch.Tensor]) -> None:
        spec = self.spec
        self._embedding = get(embedding_name(spec))
        self._positions = None if spec.rope else get("model.decoder.embed_positions.weight")[spec.position_offset :]
        self._project_in = Linear(get("model.decoder.project_in.weight")) if spec.embed_dim != spec.hidden else None

    def _load_back(self, get: Callable[[str], torch.Tensor]) -> None:
        spec = self.spec
        if spec.family != "opt":
            self._final_norm = RmsNorm(get("model.norm.weight"), spec.norm_eps)
        elif spec.final_norm:
            self._final_norm = layer_norm(spec, "model.decoder.final_layer_norm", get)
        self._project_out = Linear(get("model.decoder.project_out.weight")) if spec.embed_dim != spec.hidden else None
        if spec.tie_embeddings and self.first == 0 and self.device.type != "cpu":
            self._lm_head = Linear(self._embedding)  # on a CPU it is packed, and no embedding any more
        else:
            self._lm_head = Linear(get(embedding_name(spec) if spec.tie_embeddings else LM_HEAD))

    def _embed(self, batch: StepBatch) -> torch.Tensor:
        x = functional.embedding(batch.token_ids, self._embedding)
        if self._project_in is not None:
            x = self._project_in(x)
        return x if self._positions is None else x.add_(functional.embedding(batch.positions, self._positions))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._lm_head(x if self._project_out is None else self._project_out(x))


def stage_bytes(spec: ModelSpec, dtype: str, layers: tuple[int, int], positions: int, device: torch.device) -> int:
    """Bytes a stage's weights take once loaded, the rope table and, on a CPU, a tied output matrix's own packed copy included."""
    shapes = tensor_shapes(spec, *layers)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    if spec.tie_embeddings and layers == (0, spec.layers) and device.type == "cpu":
        numbers += spec.vocab * spec.embed_dim
    rope = positions * spec.head_dim * 4 if spec.rope else 0
    return numbers * DTYPES[dtype].itemsize + rope
