"""Reading weights from a hostile or damaged folder: refused in words, before anything is allocated."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hetserve.engine.model.checkpoint import INDEX, SINGLE, Checkpoint
from hetserve.engine.model.decoder import Model
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.model.memory import available_bytes, require
from hetserve.errors import ModelError, ResourceError, UnsupportedError
from hetserve.spec.model import ModelSpec

NORM = "model.norm.weight"
Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture(scope="module")
def spec(made: Path) -> ModelSpec:
    return ModelSpec.from_hf(json.loads((made / "config.json").read_text()))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def edit(folder: Path, change: Edit) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def edit_header(path: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Rewrites a safetensors header and leaves the data as it is."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def refuse(folder: Path, spec: ModelSpec, match: str, kind: type[Exception] = ModelError) -> None:
    with pytest.raises(kind, match=match) as caught:
        Model(spec, folder, "float32")
    assert len(str(caught.value)) < 600


def test_every_tensor_is_read_as_it_was_written(made: Path, spec: ModelSpec) -> None:
    checkpoint = Checkpoint(made, spec)
    for name, tensor in load_file(made / SINGLE).items():
        assert checkpoint.read(name, torch.bfloat16).equal(tensor)
        assert checkpoint.read(name, torch.float32).equal(tensor.float())


def test_shards_and_names_without_model_prefix(made: Path, spec: ModelSpec, tmp_path: Path) -> None:
    shards = make_checkpoint("tiny", tmp_path / "shards", shard_bytes=2_000_000)
    whole, parts = Checkpoint(made, spec), Checkpoint(shards, spec)
    assert parts.read(NORM, torch.float32).equal(whole.read(NORM, torch.float32))
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(made / SINGLE).items()}, bare / SINGLE)
    assert Checkpoint(bare, spec).read(NORM, torch.float32).equal(whole.read(NORM, torch.float32))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(NORM), "lacks tensor model.norm.weight"),
        (lambda t: t.update({"model.layers.4.mlp.up_proj.weight": torch.ones(1)}), "does not describe"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(256)}), "does not describe"),
        (lambda t: t.update({NORM: torch.ones(255)}), r"shape \[255\], config.json asks for \[256\]"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].t().contiguous()}), "shape"),
    ],
)
def test_tensors_that_are_not_the_configs(folder: Path, spec: ModelSpec, change: Edit, match: str) -> None:
    edit(folder, change)
    refuse(folder, spec, match)


def test_harmless_extras_and_odd_dtypes(folder: Path, spec: ModelSpec) -> None:
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32), NORM: t[NORM].half()}))
    Model(spec, folder, "float32")
    edit(folder, lambda t: t.update({NORM: t[NORM].to(torch.int8)}))
    refuse(folder, spec, "stored as I8", UnsupportedError)


def test_a_tied_output_matrix_must_be_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint("tiny-mha", tmp_path / "tied")
    spec = ModelSpec.from_hf(json.loads((folder / "config.json").read_text()))
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    Checkpoint(folder, spec)
    edit(folder, lambda t: t["lm_head.weight"].mul_(2))
    refuse(folder, spec, "ties lm_head.weight")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file(folder: Path, spec: ModelSpec, keep: int) -> None:
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:keep])
    refuse(folder, spec, "no whole safetensors file")


def test_damaged_headers(folder: Path, spec: ModelSpec) -> None:
    raw = (folder / SINGLE).read_bytes()
    for broken in (struct.pack("<Q", 1 << 62) + raw[8:], raw[:8] + b"x" * 50 + raw[58:], b"not a tensor file at all, but long enough"):
        (folder / SINGLE).write_bytes(broken)
        refuse(folder, spec, "no whole safetensors file")


def overlap(header: dict[str, dict[str, object]]) -> None:
    names = [name for name in header if name.endswith("layernorm.weight")]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def reach_past_the_end(header: dict[str, dict[str, object]]) -> None:
    header[NORM]["data_offsets"] = [10**9, 10**9 + 512]


def claim_more_than_there_is(header: dict[str, dict[str, object]]) -> None:
    header[NORM]["shape"] = [1 << 40, 1 << 40]


@pytest.mark.parametrize("change", [overlap, reach_past_the_end, claim_more_than_there_is])
def test_headers_that_lie(folder: Path, spec: ModelSpec, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    edit_header(folder / SINGLE, change)
    refuse(folder, spec, "no whole safetensors file")


def test_pickled_weights_are_never_opened(folder: Path, spec: ModelSpec) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    refuse(folder, spec, "pickle")
    (folder / "pytorch_model.bin").unlink()
    refuse(folder, spec, "holds no model.safetensors")
    refuse(folder / "nowhere", spec, "no model folder")


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/../../model.safetensors", "..", "", "x\0.safetensors", "pytorch_model.bin", "gone.safetensors"],
)
def test_an_index_that_points_elsewhere(folder: Path, spec: ModelSpec, shard: str) -> None:
    shutil.copy(folder / SINGLE, folder.parent / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: shard}}))
    refuse(folder, spec, "no safetensors file of this folder|lacks the file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000, "\ud800"])
def test_an_index_that_is_none(folder: Path, spec: ModelSpec, text: str) -> None:
    (folder / INDEX).write_bytes(text.encode("utf-8", "surrogatepass"))
    refuse(folder, spec, "index of safetensors|weight_map")


def test_an_index_that_promises_too_much_and_a_tensor_in_two_files(folder: Path, spec: ModelSpec) -> None:
    names = list(load_file(folder / SINGLE))
    (folder / INDEX).write_text(json.dumps({"weight_map": {**dict.fromkeys(names, SINGLE), "more": SINGLE}}))
    refuse(folder, spec, "promises tensor more")
    save_file({NORM: torch.ones(256)}, folder / "second.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {**dict.fromkeys(names, SINGLE), NORM: "second.safetensors"}}))
    refuse(folder, spec, "lies in both")


def test_links_may_not_leave_the_folder_except_in_the_hugging_face_cache(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / SINGLE).rename(outside)
    os.symlink(outside, folder / SINGLE)
    refuse(folder, spec, "leads out of its folder")
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    shutil.copy(outside, cache / "blobs" / "0123abcd")
    shutil.copytree(folder, cache / "snapshots" / "main", symlinks=True, ignore=shutil.ignore_patterns(SINGLE))
    os.symlink("../../blobs/0123abcd", cache / "snapshots" / "main" / SINGLE)
    Model(spec, cache / "snapshots" / "main", "float32")


def test_no_memory_for_the_weights_is_said_before_loading(made: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetserve.engine.model.memory.available_bytes", lambda: spec.weight_bytes("float32") // 2)
    with pytest.raises(ResourceError, match=r"needs 0\.\d\d GiB, but only"):
        Model(spec, made, "float32")


def test_a_control_groups_limit_counts(tmp_path: Path) -> None:
    free = available_bytes(tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 800000\ninactive_file 50000\nactive_file 7\n")
    assert available_bytes(tmp_path) == 150_007
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 1_000_000
    with pytest.raises(ResourceError):
        require(1 << 60, "Everything")


def test_a_dtype_nobody_computes_in(made: Path, spec: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match="float16"):
        Model(spec, made, "float16")
