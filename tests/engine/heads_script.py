"""Drives workers without a controller: random batches, chunks, moves and replacements of head groups, as messages made by hand.

Whatever the script does, every sequence must get the tokens it gets alone on one device, and whatever is moved must arrive as it was.
"""

from __future__ import annotations

import queue
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetserve.control.messages import NO_INTS, NO_PAGES, MoveKv, Place, Replace, RunStep, Sampling, Start
from hetserve.engine.channel import Lost, Outgoing, make_channels, plan_layout
from hetserve.engine.wire import MoveResult, StepResult
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.load import load_model
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Limits, Plan, PlanModel, Pool, Stage, page_bytes

PAGE = 16
PROMPTS = [[(7 * i + 3 * j) % 250 + 5 for j in range(length)] for i, length in enumerate((1, 15, 16, 33, 60))]
NEW_TOKENS = 40

LAYOUTS = {
    "one worker": lambda layers: [(layers, "a", "b")],
    "two workers": lambda layers: [(layers, "a", "b", "c")],
    "two stages": lambda layers: [(1, "a"), (layers, "b")],
    "two stages that hold each other's heads": lambda layers: [(1, "a", "b"), (layers, "b", "a")],
    "two stages with a worker": lambda layers: [(1, "a", "c"), (layers, "b", "c")],
}
WAIT_S = 60


def make_plan(
    spec: ModelSpec, groups, dtype="float32", pages=400, weights="", isa=(), kinds=(), max_seqs=8, roles=(), depth=2, system="uniform"
) -> Plan:
    """A plan from groups of stages, each (last layer, primary, *attention workers); devices "a", "b", ... share one core."""
    names = sorted({name for group in groups for _, *devices in group for name in devices})
    caps, of = dict(isa), dict(kinds)
    cluster = Cluster("test", (0,), tuple(Device(name, of.get(name, "cpu"), (0,), caps.get(name, ""), 1 << 32) for name in names))
    built = []
    for number, group in enumerate(groups):
        stages, first = [], 0
        for last, primary, *attention in group:
            size = page_bytes(spec, (first, last), dtype)
            pools = tuple(Pool(name, pages, size) for name in (primary, *attention))
            stages.append(Stage((first, last), (primary,), tuple(attention), pools, weights or dtype))
            first = last
        built.append(Group(roles[number] if roles else "mixed", tuple(stages)))
    limits = Limits(max_model_len=256, max_seqs=max_seqs, max_step_tokens=256, steps_in_flight=depth, max_waiting=100)
    return Plan(system, PlanModel(spec, dtype), cluster, limits, tuple(built))


@dataclass
class Seq:
    slot: int
    prompt: list[int]
    goal: int  # tokens to generate
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    placement: np.ndarray = field(default_factory=lambda: NO_INTS)
    pages: list[list[int]] = field(default_factory=list)  # of each lane
    bound: np.ndarray = field(default_factory=lambda: NO_INTS)  # where its prompt's head groups are being shipped to, if they are
    there: list[list[int]] = field(default_factory=list)  # of each lane: the pages there that have been ordered
    orders: list[int] = field(default_factory=list)  # moves that have not been waited for

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def decodes(self) -> bool:
        return bool(self.tokens) and self.computed == self.known - 1


class Workers:
    """Started workers of one group, and their pages."""

    def __init__(self, plan: Plan, folder: Path, private: Path, in_process: bool) -> None:
        self.layout = plan_layout(plan)
        self.heads = plan.model.shape.kv_heads
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.channels = make_channels(plan, folder, private, in_process)
        for channel in self.channels.values():
            channel.start(self.inbox.put)
        self.ready = {device: channel.ready() for device, channel in self.channels.items()}
        group = self.layout[0]
        self.home = np.repeat([stage.first_pool for stage in group.stages], self.heads).astype(np.int32)
        self.free = [list(range(pool.pages)) for stage in group.stages for pool in stage.pools]
        self.steps = self.moves = self.compared = 0
        self.stepped: deque[StepResult] = deque()
        self.moved: dict[int, bool] = {}
        self.killed: set[str] = set()

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()

    def send(self, message, devices) -> None:
        outgoing = Outgoing(message)
        for device in devices:
            self.channels[device].send(outgoing)

    def receive(self) -> None:
        """One message of a worker."""
        message = self.inbox.get(timeout=WAIT_S)
        if isinstance(message, MoveResult):
            self.moved[message.move] = message.ok
        elif isinstance(message, StepResult):
            self.stepped.append(message)
        else:
            assert isinstance(message, Lost) and message.device in self.killed, message

    def step(self, number: int = 0, **changes) -> StepResult:
        self.steps += 1
        nothing = dict.fromkeys(("ends", "grant_slots", "grant_index", "leaves", "joins", "chunk_slots", "chunk_tokens", "chunk_samples"), NO_INTS)
        step = RunStep(self.steps, number, **{**nothing, "starts": (), "replaces": (), "grant_pages": NO_PAGES, "predicted_s": 0.01, **changes})
        self.send(step, self.layout[number].devices)
        while not self.stepped:
            self.receive()
        return self.stepped.popleft()

    def order(self, layers, heads, pages_from, pages_to, source: Place, target: Place, step: int = -1) -> int:
        """Sends a move off; returns its number."""
        self.moves += 1
        move = MoveKv(self.moves, 0, 0, layers, heads, pages_from, pages_to, source, target, step)
        self.send(move, sorted({self.layout[place.group].pool_device(place.pool) for place in (source, target)}))
        return self.moves

    def await_move(self, number: int) -> bool:
        while number not in self.moved:
            self.receive()
        return self.moved.pop(number)

    def move(self, layers, heads, pages_from, pages_to, source: Place, target: Place) -> bool:
        ok = self.await_move(self.order(layers, heads, pages_from, pages_to, source, target))
        if ok:
            self.compare(pages_from, pages_to, source, target)
        return ok

    def compare(self, pages_from, pages_to, source: Place, target: Place) -> None:
        """What was moved has arrived as it was, as far as the workers' memory can be seen from here."""
        sums = []
        for place, pages in ((source, pages_from), (target, pages_to)):
            channel = self.channels[self.layout[place.group].pool_device(place.pool)]
            if not hasattr(channel, "worker"):
                return
            rows = channel.worker._memories[place.group, place.pool].rows
            assert rows[:, pages.ravel().tolist()].any(), "nothing was ever stored there"
            sums.append(zlib.crc32(rows[:, pages.ravel().tolist()].numpy().tobytes()))
        assert sums[0] == sums[1]
        self.compared += pages_from.size


