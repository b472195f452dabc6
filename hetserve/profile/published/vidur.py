"""Vidur's tables (MIT): operators of layers by tokens and tensor parallelism, attention of one shape, networks, an engine's own time. Times in ms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.fits import Table
from hetserve.cost.kernels import SMALL
from hetserve.cost.library import chip_of, wire_of
from hetserve.cost.step import PRODUCTS, Rank
from hetserve.profile.published.files import Folder, spread, text
from hetserve.profile.published.steps import StepTable

SOURCE = "vidur"
DEVICES = {"a100": "A100-SXM-80GB", "h100": "H100-SXM-80GB", "a40": "A40-48GB"}
MODELS = {
    "CodeLlama-34b-Instruct-hf": "CodeLlama-34B",
    "Llama-2-70b-hf": "Llama-2-70B",
    "Llama-2-7b-hf": "Llama-2-7B",
    "Meta-Llama-3-70B": "Llama-3-70B",
    "Meta-Llama-3-8B": "Llama-3-8B",
}
OPERATORS = {"qkv": "attn_pre_proj", "out": "attn_post_proj", "up": "mlp_up_proj", "down": "mlp_down_proj"}
NORMS = ("input_layernorm", "post_attention_layernorm")
MOST_ROWS = 16384
DECODE_ROWS = 256  # a step of more tokens is one of prompts
ATTENTION = ("Llama-2-70b-hf", 2)  # the one shape and degree with attention
NETWORKS = {"a100_dgx": "A100-SXM-80GB", "a100_pairwise_nvlink": "A100-SXM-80GB", "h100_dgx": "H100-SXM-80GB"}
ALL_REDUCES = ("a100_dgx", "h100_dgx")  # where every pair of GPUs has the same link
CROSSING = ("a100_pairwise_nvlink", "A100-PCIe-80GB", 4)  # so many of these GPUs, and more, talk over PCI Express: their bridges join pairs
OLD_CROSSING = ("a40_all_reduce", "A40-48GB", 8)
LEAST_BYTES = 2**18  # of an all-reduce: medians of 3 runs, and below this they fall where sizes rise
HISTORY = (("a40_p2p_intra_node", "A40-48GB", "nvlink-bridge-112"), ("v100_p2p_intra_node", "V100-SXM2-16GB", "nvlink2-pair"))


def tables(folder: Folder) -> list[Table]:
    """Kernels, links and the engine's own time."""
    found = []
    for path, device, rank in _layers(folder):
        found += _kernels(folder, path, device, rank)
    for path in folder.files(f"{SOURCE}/compute/a100/{ATTENTION[0]}/attention_tp2_2024-05.csv"):
        found += _attention(folder, path)
    for name, device in NETWORKS.items():
        found += [_messages(folder, path, device) for path in folder.files(f"{SOURCE}/network/{name}/send_recv.csv")]
    for name in ALL_REDUCES:
        found += [_all_reduce(folder, path, NETWORKS[name]) for path in folder.files(f"{SOURCE}/network/{name}/all_reduce.csv")]
    name, device, least = CROSSING
    for path in folder.files(f"{SOURCE}/network/{name}/all_reduce.csv"):
        found.append(_over_pcie(_all_reduce(folder, path, device), least))
    name, device, least = OLD_CROSSING
    for path in folder.files(f"{SOURCE}/history/{name}.csv"):
        found.append(_over_pcie(_old_all_reduce(folder, path, device), least))
    for name, device, link in HISTORY:
        found += [_old_messages(folder, path, device, link) for path in folder.files(f"{SOURCE}/history/{name}.csv")]
    found += [_overhead(folder, path) for path in folder.files(f"{SOURCE}/history/a100_cpu_overheads.csv")]
    return found


def steps(folder: Folder) -> list[StepTable]:
    """Layers added up from their operators: the dense part of one, and where attention was measured a whole one."""
    found = []
    for path, device, rank in _layers(folder):
        tokens, parts_s = _operators(folder, path, rank)
        for phase, mask in (("decode", tokens <= DECODE_ROWS), ("prefill", tokens > DECODE_ROWS)):
            parts = (*PRODUCTS, "norm", "rope", "act")
            count, new = (tokens, np.ones_like(tokens)) if phase == "decode" else (np.ones_like(tokens), tokens)
            total_s = np.sum(list(parts_s.values()), axis=0)
            found.append(StepTable(device, SOURCE, rank.model.name, rank.tp, phase, parts, 1, count[mask], new[mask], 0 * new[mask], total_s[mask]))
    return found + _whole_layers(folder)


