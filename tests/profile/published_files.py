"""Made-up tables in the formats of the published collections: a few rows each, told by a formula, on a chip the catalog knows."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

from hetserve.catalog import rows
from hetserve.cost.kernels import AllReduce, Decode, Gemm, Link, Prefill, Small
from hetserve.cost.library import chip_of
from hetserve.cost.step import Rank

GEMM = Gemm(5e-6, 2e-10, 0.85, 0.8, 0.75, 0.7, 1.2, 2.5)
DECODE = Decode(1.3e-5, 5e-6, 0.75, 2e-10, 2e-9, 1.8)
PREFILL = Prefill(1e-5, 0.6, 1.2, 20.0, 1e-8, 1e-8, 2.0)
SMALL = Small(4e-6, 3e-6, 3e-6, 0.7)
REDUCE = AllReduce(5e-6, 1e-6, 0.7, 1.5)
LINK = Link(2e-5, 0.7)
A100, A100_40 = "A100-SXM-80GB", "A100-SXM-40GB"


def write(root: Path) -> Path:
    """A folder with something of every collection; gives it back."""
    for make in (_aiconfigurator, _vidur, _llmservingsim, _helix, _distserve):
        make(root)
    return root


def put(path: Path, header: str, lines: list[str]) -> None:
    """A CSV file, gzipped if its name says so; an empty header is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*([header] if header else []), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def _aiconfigurator(root: Path) -> None:
    folder, chip = root / "aiconfigurator" / "a100_sxm", chip_of(A100)
    grid = itertools.product((1, 16, 128, 1024), (1024, 4096, 8192), (1024, 4096, 8192))
    lines = [f"x,y,bfloat16,{m},{n},{k},{1e3 * GEMM.seconds(chip, m, n, k)}" for m, n, k in grid]
    put(folder / "gemm_perf.vllm-1.csv.gz", "device,kernel_source,gemm_dtype,m,n,k,latency", lines)
    header = "device,kernel_source,batch_size,isl,num_heads,num_key_value_heads,head_dim,step,latency"
    grid = itertools.product((1, 16, 64), (127, 1023, 4095), ((32, 8), (64, 8), (8, 8)))
    told = [(b, s, q, kv, DECODE.seconds(chip, b, b * (s + 1), s + 1, q, kv)) for b, s, (q, kv) in grid]
    put(folder / "generation_attention_perf.vllm-1.csv.gz", header, [f"x,y,{b},1,{q},{kv},128,{s},{1e3 * t}" for b, s, q, kv, t in told])
    grid = itertools.product((1, 4), (256, 1024, 4096), ((32, 8), (64, 8), (8, 8)))
    told = [(b, s, q, kv, PREFILL.seconds(chip, b * s * (s + 1) / 2, b * s, s, q)) for b, s, (q, kv) in grid]
    put(folder / "context_attention_perf.vllm-1.csv.gz", header, [f"x,y,{b},{s},{q},{kv},128,0,{1e3 * t}" for b, s, q, kv, t in told])
    sizes = [(n, 4**e) for n in (2, 4, 8) for e in range(4, 14)]
    lines = [f"f,v,d,all_reduce,NCCL,half,{n},{size},{1e3 * REDUCE.seconds(300e9, n, 2 * size)}" for n, size in sizes]
    put(folder / "nccl_perf.nccl-1.csv.gz", "framework,version,device,op_name,kernel_source,nccl_dtype,num_gpus,message_size,latency", lines)


def _vidur(root: Path) -> None:
    rank, chip = Rank(rows.model("Llama-2-70B")), chip_of(A100)
    names = {"qkv": "attn_pre_proj", "out": "attn_post_proj", "up": "mlp_up_proj", "down": "mlp_down_proj"}
    columns = [*names.values(), "input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "add"]
    lines = []
    for tokens in (1, 8, 64, 512, 2048):
        product_s = [GEMM.seconds(chip, tokens, *rank.products[name]) for name in names]
        small_s = [float(SMALL.seconds(chip, index, rank.moved(kind, tokens))) for index, kind in ((0, "norm"), (0, "norm"), (1, "rope"), (2, "act"))]
        lines.append(",".join(map(str, [*(1e3 * float(each) for each in (*product_s, *small_s, 0.0)), tokens, 1])))
    header = ",".join([*(f"time_stats.{name}.median" for name in columns), "num_tokens", "num_tensor_parallel_workers"])
    put(root / "vidur/compute/a100/Llama-2-70b-hf/mlp.csv", header, lines)
    lines = [f"{1e3 * float(LINK.seconds(300e9, size))},2,{size},2" for size in (2**11, 2**16, 2**20, 2**24)]
    put(root / "vidur/network/a100_dgx/send_recv.csv", "time_stats.send_recv.median,num_workers,size,devices_per_node", lines)


def _llmservingsim(root: Path) -> None:
    rank, chip = Rank(rows.model("Llama-3-8B")), chip_of("RTX-3090-24GB")
    of = rank.products
    products = {
        **{"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": of["out"]},
        **{"gate_proj": (of["up"].n // 2, 4096), "up_proj": (of["up"].n // 2, 4096), "down_proj": of["down"], "lm_head": rank.head},
    }
    lines = []
    for tokens in (1, 2, 8, 64, 128, 512, 2048):
        lines += [f"{name},{tokens},0,1,{1e9 * float(GEMM.seconds(chip, tokens, n, k))}" for name, (n, k) in products.items()]
        attention_s = float(PREFILL.seconds(chip, tokens * (tokens + 1) / 2, tokens, tokens, 32))
        lines += [f"attn,{tokens},0,1,{1e9 * attention_s}", f"act_fn,{tokens},0,1,3000"]
    put(root / "llmservingsim/v0/RTX3090/Llama-3.1-8B/tp1/layers.csv.gz", "layer_name,input,kv_cache,tp_size,latency(ns)", lines)


def _helix(root: Path) -> None:
    rank, chip = Rank(rows.model("Llama-2-70B")), chip_of(A100_40)

    def layer_ms(tokens: int) -> float:
        return sum(1e3 * float(GEMM.seconds(chip, tokens, *product)) for product in rank.products.values())

    put(root / "helix/llama2_70b/a100/decode_bs2time.csv", "", ["0,0", *(f"{n},{layer_ms(n):.1f}" for n in (2, 4, 8, 16, 100))])
    put(root / "helix/llama2_70b/a100/prompt_bs2time.csv", "", ["0,0", *(f"{n},{layer_ms(n):.0f}" for n in (500, 1000, 2000, 4000))])


def _distserve(root: Path) -> None:
    fit = {"prefill": [18.0, 0.1, 7e-6], "decoding_smallbs": [20.0, 6e-4, 0.04], "decoding_largebs": [7.0, 6e-4, 0.16]}
    (root / "distserve").mkdir()
    text = json.dumps({"facebook/opt-13b": {"1": fit}, "facebook/opt-66b": {"4": fit}})
    (root / "distserve/profiler-a100-80g.distserve.json").write_text(text)
