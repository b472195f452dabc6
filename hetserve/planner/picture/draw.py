"""Draws a plan: above, the machines with their devices, coloured by group and role; below, the groups with their stages and the flow between them."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass

from hetserve.planner.marks import Marks, bottleneck
from hetserve.planner.picture.svg import box, curve, document, words
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.plan import Flow, Group, Plan, Stage

WIDTH, MARGIN = 1240.0, 20.0
DEVICE_W, DEVICE_H, GAP = 132.0, 54.0, 8.0  # of a device's box, and between boxes
ACROSS = 4  # devices side by side in a machine's box
HEAD = 40.0  # of a machine's box: name and links
CARD_W, LINE_H = 430.0, 17.0  # of a group's box, and of its lines
LABEL_W = 170.0  # of what is written beside an arrow
MOST_FLOWS = 12  # arrows that leave one group with a text beside each; more are drawn without
HUES = {"prefill": (8, 50), "decode": (195, 270), "mixed": (85, 165)}  # from and to: warm sends, cold receives
ROLE_WORDS = {"prefill": "prefill", "decode": "decode", "mixed": "prefill and decode"}


@dataclass(frozen=True)
class Work:
    """What one device does in one stage."""

    group: int
    layers: tuple[int, int]
    ranks: int
    primary: bool


def picture(plan: Plan, told: Sequence[str] = ()) -> str:
    """The plan as the text of an SVG file. `told`: lines under its title."""
    work, marks = _work(plan), bottleneck(plan.notes)
    title = f"{plan.model.shape.name} in {plan.model.dtype} on cluster {plan.cluster.name}, system {plan.system}"
    body = [words(MARGIN, 34, title, 18, bold=True, width=WIDTH - 2 * MARGIN)]
    top = 40.0
    for line in told:
        top += 18
        body.append(words(MARGIN, top, line, 12, "faint", width=WIDTH - 2 * MARGIN))
    top = _key(body, plan, work, marks, top + 14)
    top = _machines(body, plan, work, marks, top + 10)
    bottom = _groups(body, plan, marks, top + 34)
    return document(WIDTH, bottom + MARGIN, title, body)


def _work(plan: Plan) -> dict[str, list[Work]]:
    found: dict[str, list[Work]] = {device.name: [] for device in plan.cluster.devices}
    for number, group in enumerate(plan.groups):
        for stage in group.stages:
            for name in (*stage.primary, *stage.attention):
                found[name].append(Work(number, stage.layers, len(stage.primary), name in stage.primary))
    return found


def _colour(plan: Plan, number: int, pale: bool = False) -> str:
    """Of a group: its role says which range of hues, its place among its like which of them; every second one is lighter. Pale: who only attends."""
    role = plan.groups[number].role
    alike = [n for n, group in enumerate(plan.groups) if group.role == role]
    low, high = HUES[role]
    place = alike.index(number)
    hue = low + (high - low) * (place / (len(alike) - 1) if len(alike) > 1 else 0.5)
    red, green, blue = hls_to_rgb(hue / 360, 0.92 if pale else 0.82 if place % 2 else 0.7, 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _key(body: list[str], plan: Plan, work: dict[str, list[Work]], marks: Marks, top: float) -> float:
    """What the colours mean, only of what is there."""
    x = MARGIN
    entries = [(ROLE_WORDS[role], _colour(plan, first), "") for role in HUES if (first := _first(plan, role)) is not None]
    if any(not one.primary for all_of in work.values() for one in all_of):
        entries.append(("attention worker: KV heads, no weights", "#eef1f4", "5 3"))
    if any(not all_of for all_of in work.values()):
        entries.append(("left out", "none", ""))
    if marks.groups or marks.links:
        entries.append(("bottleneck", "", ""))
    for name, fill, dash in entries:
        more = {"stroke_dasharray": dash} if dash else {}
        body.append(box(x, top, 22, 14, "box" if fill else "box hot", style=f"fill:{fill or 'none'}", **more))
        body.append(words(x + 28, top + 11, name, 11, "faint"))
        x += 28 + len(name) * 11 * 0.6 + 22
    return top + 14


def _first(plan: Plan, role: str) -> int | None:
    return next((n for n, group in enumerate(plan.groups) if group.role == role), None)


def _machines(body: list[str], plan: Plan, work: dict[str, list[Work]], marks: Marks, top: float) -> float:
    """Machines from left to right, row under row; returns where they end."""
    x, row_h = MARGIN, 0.0
    nodes = dict.fromkeys(device.node for device in plan.cluster.devices)
    for node in nodes:
        devices = [device for device in plan.cluster.devices if device.node == node]
        across = min(ACROSS, len(devices))
        width = across * DEVICE_W + (across + 1) * GAP
        height = HEAD + -(-len(devices) // across) * (DEVICE_H + GAP)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, top, row_h = MARGIN, top + row_h + 12, 0.0
        links = _links_told(plan.cluster, node, devices)
        body.append(box(x, top, width, height, tip="; ".join([node or "this machine", *links])))
        body.append(words(x + GAP, top + 16, node or "this machine", 12, bold=True, width=width - 2 * GAP))
        body.append(words(x + GAP, top + 31, ", ".join(links), 10, "faint", width=width - 2 * GAP))
        for place, device in enumerate(devices):
            left, above = x + GAP + place % across * (DEVICE_W + GAP), top + HEAD + place // across * (DEVICE_H + GAP)
            body += _device(plan, device, work[device.name], marks, left, above)
        x, row_h = x + width + 12, max(row_h, height)
    return top + row_h


def _links_told(cluster: Cluster, node: str, devices: Sequence[Device]) -> list[str]:
    """What is declared of a machine's links: by the machine, else by its devices one by one."""
    told = next((one for one in cluster.nodes if one.name == node), None)
    names = {device.name for device in devices}
    inside = [link.bytes_per_s for link in cluster.links if {link.source, link.target} <= names]
    outside = [link.bytes_per_s for link in cluster.links if len({link.source, link.target} & names) == 1]
    if told is not None:
        inside += [told.inside.bytes_per_s] if told.inside else []
        outside += [told.outside.bytes_per_s] if told.outside else []
    return [f"{where} {_rates(rates)}" for where, rates in (("inside", inside), ("outside", outside)) if rates]