def _layers(folder: Folder) -> list[tuple[Path, str, Rank]]:
    """Every table of operators, once for each degree of tensor parallelism in it."""
    return [
        (path, device, Rank(catalog.model(model), tp))
        for name, device in DEVICES.items()
        for theirs, model in MODELS.items()
        for path in folder.files(f"{SOURCE}/compute/{name}/{theirs}/mlp.csv")
        for tp in (1, 2, 4, 8)
    ]


def _operators(folder: Folder, path: Path, rank: Rank) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Tokens [rows], and seconds [rows] of each part of a layer."""
    columns = {name: f"time_stats.{name}.median" for name in (*OPERATORS.values(), *NORMS, "attn_rope", "mlp_act", "add")}
    needed = {name: "f" for name in ("num_tokens", "num_tensor_parallel_workers", *columns.values())}
    table = folder.table(path, needed)
    rows = table[(table.num_tensor_parallel_workers == rank.tp) & (table.num_tokens <= MOST_ROWS) & (table.num_tokens >= 1)]
    seconds = {name: rows[column].to_numpy(float) * 1e-3 for name, column in columns.items()}
    parts = {ours: seconds[theirs] for ours, theirs in OPERATORS.items()}
    parts["norm"] = sum(seconds[name] for name in NORMS) + 2 * seconds["add"]
    parts["rope"], parts["act"] = seconds["attn_rope"], seconds["mlp_act"]
    tokens = rows.num_tokens.to_numpy(float)
    kept = spread(tokens)
    return tokens[kept], {name: values[kept] for name, values in parts.items()}


def _kernels(folder: Folder, path: Path, device: str, rank: Rank) -> list[Table]:
    """Products and small kernels of one degree of tensor parallelism."""
    tokens, parts_s = _operators(folder, path, rank)
    ones = np.ones_like(tokens)
    found = []
    for name, product in rank.products.items():
        inputs = {"m": tokens, "n": product.n * ones, "k": product.k * ones}
        found.append(Table(device, SOURCE, "gemm", chip_of(device), inputs, parts_s[name], text((inputs["n"], inputs["k"]))))
    for index, kind in enumerate(SMALL):
        kernels = 2 if kind == "norm" else 1
        inputs = {"kind": np.full(len(tokens), index), "moved": rank.moved(kind, tokens)}
        width = text((rank.moved(kind, ones),))
        found.append(Table(device, SOURCE, "small", chip_of(device), inputs, np.maximum(parts_s[kind] / kernels, 5e-7), np.char.add(kind, width)))
    return found


def _attention(folder: Folder, path: Path) -> list[Table]:
    model, tp = ATTENTION
    rank, device = Rank(catalog.model(MODELS[model]), tp), DEVICES["a100"]
    found = []
    for kind, rows in _attention_rows(folder, path).items():
        count, new, before = rows["sequences"], rows["new"], rows["before"]
        if kind == "decode":
            heads = {"q_heads": np.full(len(count), float(rank.q_heads)), "kv_heads": np.full(len(count), float(rank.kv_heads))}
            inputs = {"sequences": count, "tokens": count * (before + 1), "longest": before + 1, **heads}
        else:
            inputs = {
                "pairs": new * (before + (new + 1) / 2),
                "rows": new,
                "longest": before + new,
                "q_heads": np.full(len(new), float(rank.q_heads)),
            }
        shapes = np.full(len(count), f"{rank.q_heads}x{rank.kv_heads}")
        found.append(Table(device, SOURCE, kind, chip_of(device), inputs, rows["seconds"], shapes))
    return found


def _attention_rows(folder: Folder, path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Of each phase: sequences, new tokens, tokens before, seconds; [rows] each."""
    columns = {"batch_size": "f", "prefill_chunk_size": "f", "kv_cache_size": "f", "is_prefill": "s"}
    table = folder.table(path, columns)
    found = {}
    for phase in ("decode", "prefill"):
        rows = table[table.is_prefill.astype(str) == str(phase == "prefill")]
        seconds = rows[f"time_stats.attn_{phase}.median"].to_numpy(float) * 1e-3
        count, chunk, before = (rows[name].to_numpy(float) for name in ("batch_size", "prefill_chunk_size", "kv_cache_size"))
        new = np.ones_like(count) if phase == "decode" else chunk
        found[phase] = {"sequences": count, "new": new, "before": before, "seconds": seconds}
    return found


