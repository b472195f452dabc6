"""A stage of a decoder-only model: embedding, layers, output matrix, on torch and `_C`. Attention and the KV cache are the caller's (`attend`).

Knows nothing of pages, requests or devices, and holds no state between passes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.blocks import Block, build_block, layer_norm
from hetserve.engine.model.checkpoint import Checkpoint
from hetserve.engine.model.linear import Linear
from hetserve.engine.model.memory import require
from hetserve.engine.model.norms import NoNorm, Norm, RmsNorm
from hetserve.engine.model.rope import cos_sin_table
from hetserve.errors import UnsupportedError
from hetserve.spec.model import ModelSpec
from hetserve.spec.tensors import LM_HEAD, embedding_name, tensor_shapes

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Model:
    """Layers [first, last) of a model, loaded from its folder; the embedding with the first layer, the output matrix with the last.

    Args:
        spec: the model's shape (`load_model`).
        folder: the checkpoint.
        dtype: "bfloat16" or "float32", of weights and activations.
        layers: (first, last); None: all.
        max_positions: positions that will occur, 0: all the model has (sizes the rope table).

    Raises:
        ModelError, UnsupportedError: as `Checkpoint` does; a dtype that is not supported.
        ResourceError: the weights do not fit into memory.
    """

    def __init__(
        self, spec: ModelSpec, folder: str | Path, dtype: str = "bfloat16", layers: tuple[int, int] | None = None, max_positions: int = 0
    ) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(f"Models cannot run in {dtype} here.", "supported: " + ", ".join(DTYPES) + ".")
        self.spec = spec
        self.dtype = DTYPES[dtype]
        self.first, self.last = layers or (0, spec.layers)
        positions = min(max_positions or spec.max_positions, spec.max_positions)
        self.weight_bytes = stage_bytes(spec, dtype, (self.first, self.last), positions)
        checkpoint = Checkpoint(folder, spec)
        require(self.weight_bytes, f"Loading the weights of {spec.name} in {dtype}", "Use a smaller model, or spread its layers over more devices.")
        with torch.inference_mode():
            self._load(checkpoint, positions)

    def forward(self, batch: StepBatch, attend: Attend, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """One pass of a stage that ends the model.

        Args:
            batch: the rows.
            attend: attend(layer, q, k, v) -> out stores k and v and attends; q, out: [rows, q_heads * head_dim], k, v: [rows, kv_heads * head_dim],
                all after rope and qk-norm; `layer` counts from the model's first layer. q, k and v are views of one buffer: rows are strided.
            hidden: [rows, hidden] from the stage before, overwritten; None in the first stage.

        Returns:
            logits [n_sample, vocab] of batch.sample_rows, in that order, in the model's dtype.
        """
        with torch.inference_mode():
            x = self._stack(self._enter(batch, hidden), batch, attend, batch.sample_rows)
            return self._logits(x) if x.shape[0] else x.new_empty((0, self.spec.vocab))

    def forward_hidden(self, batch: StepBatch, attend: Attend, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """One pass of a stage that does not end the model: the residual stream [rows, hidden] for the next stage."""
        with torch.inference_mode():
            return self._stack(self._enter(batch, hidden), batch, attend, None)

    def _load(self, checkpoint: Checkpoint, positions: int) -> None:
        spec = self.spec

        def get(name: str) -> torch.Tensor:
            return checkpoint.read(name, self.dtype)

        self._stack = self._pre_norm_stack if spec.norm_before else self._post_norm_stack
        if self.first == 0:
            self._load_front(get)
        cos_sin = cos_sin_table(spec.rope, spec.head_dim, positions) if spec.rope else None
        self._blocks: list[Block] = [build_block(spec, layer, get, cos_sin) for layer in range(self.first, self.last)]
        self._final_norm: Norm = NoNorm()
        if self.last == spec.layers:
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
        self._lm_head = Linear(get(embedding_name(spec) if spec.tie_embeddings else LM_HEAD))

    def _enter(self, batch: StepBatch, hidden: torch.Tensor | None) -> torch.Tensor:
        if hidden is not None:
            return hidden
        x = functional.embedding(batch.token_ids, self._embedding)
        if self._project_in is not None:
            x = self._project_in(x)
        return x if self._positions is None else x.add_(functional.embedding(batch.positions, self._positions))

    def _pre_norm_stack(self, residual: torch.Tensor, batch: StepBatch, attend: Attend, wanted: torch.Tensor | None) -> torch.Tensor:
        """h += attention(norm(h)); h += mlp(norm(h)). Each addition is fused with the norm that follows it."""
        x = self._blocks[0].attention_norm(residual)
        for i, block in enumerate(self._blocks):
            attended = attend(self.first + i, *block.project(x, batch.positions))
            is_last = i + 1 == len(self._blocks)
            if is_last and wanted is not None:  # nothing but the KV of the other rows was wanted
                attended, residual = _rows(attended, wanted), _rows(residual, wanted)
            x = block.mlp(block.mlp_norm.add(block.output(attended), residual))
            following = self._final_norm if is_last else self._blocks[i + 1].attention_norm
            x = following.add(x, residual)
        return x

    def _post_norm_stack(self, residual: torch.Tensor, batch: StepBatch, attend: Attend, wanted: torch.Tensor | None) -> torch.Tensor:
        """h = norm(h + attention(h)); h = norm(h + mlp(h))."""
        x = residual
        for i, block in enumerate(self._blocks):
            attended = attend(self.first + i, *block.project(x, batch.positions))
            if i + 1 == len(self._blocks) and wanted is not None:
                attended, x = _rows(attended, wanted), _rows(x, wanted)
            x = block.attention_norm.add(block.output(attended), x)
            x = block.mlp_norm.add(block.mlp(x), x)
        return x

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._lm_head(x if self._project_out is None else self._project_out(x))


def stage_bytes(spec: ModelSpec, dtype: str, layers: tuple[int, int], positions: int) -> int:
    """Bytes a stage's weights take once loaded, the rope table and a tied output matrix's own packed copy included."""
    shapes = tensor_shapes(spec, *layers)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    if spec.tie_embeddings and layers == (0, spec.layers):
        numbers += spec.vocab * spec.embed_dim
    rope = positions * spec.head_dim * 4 if spec.rope else 0
    return numbers * DTYPES[dtype].itemsize + rope


def _rows(x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Rows `wanted` of x; x itself if that is all of them, in order."""
    if wanted.shape[0] == x.shape[0] and wanted.equal(torch.arange(x.shape[0])):
        return x
    return x.index_select(0, wanted)