def _device(plan: Plan, device: Device, work: Sequence[Work], marks: Marks, x: float, y: float) -> list[str]:
    """Three lines in a box: name, what it is, what it does."""
    what = device.gpu or f"{device.kind} {device.isa}".strip()
    memory = f"{device.memory_bytes / 2**30:.3g} GiB"
    does = _does(work)
    kind = "box hot" if any(one.group in marks.groups and one.primary for one in work) else "box"
    more, ink, faint = {}, "ink", "faint"
    if any(one.primary for one in work):
        more["style"] = f"fill:{_colour(plan, next(one.group for one in work if one.primary))}"
    elif work:
        more = {"style": f"fill:{_colour(plan, work[0].group, pale=True)}", "stroke_dasharray": "5 3"}
    if work:
        ink = faint = "on"
    inner = DEVICE_W - 12
    return [
        box(x, y, DEVICE_W, DEVICE_H, kind, "; ".join([device.name, what, memory, *(does or ["left out"])]), **more),
        words(x + 6, y + 15, device.name, 11, ink, width=inner, bold=True),
        words(x + 6, y + 30, f"{what}, {memory}", 9, faint, width=inner),
        words(x + 6, y + 45, ", ".join(does) or "left out", 10, faint, width=inner),
    ]


def _does(work: Sequence[Work]) -> list[str]:
    """A device's part in each group, in a few letters."""
    told = []
    for number in dict.fromkeys(one.group for one in work):
        mine = [one for one in work if one.group == number]
        told += [f"g{number} {_layers(one.layers)}{f' TP{one.ranks}' if one.ranks > 1 else ''}" for one in mine if one.primary]
        attends = [_layers(one.layers) for one in mine if not one.primary]
        told += [f"g{number} attention {attends[0] if len(attends) == 1 else f'{len(attends)} stages'}"] if attends else []
    return told


def _groups(body: list[str], plan: Plan, marks: Marks, top: float) -> float:
    """Prefill groups at the left, decode groups at the right, the flow between; mixed groups two in a row below. Returns where they end."""
    sides = {role: [n for n, group in enumerate(plan.groups) if group.role == role] for role in HUES}
    left, right = MARGIN, WIDTH - MARGIN - CARD_W
    sends: dict[int, list[Flow]] = {n: [arc for arc in plan.flow if arc.source == n] for n in sides["prefill"]}
    takes: dict[int, list[Flow]] = {n: [arc for arc in plan.flow if arc.target == n] for n in sides["decode"]}
    ends, places = [top], {}
    for x, numbers, arcs in ((left, sides["prefill"], sends), (right, sides["decode"], takes)):
        y = top
        for number in numbers:
            height = max(_card_h(plan.groups[number]), 12 + LINE_H * min(len(arcs[number]), MOST_FLOWS))
            places[number] = (y, height)
            body += _card(plan, number, marks, x, y, height)
            y += height + 12
        ends.append(y)
    body += _arrows(plan, marks, sends, takes, places, left + CARD_W, right)
    y = max(ends)
    for place in range(0, len(sides["mixed"]), 2):
        row = sides["mixed"][place : place + 2]
        height = max(_card_h(plan.groups[number]) for number in row)
        for column, number in enumerate(row):
            body += _card(plan, number, marks, (left, left + CARD_W + 24)[column], y, height)
        y += height + 12
    return y


