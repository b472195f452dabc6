"""A controller with a made-up model behind it, for tests: a worker that checks every page it reads, and a world that makes events.

The model's next token is a function of (all tokens so far, choice), so any schedule must give the same text. A page remembers which token was
stored at which place of which prefix; a worker that finds anything else in its pages fails at once.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from hetserve.control.codec import MESSAGES
from hetserve.control.config import ControllerConfig, GroupConfig, PoolConfig, StageConfig
from hetserve.control.controller import Controller
from hetserve.control.messages import (
    Arrived,
    Cancelled,
    Finish,
    MoveDone,
    MoveKv,
    Reject,
    Request,
    RunStep,
    StepDone,
    Stopped,
    Tokens,
    WorkerJoined,
    WorkerLost,
)
from hetserve.cost.costs import HeadCost
from hetserve.cost.curve import Curve
from hetserve.cost.roofline import StepCost
from hetserve.spec.plan import Flow
from hetserve.systems import UNIFORM

COST = StepCost(1e-3, Curve.floor(1e-3, 1e-5), Curve((1.0,), (1e-6,)), attend_s=0.0, context_s=1e-7, pair_s=1e-9, source="test")
PAGE_TOKENS = 4


def stage(device: str, pages: tuple[int, ...], layers: tuple[int, int] = (0, 1), ranks: int = 1) -> StageConfig:
    """A stage on `device`, whose further pools are those of other ranks' primaries, then of attention workers, all named after it."""
    pools = tuple(PoolConfig(device + "abcdef"[i] * (i > 0), count, HeadCost(1e-6, 1e-8, 1e-5 * i, "test")) for i, count in enumerate(pages))
    return StageConfig(layers, pools, COST, ranks)


def config(pages: int = 64, heads: int = 2, devices: int = 1, stages: int = 1, **changes) -> ControllerConfig:
    """A small group: each stage a primary and devices - 1 attention workers with `pages` pages each."""
    group = GroupConfig(tuple(stage(f"dev{index}", (pages,) * devices, (index, index + 1)) for index in range(stages)))
    base = ControllerConfig("uniform", "none", (group,), heads, PAGE_TOKENS, 64, 8, 16, 2, 100, 0.0)
    return replace(base, **changes)


def splitwise(pages: int = 64, heads: int = 2, **changes) -> ControllerConfig:
    """A prefill group and a decode group."""
    groups = (GroupConfig((stage("first", (pages,)),), "prefill"), GroupConfig((stage("second", (pages,)),), "decode"))
    return replace(config(pages, heads, **changes), groups=groups)


def phases(pages: int = 64, heads: int = 2, **changes) -> ControllerConfig:
    """Two prefill and two decode groups of four layers, cut in unlike ways: in one or two stages of one or, if the heads allow, two ranks."""
    ranks = 2 if heads % 2 == 0 else 1

    def group(name: str, role: str, cuts: tuple[int, ...], ranks: int) -> GroupConfig:
        edges = list(zip((0, *cuts), (*cuts, 4), strict=True))
        return GroupConfig(tuple(stage(f"{name}{number}", (pages,) * ranks, layers, ranks) for number, layers in enumerate(edges)), role)

    groups = (group("a", "prefill", (), 1), group("b", "prefill", (1,), ranks), group("c", "decode", (3,), 1), group("d", "decode", (), ranks))
    flow = (Flow(0, 2, 0.25), Flow(0, 3, 0.75), Flow(1, 3, 1.0))
    return replace(config(pages, heads, **changes), groups=groups, flow=flow)


def next_token(tokens: np.ndarray, choice: int, vocab: int) -> int:
    """The made-up model."""
    return zlib.crc32(np.asarray(tokens, "<i4").tobytes(), choice) % vocab


def expected(request: Request, choice: int, vocab: int, longest: int) -> tuple[list[int], str]:
    """What a choice must generate, and why it must end."""
    tokens = request.prompt.tolist()
    for count in range(1, request.max_tokens + 1):
        tokens.append(next_token(np.array(tokens), choice, vocab))
        if tokens[-1] in request.stop_token_ids and count >= request.min_tokens:
            return tokens[len(request.prompt) :], "stop"
        if len(tokens) == longest:
            break
    return tokens[len(request.prompt) :], "length"