def _whole_layers(folder: Folder) -> list[StepTable]:
    """The dense part and attention of the one model and degree that have both; the dense part between measured tokens by a straight line."""
    theirs, tp = ATTENTION
    mlp, attention = (folder.files(f"{SOURCE}/compute/a100/{theirs}/{name}.csv") for name in ("mlp", "attention_tp2_2024-05"))
    if not mlp or not attention:
        return []
    rank, found = Rank(catalog.model(MODELS[theirs]), tp), []
    tokens, parts_s = _operators(folder, mlp[0], rank)
    order = np.argsort(tokens)
    dense_s = np.sum(list(parts_s.values()), axis=0)[order]
    for phase, rows in _attention_rows(folder, attention[0]).items():
        count = rows["sequences"] * rows["new"]
        total_s = rows["seconds"] + np.interp(count, tokens[order], dense_s)
        parts = (*PRODUCTS, "norm", "rope", "act", phase)
        of = [rows[name] for name in ("sequences", "new", "before")]
        found.append(StepTable(DEVICES["a100"], SOURCE, rank.model.name, tp, phase, parts, 1, of[0], of[1], of[2], total_s))
    return found


def _messages(folder: Folder, path: Path, device: str) -> Table:
    """Between two GPUs of one node."""
    rows = folder.table(path, {"num_workers": "f", "size": "f", "devices_per_node": "f", "time_stats.send_recv.median": "f"})
    rows = rows[(rows.num_workers == 2) & (rows.devices_per_node == 2)]
    seconds, sizes = rows["time_stats.send_recv.median"].to_numpy(float) * 1e-3, rows["size"].to_numpy(float)
    return Table(device, SOURCE, "link", wire_of(device).bytes_per_s, {"size_bytes": sizes}, seconds, text((np.exp2(np.floor(np.log2(sizes))),)))


def _old_messages(folder: Folder, path: Path, device: str, link: str) -> Table:
    """Between two GPUs of one node, a message being what a pipeline stage sends of so many tokens."""
    median = "time_stats.send_recv.median"
    rows = folder.table(path, {"n_embd": "f", "num_tokens": "f", "num_tensor_parallel_workers": "f", median: "f"})
    rows = rows[rows.num_tokens > 0]
    sizes = 2 * (rows.n_embd * rows.num_tokens / rows.num_tensor_parallel_workers).to_numpy(float)
    shapes = text((np.exp2(np.floor(np.log2(sizes))),))
    return Table(device, SOURCE, "link", wire_of(device, link).bytes_per_s, {"size_bytes": sizes}, rows[median].to_numpy(float) * 1e-3, shapes)


def _all_reduce(folder: Folder, path: Path, device: str) -> Table:
    """NCCL's, among the GPUs of one node."""
    median = "time_stats.all_reduce.median"
    rows = folder.table(path, {"num_workers": "f", "size": "f", "devices_per_node": "f", median: "f"})
    rows = rows[(rows.num_workers == rows.devices_per_node) & (rows["size"] >= LEAST_BYTES)]
    ranks, sizes = rows.num_workers.to_numpy(float), rows["size"].to_numpy(float)
    return Table(
        device,
        SOURCE,
        "nccl",
        wire_of(device).bytes_per_s,
        {"ranks": ranks, "size_bytes": sizes},
        rows[median].to_numpy(float) * 1e-3,
        text((ranks,)),
    )


def _old_all_reduce(folder: Folder, path: Path, device: str) -> Table:
    """NCCL's, of what layers of so many tokens have to add up."""
    median = "time_stats.all_reduce.median"
    rows = folder.table(path, {"num_workers": "f", "n_embd": "f", "num_tokens": "f", median: "f"})
    rows = rows[2 * rows.n_embd * rows.num_tokens >= LEAST_BYTES]
    ranks, sizes = rows.num_workers.to_numpy(float), 2 * (rows.n_embd * rows.num_tokens).to_numpy(float)
    inputs = {"ranks": ranks, "size_bytes": sizes}
    return Table(device, SOURCE, "nccl", wire_of(device).bytes_per_s, inputs, rows[median].to_numpy(float) * 1e-3, text((ranks,)))


def _over_pcie(table: Table, least_ranks: int) -> Table:
    """Of ranks so many that they are joined by more than their pairs' bridges."""
    return replace(table.rows(table.inputs["ranks"] >= least_ranks), kind="pcie")


def _overhead(folder: Folder, path: Path) -> Table:
    """What vLLM of 2023 did besides running the model, on one GPU: there, unlike with several, Ray passes nothing between processes."""
    names = ("schedule_median", "prepare_inputs_e2e_median", "sampler_e2e_median", "process_model_outputs_median")
    rows = folder.table(path, {"model_name": "s", "batch_size": "f", "tensor_parallel_degree": "f", **{name: "f" for name in names}})
    rows = rows[rows.tensor_parallel_degree == 1]
    seconds = rows[list(names)].sum(axis=1).to_numpy(float) * 1e-3
    return Table(DEVICES["a100"], SOURCE, "overhead", None, {"sequences": rows.batch_size.to_numpy(float)}, seconds, rows.model_name.to_numpy(str))
