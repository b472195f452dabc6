"""Pictures of plans: XML that any reader takes, everything in it, nothing over anything else."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from planner_cases import model

from hetserve.planner.hexgen2.plan import plan_hexgen2
from hetserve.planner.hexgen2.search import Search
from hetserve.planner.marks import Marks, bottleneck
from hetserve.planner.options import Options
from hetserve.planner.picture.draw import picture
from hetserve.spec.cluster import Cluster, Device, Host
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Flow, Group, Plan, Pool, Stage
from hetserve.spec.workload import Workload

SVG = "{http://www.w3.org/2000/svg}"
HOST = Host((0, 1), 2**33, "avx2")
MODEL = model(8)
BASE = plan_hexgen2(load_cluster("h100x8", HOST), MODEL, Workload(700.0, 200.0), Options(max_model_len=1024), Search(effort=50, starts=1))


def stage(layers: tuple[int, int], primary: tuple[str, ...], attention: tuple[str, ...] = ()) -> Stage:
    return Stage(layers, primary, attention, tuple(Pool(name, 8, 4096) for name in (*primary, *attention)), "bfloat16")


def made(devices: list[Device], groups: tuple[Group, ...], flow: tuple[Flow, ...] = (), notes: tuple[str, ...] = ()) -> Plan:
    return replace(BASE, cluster=Cluster("made up", (0,), tuple(devices)), groups=groups, flow=flow, notes=notes)


def device(name: str, node: str = "", kind: str = "cuda") -> Device:
    return Device(name, kind, (0,), "", 2**34, node=node, gpu="L40-48GB" if kind == "cuda" else "")


def texts(root: ET.Element) -> list[str]:
    """What is to be read, whole."""
    return ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]


def boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    return [tuple(float(one.get(key, "0")) for key in ("x", "y", "width", "height")) for one in root.iter(f"{SVG}rect")][1:]  # type: ignore[misc]


def check(text: str) -> ET.Element:
    """Inside the paper; boxes apart or one within the other; words of one size never on one another."""
    root = ET.fromstring(text)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
    found = boxes(root)
    for x, y, w, h in found:
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(found, 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
        holds = ax <= bx and bx + bw <= ax + aw and ay <= by and by + bh <= ay + ah
        held = bx <= ax and ax + aw <= bx + bw and by <= ay and ay + ah <= by + bh
        assert apart or holds or held, ((ax, ay, aw, ah), (bx, by, bw, bh))
    lines = []
    for one in root.iter(f"{SVG}text"):
        shown = (one.text or "") if len(one) == 0 else (one[-1].tail or "")
        size = float(one.get("font-size", "0"))
        x, y = float(one.get("x", "0")), float(one.get("y", "0"))
        lines.append((x, y - 0.75 * size, 0.55 * size * len(shown), 0.95 * size))
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(lines, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay, ((ax, ay, aw), (bx, by, bw))
    assert all(x + w <= width for x, _, w, _ in lines)
    return root


def test_a_plan_of_hexgen2() -> None:
    root = check(picture(BASE, ["predicted: much"]))
    said = texts(root)
    assert "predicted: much" in said and any("inside 450 GB/s, outside 12.5 GB/s" in one for one in said)
    for number, group in enumerate(BASE.groups):
        assert any(one.startswith(f"group {number}: {group.role}, {group.requests_per_s:.3g} requests/s") for one in said)
    for one in BASE.cluster.devices:
        assert one.name in said
    assert len(list(root.iter(f"{SVG}path"))) == 1 + len(BASE.flow)  # one is the arrow's head
    for arc in BASE.flow:
        assert any(one.startswith(f"{arc.share:.0%}, 450 GB/s") for one in said)
    marks = bottleneck(BASE.notes)
    assert marks.groups or marks.links  # what the planner writes is what is looked for
    assert any(one.endswith("bottleneck") for one in said)


def test_the_bottleneck_as_notes_have_it() -> None:
    note = "predicted: 3 requests/s; the bottleneck is group 1 (decode on group 7 and 3 more), the links from group 0 to group 2"
    assert bottleneck([note, "x"]) == Marks(frozenset({1}), frozenset({(0, 2)}))
    assert bottleneck(["group 4 (mixed)"]) == Marks(frozenset(), frozenset())
    groups = (Group("prefill", (stage((0, 8), ("a",)),), 3.0), Group("decode", (stage((0, 8), ("b",)),), 1.0))
    plan = made([device("a"), device("b")], groups, (Flow(0, 1, 1.0),), ("; the bottleneck is the links from group 0 to group 1",))
    root = check(picture(plan))
    assert [one for one in root.iter(f"{SVG}path") if one.get("class") == "flow hot"] and "100%, bottleneck" in texts(root)


@pytest.mark.parametrize("count", [4, 12, 24, 64])
def test_many_devices_do_not_collide(count: int) -> None:
    """Machines of 1 to 8, groups of every size, every prefill group sending to every decode group, devices left out, attention workers."""
    devices = [device(f"rtx-a6000-48gb-{n // 8}-{n % 8}", f"a machine with a long name {n // 8}" if n < 56 else f"alone {n}") for n in range(count)]
    names = [one.name for one in devices]
    groups = []
    for first in range(0, count - count // 4, 3):
        mine = names[first : first + 3]
        role = ("prefill", "decode", "mixed")[first // 3 % 3]
        attention = (names[-1],) if role == "decode" else ()
        groups.append(Group(role, (stage((0, 5), (mine[0],), attention), *([stage((5, 8), tuple(mine[1:]))] if mine[1:] else [])), 1.0))
    sources = [n for n, one in enumerate(groups) if one.role == "prefill"]
    targets = [n for n, one in enumerate(groups) if one.role == "decode"]
    flow = tuple(Flow(a, b, 1 / len(targets)) for a in sources for b in targets)
    root = check(picture(made(devices, tuple(groups), flow), ["a line"] * 4))
    said = texts(root)
    assert all(name in said for name in names) and "left out" in said
    assert len(list(root.iter(f"{SVG}path"))) == 1 + len(flow)
    if targets:
        assert any("attention" in one for one in said)


def test_strange_names_do_not_break_it() -> None:
    names = ['<a & "b">', "]]>", "\u0001\ud83d\ude80".encode("utf-16", "surrogatepass").decode("utf-16"), "x" * 300]
    groups = tuple(Group("mixed", (stage((0, 8), (name,)),), 1.0) for name in names)
    plan = replace(made([device(name, "<node>") for name in names], groups), system="<script>alert(1)</script>")
    root = check(picture(plan))
    whole = "".join(root.itertext())
    assert '<a & "b">' in whole and "\ufffd\U0001f680" in whole and "x" * 300 in whole
    assert not list(root.iter(f"{SVG}script"))


def test_light_and_dark() -> None:
    """Colours of paper and ink are named in the style sheet only, once for either; on coloured boxes the ink is dark in both."""
    text = picture(BASE)
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    for name in (".paper", ".ink", ".faint", ".box"):
        assert name in light and name in dark
    body = text[text.index("</style>") :]
    assert re.findall(r'fill="#', body) == [] and 'class="on"' in body
    for fill in re.findall(r"fill:#(\w{6})", body):
        assert sum(int(fill[n : n + 2], 16) * weight for n, weight in ((0, 0.3), (2, 0.59), (4, 0.11))) > 120  # dark ink is legible on it