class Worker:
    """Applies steps as RunStep documents them, and checks what a real worker takes for granted."""

    def __init__(self, config: ControllerConfig, group: int, vocab: int) -> None:
        spec = config.groups[group]
        self.vocab, self.size, self.heads = vocab, config.page_tokens, config.kv_heads * len(spec.stages)
        firsts = np.cumsum([0, *(len(one.pools) for one in spec.stages[:-1])])
        ranks = [np.arange(config.kv_heads) * one.ranks // config.kv_heads for one in spec.stages]
        self.home = (firsts[:, None] + ranks).ravel()  # [lanes]
        slots, most = config.max_seqs, config.max_model_len
        self.tokens: list[list[int] | None] = [None] * slots
        self.computed = [0] * slots
        self.choice = [0] * slots
        self.standing = np.zeros(slots, bool)
        self.pools = np.zeros((slots, self.heads), np.int32)
        self.pages = np.full((slots, self.heads, -(-most // self.size)), -1, np.int32)
        self.layers = [stage.layers for stage in spec.stages for _ in stage.pools]  # [pools]
        shapes = [(pool.pages, last - first, self.size) for pool, (first, last) in zip(spec.pools, self.layers, strict=True)]
        self.memory = [np.zeros(shape, np.int64) for shape in shapes]  # [pools][pages, layers, page_tokens]
        self.kv_heads = config.kv_heads
        self.most_tokens = config.max_step_tokens
        self.blind: set[int] = set()  # pools of lost devices: what is read there is not checked, and must not be told

    def run(self, step: RunStep) -> list[int]:
        """The sampled tokens."""
        for slot in step.ends.tolist():
            assert self.tokens[slot] is not None, "ended twice, or never started"
            self.tokens[slot], self.standing[slot] = None, False
        for start in step.starts:
            self._start(start)
        for one in step.replaces:
            assert self.tokens[one.slot] is not None
            self.pages[one.slot][one.lanes] = -1
            self.pages[one.slot][one.lanes, : one.pages.shape[1]] = one.pages
            self.pools[one.slot][one.lanes] = one.pools
        for slot, index, pages in zip(step.grant_slots.tolist(), step.grant_index.tolist(), step.grant_pages, strict=True):
            assert self.tokens[slot] is not None and self.pages[slot, 0, index] == -1, "a page for nobody, or a second one for the same place"
            self.pages[slot, :, index] = pages
        assert self.standing[step.leaves].all() and not self.standing[step.joins].any()
        self.standing[step.leaves] = False
        self.standing[step.joins] = True
        return self._pass(step)

    def _start(self, start) -> None:
        slot = start.slot
        assert self.tokens[slot] is None, "started in a slot that is in use"
        self.tokens[slot] = start.tokens.tolist()
        self.computed[slot], self.choice[slot] = start.cached_tokens, start.choice
        self.pages[slot] = -1
        self.pools[slot] = self.home

    def _pass(self, step: RunStep) -> list[int]:
        rows = [(int(slot), 1, True) for slot in np.flatnonzero(self.standing)]
        rows += [(s, n, bool(m)) for s, n, m in zip(step.chunk_slots.tolist(), step.chunk_tokens.tolist(), step.chunk_samples.tolist(), strict=True)]
        assert 0 < sum(count for _, count, _ in rows) <= self.most_tokens
        assert len({slot for slot, _, _ in rows}) == len(rows), "a slot twice in one step"
        assert (self.pools[step.chunk_slots] == self.home).all(), "prompts are computed on primaries"
        for slot, count, samples in rows:
            self._store(slot, count)
            assert samples == (self.computed[slot] == len(self.tokens[slot])), "samples exactly at the last known token"
        for slot, _, _ in rows:
            self._read(slot)
        sampled = [(slot, self._sample(slot)) for slot, _, samples in rows if samples]
        for slot, token in sampled:
            self.tokens[slot].append(token)
        return [token for _, token in sampled]

    def _sample(self, slot: int) -> int:
        blind = self.blind & set(self.pools[slot].tolist())
        return -7 if blind else next_token(np.array(self.tokens[slot]), self.choice[slot], self.vocab)

    def _signs(self, slot: int, count: int) -> list[int]:
        """What the KV of each of the first `count` tokens must look like: it depends on everything before it."""
        sign, signs = 0, []
        for token in self.tokens[slot][:count]:
            sign = zlib.crc32(token.to_bytes(4, "little", signed=True), sign)
            signs.append(sign + 1)
        return signs

    def _store(self, slot: int, count: int) -> None:
        first, last = self.computed[slot], self.computed[slot] + count
        assert last <= len(self.tokens[slot]), "computes a token it does not know"
        for position, sign in list(enumerate(self._signs(slot, last)))[first:]:
            for head in range(self.heads):
                page = self.pages[slot, head, position // self.size]
                assert page >= 0, "stores without a page"
                self.memory[self.pools[slot, head]][page, :, position % self.size] = self._stored(slot, head, sign)
        self.computed[slot] = last

    def _read(self, slot: int) -> None:
        for position, sign in enumerate(self._signs(slot, self.computed[slot])):
            for head in range(self.heads):
                if self.pools[slot, head] in self.blind:
                    continue
                found = self.memory[self.pools[slot, head]][self.pages[slot, head, position // self.size], :, position % self.size]
                assert np.array_equal(found, self._stored(slot, head, sign)), f"slot {slot} head {head} position {position}: somebody else's KV"

    def _stored(self, slot: int, lane: int, sign: int) -> np.ndarray:
        """What a lane's page holds of a token, layer by layer."""
        return sign * 10_000 + np.arange(*self.layers[self.pools[slot, lane]]) * 100 + lane % self.kv_heads


@dataclass
class Answer:
    """What listeners heard of one choice."""

    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    count: int = -1
    why: str = ""


class World:
    """Makes events, carries out commands, checks after each event."""

    def __init__(self, config: ControllerConfig, vocab: int = 13, policies=UNIFORM) -> None:
        self.config, self.vocab = config, vocab
        self.controller = Controller(config, policies)
        self.settled = policies is UNIFORM  # asked again, the policies answer the same
        self.workers = [Worker(config, group, vocab) for group in range(len(config.groups))]
        self.pending: list[list[RunStep]] = [[] for _ in config.groups]
        self.sampled: list[list[list[int]]] = [[] for _ in config.groups]  # by the first of these steps, which have been run and not reported
        self.passed = [-1 for _ in config.groups]  # the last step that was run
        self.moves: list[MoveKv] = []  # not carried out
        self.down: set[int] = set()  # groups that lost a primary
        self.orphaned: set[int] = set()  # moves whose source was lost
        self.shipped: Counter[str] = Counter()  # moves behind steps, by what became of them
        self.requests: dict[int, Request] = {}
        self.answers: dict[tuple[int, int], Answer] = {}
        self.rejected: dict[int, Reject] = {}
        self.most_in_flight = 0
        self.log: list = []  # (event, commands)
        self.bytes: list = []  # the commands as they were when they were given
        self.seq = 0

    def send(self, kind, *fields):
        """One event; returns its commands."""
        event = kind(self.seq * 0.001, self.seq, *fields)
        self.seq += 1
        commands = self.controller.handle(event)
        self.log.append((event, commands))
        self.bytes.append([MESSAGES.encode(command) for command in commands])
        for index, command in enumerate(commands):
            if isinstance(command, MoveKv) and command.step >= 0:
                later = {(one.group, one.step) for one in commands[index:] if isinstance(one, RunStep)}
                assert (command.source.group, command.step) in later, "a worker hears of a move behind a step before it is busy with the step"
        for command in commands:
            self._carry_out(command)
        self.controller.check()
        if self.settled and self.seq % 4 == 0:
            for group in self.controller.groups:
                group.touched = True
            assert not self.controller._go_on([]), "a group that could go on was not looked at"
        return commands

    def arrive(self, prompt: int | list[int], max_tokens: int = 5, **options):
        tokens = np.arange(1, prompt + 1, dtype=np.int32) if isinstance(prompt, int) else np.array(prompt, np.int32)
        request = Request(len(self.requests), tokens, max_tokens, **options)
        self.requests[request.id] = request
        for choice in range(request.n):
            self.answers[request.id, choice] = Answer()
        return self.send(Arrived, request)

    def run(self, group: int = 0) -> None:
        """The next step in flight is through all layers; it is not reported yet."""
        step = self.pending[group][len(self.sampled[group])]
        self.sampled[group].append(self.workers[group].run(step))
        self.passed[group] = step.step

    def complete(self, group: int = 0):
        """The oldest step in flight is done."""
        if not self.sampled[group]:
            self.run(group)
        step, tokens = self.pending[group].pop(0), self.sampled[group].pop(0)
        return self.send(StepDone, step.step, group, np.array(tokens, np.int32), 0.001)

    def move(self, index: int = 0, ok: bool = True):
        """One of the moves under way is done, which its step is then too, or fails half done, as it does when its source is lost."""
        command = self.moves.pop(index)
        ok = ok and command.source.pool not in self.workers[command.source.group].blind and command.move not in self.orphaned
        if command.step >= 0:
            while ok and self.passed[command.source.group] < command.step:
                self.run(command.source.group)
            reported = not any(step.step == command.step for step in self.pending[command.source.group])
            self.shipped["failed" if not ok else "late" if reported else "before the step's report"] += 1
        source, target = (self.workers[place.group].memory[place.pool] for place in (command.source, command.target))
        assert command.pages_from.shape == command.pages_to.shape
        columns = slice(None) if ok else slice(None, None, 2)
        firsts = (self.workers[place.group].layers[place.pool][0] for place in (command.source, command.target))
        here, there = (slice(*(layer - first for layer in command.layers)) for first in firsts)
        target[command.pages_to[:, columns], there] = source[command.pages_from[:, columns], here]
        return self.send(MoveDone, command.move, ok)

    def cancel(self, request: int):
        return self.send(Cancelled, request)

    def stop(self, request: int, choice: int, at_token: int):
        return self.send(Stopped, request, choice, at_token)

    def lose(self, group: int = 0, pool: int = 0):
        """A pool's device is gone; with a primary the whole group, and those that are left alone without it."""
        spec = self.config.groups[group]
        device = spec.pools[pool].device
        if any(device == primary.device for one in spec.stages for primary in one.primaries):
            self.down.add(group)
            for number in self._useless():
                self.pending[number].clear()
                self.sampled[number].clear()
                self.moves = [move for move in self.moves if number != move.target.group]
                for move in [move for move in self.moves if number == move.source.group]:  # a target that lives tells when it no longer writes
                    self.orphaned.add(move.move)
        else:
            self.workers[group].memory[pool][:] = -1  # what steps in flight read there is nonsense
            self.moves = [move for move in self.moves if pool != move.target.pool]  # a target that lives tells when it no longer writes
            self.workers[group].blind.add(pool)
        return self.send(WorkerLost, device, "it was killed")

    def _useless(self) -> set[int]:
        """Groups that are down, or have nobody left to hand to or to take from."""
        prefill = [number for number, group in enumerate(self.config.groups) if group.role == "prefill"]
        arcs = [(source, target) for source in prefill for target, _ in self.config.targets(source)]
        up = [(source, target) for source, target in arcs if not {source, target} & self.down]
        return self.down | {group for arc in arcs for group in arc} - {group for arc in up for group in arc}

    def rejoin(self, group: int = 0, pool: int = 0):
        spec = self.config.groups[group]
        device = spec.pools[pool].device
        if any(device == primary.device for one in spec.stages for primary in one.primaries):
            for number in self._useless():
                self.workers[number] = Worker(self.config, number, self.vocab)
            self.down.discard(group)
        else:
            while self.pending[group]:  # steps from before may still read there
                self.complete(group)
            self.workers[group].blind.discard(pool)
        return self.send(WorkerJoined, device)

    def run_out(self, most_steps: int = 100_000) -> None:
        """Completes steps and moves until nothing is in flight."""
        for _ in range(most_steps):
            while self.moves:
                self.move()
            groups = [group for group, steps in enumerate(self.pending) if steps]
            if not groups:
                return
            self.complete(groups[0])
        raise AssertionError("it never ends")

    def longest(self) -> int:
        heads, stages = self.config.kv_heads, [stage for group in self.config.groups for stage in group.stages]
        capacity = min(pool.pages // (heads // stage.ranks) for stage in stages for pool in stage.primaries) * self.config.page_tokens
        return min(self.config.max_model_len, capacity)

    def expect_answers(self) -> None:
        """Every choice ended, and said exactly what the model says; no command was changed after it was given."""
        assert self.bytes == [[MESSAGES.encode(command) for command in commands] for _, commands in self.log]
        for (number, choice), answer in self.answers.items():
            if number in self.rejected:
                continue
            tokens, reason = expected(self.requests[number], choice, self.vocab, self.longest())
            assert answer.reason in ("stop", "length", "abort", "error")
            assert answer.tokens == tokens[: len(answer.tokens)]
            if answer.reason == reason and answer.reason == "length":
                assert answer.tokens == tokens

    def _carry_out(self, command) -> None:
        match command:
            case RunStep():
                self.pending[command.group].append(command)
                self.most_in_flight = max(self.most_in_flight, len(self.pending[command.group]))
                assert len(self.pending[command.group]) <= max(self.config.depth, len(self.config.groups[command.group].stages))
                assert command.predicted_s > 0
            case Tokens():
                assert len(set(zip(command.requests, command.choices, strict=True))) == len(command.tokens) == len(command.rows)
                for request, choice, token in zip(command.requests, command.choices, command.tokens, strict=True):
                    assert not self.answers[request, choice].reason, "a token after the end"
                    self.answers[request, choice].tokens.append(token)
            case Finish():
                answer = self.answers[command.request, command.choice]
                assert not answer.reason, "ended twice"
                assert command.tokens == len(answer.tokens) or (command.reason == "stop" and command.tokens < len(answer.tokens))
                answer.reason, answer.count, answer.why = command.reason, command.tokens, command.why
            case Reject():
                self.rejected[command.request] = command
            case MoveKv():
                self.moves.append(command)
            case _:
                raise AssertionError(command)


def tell(command) -> str:
    """A command in one line, as transcripts show it."""
    match command:
        case RunStep():
            parts = [f"step {command.step}:"]
            parts += [f"end {slots(command.ends)}"] if len(command.ends) else []
            for start in command.starts:
                cached = f" ({start.cached_tokens} cached)" if start.cached_tokens else ""
                parts.append(f"start r{start.request}.{start.choice} in slot {start.slot} with {len(start.tokens)} tokens{cached}")
            parts += [
                f"grant slot {s} page {i} = {ids.tolist()}"
                for s, i, ids in zip(command.grant_slots, command.grant_index, command.grant_pages, strict=True)
            ]
            parts += [f"leave {slots(command.leaves)}"] if len(command.leaves) else []
            parts += [f"join {slots(command.joins)}"] if len(command.joins) else []
            for one in command.replaces:
                parts.append(f"slot {one.slot} lanes {one.lanes.tolist()} now in pools {one.pools.tolist()}, pages {one.pages.tolist()}")
            for slot, tokens, samples in zip(command.chunk_slots, command.chunk_tokens, command.chunk_samples, strict=True):
                parts.append(f"chunk slot {slot} takes {tokens}{', samples' if samples else ''}")
            return "\n    ".join(parts)
        case Tokens():
            return "tell " + ", ".join(f"r{r}.{c} {t}" for r, c, t in zip(command.requests, command.choices, command.tokens, strict=True))
        case Finish():
            return f"finish r{command.request}.{command.choice} {command.reason} after {command.tokens}" + (f": {command.why}" if command.why else "")
        case MoveKv():
            ends = f"pool {command.source.group}.{command.source.pool} to {command.target.group}.{command.target.pool}"
            behind = f", behind step {command.step}" if command.step >= 0 else ""
            what = f"{command.pages_from.shape[1]} pages of heads {command.heads.tolist()}"
            return f"move {command.move}: r{command.request}.{command.choice} {what}, {ends}{behind}"
        case Reject():
            return f"reject r{command.request}{' for now' if command.retry else ''}: {command.why}"
    raise AssertionError(command)


def slots(ids) -> str:
    return "slot " + ", ".join(map(str, ids.tolist()))


def hear(event) -> str:
    """An event in one line, as transcripts show it."""
    match event:
        case Arrived():
            more = f" x{event.request.n}" if event.request.n > 1 else ""
            return f"r{event.request.id} arrives: {len(event.request.prompt)} tokens, wants {event.request.max_tokens}{more}"
        case StepDone():
            return f"step {event.step} done: {event.tokens.tolist()}"
        case MoveDone():
            return f"move {event.move} {'is done' if event.ok else 'failed'}"
        case Cancelled():
            return f"r{event.request} is cancelled"
        case Stopped():
            return f"r{event.request}.{event.choice} has a stop string after {event.at_token}"
        case WorkerLost():
            return f"{event.device} is lost"
        case WorkerJoined():
            return f"{event.device} is back"
    raise AssertionError(event)


def transcript(world: World) -> str:
    """All events so far, each with the commands it caused."""
    lines = []
    for event, commands in world.log:
        lines.append(hear(event))
        lines += [f"  {tell(command)}" for command in commands]
    return "\n".join(lines)