def _card_h(group: Group) -> float:
    return 28 + LINE_H * sum(1 + bool(stage.attention) for stage in group.stages) + 6


def _card(plan: Plan, number: int, marks: Marks, x: float, y: float, height: float) -> list[str]:
    """A group: role and rate, then a line for each stage, and one for its attention workers."""
    group, hot = plan.groups[number], number in marks.groups
    rate = f", {group.requests_per_s:.3g} requests/s" if group.requests_per_s else ""
    mark = ", bottleneck" if hot else ""
    name = f"group {number}: {ROLE_WORDS[group.role]}{rate}{mark}"
    shown = [box(x, y, CARD_W, height, "box hot" if hot else "box"), box(x, y, 8, height, style=f"fill:{_colour(plan, number)}")]
    shown.append(words(x + 16, y + 18, name, 12, bold=True, width=CARD_W - 24))
    line = y + 20
    for stage in group.stages:
        for text in _stage_told(stage):
            line += LINE_H
            shown.append(words(x + 16, line, text, 10.5, "faint", width=CARD_W - 24))
    return shown


def _stage_told(stage: Stage) -> list[str]:
    ranks = f"TP {len(stage.primary)}: " if len(stage.primary) > 1 else ""
    told = [f"layers {_layers(stage.layers)}, {ranks}{_names(stage.primary)}"]
    return told + ([f"attention on {_names(stage.attention)}"] if stage.attention else [])


def _arrows(
    plan: Plan, marks: Marks, sends: dict[int, list[Flow]], takes: dict[int, list[Flow]], places: dict[int, tuple[float, float]], x0: float, x1: float
) -> list[str]:
    """An arrow for each share, its ends spread over the sides of the cards; beside its beginning the share and the slowest link."""
    shown = []
    for number, arcs in sends.items():
        for place, arc in enumerate(arcs):
            if arc.target not in places:
                continue
            others = takes[arc.target]
            start = (x0, _port(places[number], place, len(arcs)))
            end = (x1, _port(places[arc.target], others.index(arc), len(others)))
            marked = (arc.source, arc.target) in marks.links
            link = _between(plan, arc)
            text = f"{arc.share:.0%}{f', {link}' if link else ''}{', bottleneck' if marked else ''}"
            tip = f"group {arc.source} to group {arc.target}: {text}"
            shown.append(curve(start, end, LABEL_W, 1 + 3 * arc.share, "flow hot" if marked else "flow", tip))
            if len(arcs) <= MOST_FLOWS:
                shown.append(words(x0 + 6, start[1] - 4, text, 10, "alarm" if marked else "ink", width=LABEL_W))
    return shown


def _port(place: tuple[float, float], number: int, count: int) -> float:
    top, height = place
    return top + height * (number + 1) / (count + 1)


def _between(plan: Plan, arc: Flow) -> str:
    """The declared links between the devices of two groups."""
    ends = [[name for stage in plan.groups[number].stages for name in stage.primary] for number in (arc.source, arc.target)]
    rates = [link.bytes_per_s for one in ends[0] for other in ends[1] if (link := plan.cluster.link(one, other)) is not None]
    return _rates(rates) if rates else ""


def _rates(rates: Sequence[float]) -> str:
    low, high = min(rates) / 1e9, max(rates) / 1e9
    return f"{low:.3g} GB/s" if low == high else f"{low:.3g} to {high:.3g} GB/s"


def _names(devices: Sequence[str]) -> str:
    """Devices in a list; those that differ only by their last numbers share one word."""
    stems: dict[str, list[str]] = {}
    for name in devices:
        stem = name.rstrip("0123456789")
        stems.setdefault(stem, []).append(name[len(stem) :])
    return ", ".join(f"{stem}{_numbers(ends)}" for stem, ends in stems.items())


def _numbers(ends: Sequence[str]) -> str:
    run = [str(int(ends[0]) + step) for step in range(len(ends))] if len(ends) > 2 and all(ends) else []
    return f"{ends[0]} to {ends[-1]}" if list(ends) == run else ", ".join(ends)


def _layers(layers: tuple[int, int]) -> str:
    return f"{layers[0]}\u2013{layers[1] - 1}" if layers[1] - layers[0] > 1 else f"{layers[0]}"
