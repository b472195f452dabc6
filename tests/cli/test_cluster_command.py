"""hetserve cluster as a user meets it, and what `hetserve plan` says and draws of a cluster with prices."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from hetserve.spec.load import load_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    shape = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2816}
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "dtype": "bfloat16", "vocab_size": 500, **shape}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_packaged_ones(run) -> None:
    listed = {one["name"]: one for one in json.loads(run("cluster", "list", "--json").stdout)["clusters"]}
    assert listed["h100x8"]["usd_per_hour"] == pytest.approx(29.52) and listed["helix-24"]["nodes"] == 24
    assert listed["hetis-testbed"]["usd_per_hour"] is None and listed["hetis-testbed"]["unpriced"] == [f"p100-{n}" for n in range(4)]
    shown = run("cluster", "list").stdout
    assert "hexgen2-het5" in shown and "over 6.44" in shown


def test_a_drawn_cluster_is_planned_and_drawn(run, folder, tmp_path) -> None:
    """The same flags give the same bytes; the plan says what it costs, in --json too, and the picture is XML."""
    made, plan, picture, printed = (tmp_path / name for name in ("c.toml", "plan.json", "plan.svg", "printed.json"))
    flags = ("cluster", "make", "--devices", "6", "--seed", "4", "--kinds", "A100, 3090", "--networks", "ethernet-10g,ethernet-25g")
    done = run(*flags, "-o", str(made))
    assert done.returncode == 0 and "6 GPUs in" in done.stdout, done.stderr
    assert run(*flags).stdout == made.read_text()
    assert "--kinds A100,3090 --networks ethernet-10g,ethernet-25g" in made.read_text().splitlines()[0]
    asked = ("plan", "--model", str(folder), "--cluster", str(made), "--system", "hexgen2", "--mean-input-len", "700")
    done = run(*asked, "--svg", str(picture), "-o", str(plan))
    assert done.returncode == 0, done.stderr
    assert "$/h for the cluster" in done.stdout and "$ a million tokens of answers" in done.stdout and "(market, listed: RunPod" in done.stdout
    assert ET.parse(picture).getroot().tag.endswith("svg")
    printed.write_text(run(*asked, "--json").stdout)
    price = json.loads(printed.read_text())["price"]
    assert price["cluster"]["devices"] == 6 and price["used"]["usd_per_million_output_tokens"] > price["used"]["usd_per_million_tokens"] > 0
    assert price["input_tokens"] == 700 and not price["cluster"]["unpriced"]
    assert load_plan(printed) == load_plan(plan)  # what --json prints is a plan


def test_prices_that_nobody_knows(run, folder, tmp_path) -> None:
    assert "price: not known of any device" in run("plan", "--model", str(folder), "--cluster", "cpu-1").stdout
    some = tmp_path / "some.toml"
    device = '[[device]]\nname = "{}"\nkind = "cuda"\ngpu = "{}"\nmemory = "9 GiB"\nnode = "n"\n{}'
    devices = device.format("old", "P100-PCIe-12GB", "") + device.format("new", "A100", "price_per_hour = 2.5\n")
    node = '[[node]]\nname = "n"\ninside = { latency_s = 1e-5, bytes_per_s = 1e10 }\n'
    some.write_text(f'[cluster]\nname = "some"\ncontrol_cores = [0]\n{node}{devices}')
    said = run("plan", "--model", str(folder), "--cluster", str(some), "--system", "hexgen2").stdout
    assert "more than 2.50 $/h for the cluster" in said and "no price is known of old;" in said and "a million tokens" not in said
    some.write_text(some.read_text().replace("2.5", "-2.5"))
    broken = run("plan", "--model", str(folder), "--cluster", str(some))
    assert broken.returncode == 3 and "must cost more than 0 US dollars an hour" in broken.stderr


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        ([], 2, "--devices"),
        (["--devices", "0"], 2, "0"),
        (["--devices", "4", "--kinds", "A1000"], 3, "did you mean 'A100-SXM-80GB'"),
        (["--devices", "4", "--networks", "nvlink4"], 2, "not machines"),
        (["--devices", "4", "--name", "a b"], 2, "letters, digits"),
        (["--devices", "4", "-o", "/nowhere/c.toml"], 5, "/nowhere/c.toml"),
    ],
)
def test_what_it_will_not_draw(run, args, code, expected) -> None:
    done = run("cluster", "make", *args)
    assert done.returncode == code and expected in done.stderr and not done.stdout