class Script:
    """Random stepping of some sequences on one group."""

    def __init__(self, workers: Workers, prompts: list[list[int]], goal: int, seed: int, ships: float = 0.0) -> None:
        self.workers = workers
        self.ships = ships  # how many of the prompts are shipped behind their chunks
        self.rng = np.random.default_rng(seed)
        self.seqs = [Seq(slot, prompt, goal, placement=workers.home.copy()) for slot, prompt in enumerate(prompts)]
        self.standing: set[int] = set()
        self.replaces: list[Replace] = []
        self.moved = self.shipped = 0
        self.dispatched = 0

    def run(self, moves: bool = True) -> list[list[int]]:
        """Steps and (if so wanted) moves until all sequences have their tokens."""
        while any(len(seq.tokens) < seq.goal for seq in self.seqs):
            if moves and self.rng.random() < 0.4:
                self.move()
            self.step()
        return [seq.tokens for seq in self.seqs]

    def step(self) -> StepResult | None:
        rng = self.rng
        decode = {seq.slot for seq in self.seqs if seq.decodes and len(seq.tokens) < seq.goal and rng.random() < 0.8 and self.settled(seq)}
        chunks = [seq for seq in self.seqs if seq.computed < seq.known and not seq.decodes and rng.random() < 0.5]
        if not decode and not chunks:
            return None
        counts = [int(rng.integers(1, seq.known - seq.computed + 1)) for seq in chunks]
        starts = [Start(seq.slot, seq.slot, 0, np.array(seq.prompt, np.int32), len(seq.prompt), 0, Sampling()) for seq in chunks if seq.computed == 0]
        taken = [(self.seqs[slot], 1) for slot in sorted(decode)] + list(zip(chunks, counts, strict=True))
        grants = [grant for seq, count in taken for grant in self.grant(seq, count)]
        samples = [seq.computed + count == seq.known for seq, count in zip(chunks, counts, strict=True)]
        for seq, count in zip(chunks, counts, strict=True):
            self.ship(seq, count)
        result = self.workers.step(
            starts=tuple(starts),
            replaces=tuple(self.replaces),
            grant_slots=np.array([slot for slot, _, _ in grants], np.int32),
            grant_index=np.array([index for _, index, _ in grants], np.int32),
            grant_pages=np.array([pages for _, _, pages in grants], np.int32).reshape(len(grants), len(self.workers.home)),
            leaves=np.array(sorted(self.standing - decode), np.int32),
            joins=np.array(sorted(decode - self.standing), np.int32),
            chunk_slots=np.array([seq.slot for seq in chunks], np.int32),
            chunk_tokens=np.array(counts, np.int32),
            chunk_samples=np.array(samples, np.int32),
        )
        self.replaces = []
        self.standing = decode
        self.dispatched += sum(int((self.seqs[slot].placement != self.workers.home).sum()) for slot in decode)
        sampled = [self.seqs[slot] for slot in sorted(decode)] + [seq for seq, one in zip(chunks, samples, strict=True) if one]
        for seq, count in taken:
            seq.computed += count
        for seq, token in zip(sampled, result.tokens.tolist(), strict=True):
            seq.tokens.append(token)
        return result

    def grant(self, seq: Seq, count: int):
        """Pages for the next `count` tokens: (slot, index, [lanes])."""
        seq.pages = seq.pages or [[] for _ in seq.placement]
        while len(seq.pages[0]) * PAGE < seq.computed + count:
            pages = [self.take(pool) for pool in seq.placement]
            for lane, page in zip(seq.pages, pages, strict=True):
                lane.append(page)
            yield seq.slot, len(seq.pages[0]) - 1, pages

    def take(self, pool: int) -> int:
        """A random free page: neighbours of a sequence lie apart."""
        free = self.workers.free[pool]
        return free.pop(int(self.rng.integers(len(free))))

    def lanes(self):
        """(layers, lanes) of each stage."""
        heads = self.workers.heads
        for number, stage in enumerate(self.workers.layout[0].stages):
            yield stage.layers, np.arange(number * heads, (number + 1) * heads, dtype=np.int32)

    def deal(self) -> np.ndarray:
        """A random placement."""
        stages, heads = self.workers.layout[0].stages, self.workers.heads
        return np.concatenate([self.rng.integers(one.first_pool, one.first_pool + len(one.pools), heads, np.int32) for one in stages])

    def ship(self, seq: Seq, count: int) -> None:
        """Before a step with a chunk of so many tokens: sends the pages that it completes behind it, if the prompt is to be shipped."""
        if seq.computed == 0 and self.rng.random() < self.ships:
            seq.bound, seq.there = self.deal(), [[] for _ in seq.placement]
        if not len(seq.bound):
            return
        done = seq.computed + count
        rows = -(-done // PAGE) if done == seq.known else done // PAGE
        for layers, lanes in self.lanes():
            source = int(seq.placement[lanes[0]])
            for target in np.unique(seq.bound[lanes]).tolist():
                some = lanes[seq.bound[lanes] == target]
                copied = len(seq.there[some[0]])
                if target == source or copied == rows:
                    continue
                new = np.array([[self.take(target) for _ in range(copied, rows)] for _ in some], np.int32)
                old = np.array([seq.pages[lane][copied:rows] for lane in some], np.int32)
                places = Place(0, source), Place(0, target)
                seq.orders.append(self.workers.order(layers, some % self.workers.heads, old, new, *places, self.workers.steps + 1))
                for lane, row in zip(some, new, strict=True):
                    seq.there[lane] += row.tolist()

    def settled(self, seq: Seq) -> bool:
        """Whether it lies where it is to decode; if its prompt is on its way, it arrives now or is waited for later."""
        if not len(seq.bound):
            return True
        if self.rng.random() < 0.5:
            return False
        assert all([self.workers.await_move(number) for number in seq.orders])
        away = np.flatnonzero(seq.bound != seq.placement).astype(np.int32)
        self.shipped += len(seq.orders)
        for lane in away.tolist():
            source, target = int(seq.placement[lane]), int(seq.bound[lane])
            self.workers.compare(np.array(seq.pages[lane]), np.array(seq.there[lane]), Place(0, source), Place(0, target))
            self.workers.free[source] += seq.pages[lane]
            seq.pages[lane] = seq.there[lane]
        if len(away):
            pages = np.array([seq.pages[lane] for lane in away], np.int32)
            self.replaces.append(Replace(seq.slot, away, seq.bound[away], pages))
        seq.placement, seq.bound, seq.orders = seq.bound, NO_INTS, []
        return True

    def move(self) -> None:
        """Deals one decoding sequence's head groups anew, at random, and moves those that change their place."""
        able = [seq for seq in self.seqs if seq.decodes and not len(seq.bound) and seq.slot not in {one.slot for one in self.replaces}]
        if not able:
            return
        seq, goal = able[int(self.rng.integers(len(able)))], self.deal()
        for layers, lanes in self.lanes():
            before = seq.placement[lanes]
            for target in np.unique(goal[lanes]):
                for source in np.unique(before):
                    some = lanes[(goal[lanes] == target) & (before == source)]
                    if source != target and len(some):
                        self.move_lanes(seq, layers, some, int(source), int(target))

    def move_lanes(self, seq: Seq, layers, lanes, source: int, target: int) -> None:
        old = np.array([seq.pages[lane] for lane in lanes], np.int32)
        new = np.array([[self.take(target) for _ in row] for row in old], np.int32)
        assert self.workers.move(layers, lanes % self.workers.heads, old, new, Place(0, source), Place(0, target))
        self.replaces.append(Replace(seq.slot, lanes, np.full(len(lanes), target, np.int32), new))
        self.workers.free[source] += old.ravel().tolist()
        seq.placement[lanes] = target
        for lane, row in zip(lanes, new, strict=True):
            seq.pages[lane] = row.tolist()
        self.moved += 1


def answers_alone(folder: Path, private: Path, **changes) -> list[list[int]]:
    """Every prompt by itself on one device."""
    answers = []
    spec = load_model(folder)
    workers = Workers(make_plan(spec, [[(spec.layers, "a")]], **changes), folder, private, True)
    try:
        for prompt in PROMPTS:
            answers += Script(workers, [prompt], NEW_TOKENS, 0).run()
        return answers
    finally:
        workers.close()


def run_script(folder, private, layout, seed, in_process, **changes):
    spec = load_model(folder)
    workers = Workers(make_plan(spec, [LAYOUTS[layout](spec.layers)], **changes), folder, private, in_process)
    try:
        script = Script(workers, PROMPTS, NEW_TOKENS, seed, ships=0.9)
        return script.run(), script
    finally:
        workers.close()
