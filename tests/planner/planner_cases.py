"""Made-up clusters with a profile of any speeds, for planner tests."""

from __future__ import annotations

from collections.abc import Mapping

from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import AttentionLine, Contention, DensePoint, DenseTimes, DeviceProfile, LinkProfile, Profile, Slowed

GIB = 2**30
ROWS = (1, 8, 64, 512, 2048)


def model(layers: int = 16, **changes) -> ModelSpec:
    shape = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2816, "vocab_size": 32000}
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "max_position_embeddings": 16384, "dtype": "bfloat16"}
    return ModelSpec.from_hf({**config, **shape, **changes}, None, "made up")


def cluster(devices: Mapping[str, tuple[str, float]]) -> Cluster:
    """Devices by name: (isa, GiB)."""
    made = (Device(name, "cpu", (core,), isa, int(gib * GIB)) for core, (name, (isa, gib)) in enumerate(devices.items()))
    return Cluster("made up", (0,), tuple(made))


def contention(over: Cluster, attention: float, dense: float) -> tuple[Contention, ...]:
    """Devices that slow each other's attention and products so many times, whatever the other does."""
    names = [one.name for one in over.devices]
    attending, products = Slowed(attention, attention, attention), Slowed(dense, dense, dense)
    return tuple(Contention(a, b, attending, products, products) for a in names for b in names if a != b)


def profile(spec: ModelSpec, over: Cluster, row_s: Mapping[str, float], floor_s: float = 0.0, beta_s: float = 2e-5, float32: float = 2.0) -> Profile:
    """Products of row_s seconds a row and layer (by isa), attention of 10 GB/s everywhere; float32 weights take `float32` times as long."""
    vector_s = spec.head_dim * 2 / 1e10

    def dense(weights: str, layer_s: float, least_s: float) -> DenseTimes:
        points = tuple(DensePoint(rows, max(least_s, layer_s * rows)) for rows in ROWS)
        return DenseTimes(weights, points, points)

    def device(one: Device) -> DeviceProfile:
        each = row_s[one.isa]
        times = (dense("bfloat16", each, floor_s), dense("float32", each * float32, floor_s * 2))
        line = AttentionLine(1e-7, vector_s, 1e-6, 0.0)
        return DeviceProfile(one.name, "cpu", one.isa, 1, 1e10, line, 1e-9, times, one.isa)

    names = [one.name for one in over.devices]
    links = tuple(LinkProfile(a, b, vector_s, beta_s, 2e9, 0.0) for a in names for b in names if a != b)
    return Profile(
        model=spec.name,
        model_fingerprint=model_fingerprint(spec),
        dtype="bfloat16",
        machine="none",
        clocks_mhz=1.0,
        versions="",
        date="2026-01-01",
        devices=tuple(map(device, over.devices)),
        links=links,
    )
