"""Models without a checkpoint: weights drawn where they are used, the same every time, of a size that computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hetserve.engine.model.decoder import Model
from hetserve.engine.model.drawn import MARKER, DrawnWeights, open_weights, write_drawn
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import ModelError
from hetserve.spec.load import load_model
from hetserve.spec.tensors import tensor_shapes

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tiny", "tiny-mha", "tiny-qwen2", "tiny-opt-post"])
def test_every_tensor_has_its_shape_and_depends_on_name_and_seed_alone(tmp_path: Path, name: str) -> None:
    spec = load_model(write_drawn(tmp_path / name, RECIPES[name].config, 3))
    weights = open_weights(tmp_path / name, spec, CPU)
    others, seen = DrawnWeights(spec, 4, CPU), []
    for tensor, shape in tensor_shapes(spec).items():
        found = weights.read(tensor, torch.bfloat16)
        assert found.shape == shape and found.dtype == torch.bfloat16
        assert found.equal(DrawnWeights(spec, 3, CPU).read(tensor, torch.bfloat16))
        if len(shape) == 2:
            assert not found.equal(others.read(tensor, torch.bfloat16))
            seen.append(found.flatten()[:8].tolist())
    assert len({tuple(one) for one in seen}) == len(seen)


def test_a_model_of_them_computes_numbers_of_order_one(tmp_path: Path) -> None:
    from hetserve.engine.model.batch import StepBatch

    spec = load_model(write_drawn(tmp_path / "drawn", RECIPES["tiny"].config))
    model = Model(spec, tmp_path / "drawn", "float32")
    batch = StepBatch(torch.arange(10, 18), torch.arange(8, dtype=torch.int32), None)
    logits = model.forward(batch, lambda layer, q, k, v: q)
    assert logits.shape == (8, spec.vocab) and 0.3 < logits.std() < 3


def test_a_folder_without_the_marker_is_a_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint("tiny", tmp_path / "tiny")
    spec = load_model(folder)
    assert not isinstance(open_weights(folder, spec, CPU), DrawnWeights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        open_weights(tmp_path / "empty", spec, CPU)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seed": -1}', '{"seed": "0"}', '{"seed": true}'])
def test_a_marker_that_names_no_seed_is_refused(tmp_path: Path, text: str) -> None:
    spec = load_model(write_drawn(tmp_path / "drawn", RECIPES["tiny"].config))
    (tmp_path / "drawn" / MARKER).write_text(text)
    with pytest.raises(ModelError, match="names no seed"):
        open_weights(tmp_path / "drawn", spec, CPU)
