"""LLMServingSim's tables (MIT): operators of Llama 3.1 by tokens, of vLLM on an RTX 4090 (us) and of transformers on others (ns).

Left out of the second kind: norms, rotary embedding and embedding, which are many unfused kernels there, and the attention files, whose KV sizes mean
all sequences together in a kernel that does not split them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.fits import Table
from hetserve.cost.kernels import SMALL, Chip
from hetserve.cost.library import chip_of
from hetserve.cost.step import PRODUCTS, Product, Rank
from hetserve.profile.published.files import Folder, spread, text
from hetserve.profile.published.steps import StepTable

SOURCE = "llmservingsim"
NEWER = {"RTX4090": "RTX-4090-24GB"}
OLDER = {"A6000": "RTX-A6000-48GB", "H100": "H100-SXM-80GB", "RTX3090": "RTX-3090-24GB"}
MODELS = {"Llama-3.1-8B": "Llama-3-8B", "Llama-3.1-70B": "Llama-3-70B"}  # the same shapes
FUSED = {"qkv": "qkv_proj", "out": "o_proj", "up": "gate_up_proj", "down": "down_proj"}
SMALLS = {"norm": "layernorm", "rope": "rotary_emb", "act": "act_fn"}
UNFUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",), "up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
DECODE_ROWS = 256  # a step of more tokens is one of prompts
LEAST_PREFILL = 64

T = TypeVar("T")
Read: TypeAlias = Callable[[Folder, Path, str, Rank], list[T]]


def tables(folder: Folder) -> list[Table]:
    """Kernels of every device there is a folder of."""
    return _each(folder, _fused, _unfused)


def steps(folder: Folder) -> list[StepTable]:
    """Whole steps of the newer kind added up from their parts, and products (with a lone prompt's attention) of the older."""
    return _each(folder, _whole, _layers)


def _each(folder: Folder, newer: Read[T], older: Read[T]) -> list[T]:
    read = ((newer, _newer(folder)), (older, _older(folder)))
    return [table for one, places in read for device, rank, path in places for table in one(folder, path, device, rank)]


def _newer(folder: Folder) -> list[tuple[str, Rank, Path]]:
    return [
        (device, Rank(catalog.model(model)), path.parent)
        for name, device in NEWER.items()
        for theirs, model in MODELS.items()
        for path in folder.files(f"{SOURCE}/{name}/{theirs}/tp1/dense.csv")
    ]


def _older(folder: Folder) -> list[tuple[str, Rank, Path]]:
    return [
        (device, Rank(catalog.model(model), tp), path)
        for name, device in OLDER.items()
        for theirs, model in MODELS.items()
        for tp in (1, 2, 4, 8)
        for path in folder.files(f"{SOURCE}/v0/{name}/{theirs}/tp{tp}/layers.csv")
    ]


def _gemm(device: str, product: Product, tokens: np.ndarray, seconds: np.ndarray) -> Table:
    ones = np.ones_like(tokens)
    inputs = {"m": tokens, "n": product.n * ones, "k": product.k * ones}
    return Table(device, SOURCE, "gemm", chip_of(device), inputs, seconds, text((inputs["n"], inputs["k"])))


def _prefill(device: str, rank: Rank, new: np.ndarray, before: np.ndarray, seconds: np.ndarray) -> Table:
    heads = np.full(len(new), float(rank.q_heads))
    inputs = {"pairs": new * (before + (new + 1) / 2), "rows": new, "longest": before + new, "q_heads": heads}
    shapes = np.full(len(new), f"{rank.q_heads}x{rank.kv_heads}")
    return Table(device, SOURCE, "prefill", chip_of(device), inputs, seconds, shapes)


def _fused(folder: Folder, parent: Path, device: str, rank: Rank) -> list[Table]:
    """vLLM's kernels: products with weights joined, fused norms, attention."""
    dense, found = _dense(folder, parent), []
    for name, product in rank.products.items():
        found.append(_gemm(device, product, *dense[FUSED[name]]))
    found.append(_gemm(device, rank.head, *_sequences(folder, parent)["lm_head"]))
    chip: Chip = chip_of(device)
    for index, kind in enumerate(SMALL):
        tokens, seconds = dense[SMALLS[kind]]
        inputs = {"kind": np.full(len(tokens), index), "moved": rank.moved(kind, tokens)}
        found.append(Table(device, SOURCE, "small", chip, inputs, seconds, np.full(len(tokens), f"{kind}{int(rank.moved(kind, 1.0))}")))
    decode, prefill = _attention(folder, parent)
    count, context = decode["n_decode"], decode["kv_decode"]
    heads = {"q_heads": np.full(len(count), float(rank.q_heads)), "kv_heads": np.full(len(count), float(rank.kv_heads))}
    inputs = {"sequences": count, "tokens": count * context, "longest": context, **heads}
    shapes = np.full(len(count), f"{rank.q_heads}x{rank.kv_heads}")
    found.append(Table(device, SOURCE, "decode", chip, inputs, decode["seconds"], shapes))
    found.append(_prefill(device, rank, prefill["prefill_chunk"], prefill["kv_prefill"], prefill["seconds"]))
    return found


def _dense(folder: Folder, parent: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(tokens, seconds), [rows] each, of each operator."""
    rows = folder.table(folder.files(str(parent.relative_to(folder.root) / "dense.csv"))[0], {"layer": "s", "tokens": "f", "time_us": "f"})
    return {str(name): (of.tokens.to_numpy(float), of.time_us.to_numpy(float) * 1e-6) for name, of in rows.groupby("layer")}


def _sequences(folder: Folder, parent: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(sequences, seconds), [rows] each, of what is done once a sequence."""
    name = str(parent.relative_to(folder.root) / "per_sequence.csv")
    rows = folder.table(folder.files(name)[0], {"layer": "s", "sequences": "f", "time_us": "f"})
    return {str(name): (of.sequences.to_numpy(float), of.time_us.to_numpy(float) * 1e-6) for name, of in rows.groupby("layer")}


def _attention(folder: Folder, parent: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of steps that only decode, and of lone chunks of prompts."""
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    name = str(parent.relative_to(folder.root) / "attention.csv")
    rows = folder.table(folder.files(name)[0], {name: "f" for name in columns})
    found = []
    for chosen in (rows[rows.prefill_chunk == 0], rows[rows.n_decode == 0]):
        of = {name: chosen[name].to_numpy(float) for name in columns}
        found.append({**of, "seconds": of["time_us"] * 1e-6})
    return found[0], found[1]


def _whole(folder: Folder, parent: Path, device: str, rank: Rank) -> list[StepTable]:
    """Steps of the whole model: operators of a layer times layers, attention of the step, output matrix. Without the engine's own time."""
    dense, head = _dense(folder, parent), _sequences(folder, parent)["lm_head"]
    decode, prefill = _attention(folder, parent)
    layers, found = rank.model.layers, []
    for phase, of in (("decode", decode), ("prefill", prefill)):
        count = of["n_decode"] if phase == "decode" else np.ones_like(of["prefill_chunk"])
        new, before = (np.ones_like(count), of["kv_decode"] - 1) if phase == "decode" else (of["prefill_chunk"], of["kv_prefill"])
        rows = count * new
        known = np.isin(rows, dense["o_proj"][0]) & ((rows > DECODE_ROWS) | (phase == "decode"))
        count, new, before, rows, seconds = (values[known] for values in (count, new, before, rows, of["seconds"]))
        total_s = layers * seconds + np.interp(count, *head)
        for name, times in (*((theirs, 1) for theirs in FUSED.values()), ("layernorm", 2), ("rotary_emb", 1), ("act_fn", 1)):
            total_s = total_s + layers * times * np.interp(rows, *dense[name])
        parts = (*PRODUCTS, phase, "norm", "rope", "act", "head")
        found.append(StepTable(device, SOURCE, rank.model.name, 1, phase, parts, layers, count, new, before, total_s))
    return found


def _operators(folder: Folder, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(tokens, seconds), [rows] each, of each operator of the older kind."""
    rows = folder.table(path, {"layer_name": "s", "input": "f", "kv_cache": "f", "latency(ns)": "f"})
    found = {}
    for name, of in rows.groupby("layer_name"):
        tokens, seconds = of.input.to_numpy(float), of["latency(ns)"].to_numpy(float) * 1e-9
        found[str(name)] = (tokens[spread(tokens)], seconds[spread(tokens)])
    return found


def _unfused(folder: Folder, path: Path, device: str, rank: Rank) -> list[Table]:
    """transformers' products, each weight by itself, and the attention of a lone prompt."""
    operators, found = _operators(folder, path), []
    of = rank.products
    heads, each = rank.model.head_dim, {"q_proj": rank.q_heads, "k_proj": rank.kv_heads, "v_proj": rank.kv_heads}
    for name, count in each.items():
        found.append(_gemm(device, Product(count * heads, of["qkv"].k), *operators[name]))
    for name in ("gate_proj", "up_proj"):
        found.append(_gemm(device, Product(of["up"].n // 2, of["up"].k), *operators[name]))
    for name, product in (("o_proj", of["out"]), ("down_proj", of["down"]), ("lm_head", rank.head)):
        found.append(_gemm(device, product, *operators[name]))
    tokens, seconds = operators["attn"]
    many = tokens >= LEAST_PREFILL
    found.append(_prefill(device, rank, tokens[many], np.zeros(int(many.sum())), seconds[many]))
    return found


def _layers(folder: Folder, path: Path, device: str, rank: Rank) -> list[StepTable]:
    """The products of one layer, in steps of prompts with attention and activation."""
    operators = _operators(folder, path)
    tokens = operators["o_proj"][0]
    products_s = np.sum([operators[name][1] for names in UNFUSED.values() for name in names], axis=0)
    whole_s = products_s + operators["attn"][1] + operators["act_fn"][1]
    few, many = tokens <= DECODE_ROWS, tokens > DECODE_ROWS

    def steps_of(phase: str, parts: tuple[str, ...], count: np.ndarray, new: np.ndarray, seconds: np.ndarray) -> StepTable:
        return StepTable(device, SOURCE, rank.model.name, rank.tp, phase, parts, 1, count, new, np.zeros_like(new), seconds)

    one = np.ones_like(tokens)
    return [
        steps_of("decode", PRODUCTS, tokens[few], one[few], products_s[few]),
        steps_of("prefill", (*PRODUCTS, "prefill", "act"), one[many], tokens[many], whole_s[many]),
    ]
