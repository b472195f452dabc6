"""A plan with tensor-parallel ranks, as typed: it is made, shown, written and simulated."""

from __future__ import annotations

import json
import re


def test_a_large_model_on_eight_gpus(run, tmp_path) -> None:
    shape = {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000}
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 80, "max_position_embeddings": 4096, "dtype": "bfloat16", **shape}
    folder, plan = tmp_path / "llama-70b", tmp_path / "plan.json"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    made = run("plan", "--system", "hexgen2", "--model", str(folder), "--cluster", "h100x8", "-o", str(plan))
    assert made.returncode == 0, made.stderr
    assert "upper bound: " in made.stdout and "(TP " in made.stdout
    groups = json.loads(plan.read_text())["groups"]
    ranks = [stage for group in groups for stage in group["stages"] if stage["tp"] > 1]
    assert ranks and {group["role"] for group in groups} == {"prefill", "decode"}
    pool = ranks[0]["pools"][0]
    tokens = pool["pages"] * ranks[0]["tp"] // 8 * 16
    assert re.search(rf"{re.escape(pool['device'])} .*{pool['pages']:,} .*{tokens:,}\n", made.stdout)
    done = run("simulate", "--plan", str(plan), "--num-prompts", "2", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["systems"]["hexgen2"]["completed"] == 2, done.stderr
