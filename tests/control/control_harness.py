"""A controller with a made-up model behind it, for tests: a worker that checks every page it reads, and a world that makes events.

The model's next token is a function of (all tokens so far, choice), so any schedule must give the same text. A page remembers which token was
stored at which place of which prefix; a worker that finds anything else in its pages fails at once.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import numpy as np

from hetserve.control.codec import MESSAGES
from hetserve.control.config import ControllerConfig, GroupConfig
from hetserve.control.controller import Controller
from hetserve.control.messages import (
    Arrived,
    Cancelled,
    Finish,
    Reject,
    Request,
    RunStep,
    StepDone,
    Stopped,
    Tokens,
    WorkerJoined,
    WorkerLost,
)
from hetserve.cost.roofline import StepCost
from hetserve.systems import UNIFORM

COST = StepCost(fixed_s=1e-3, token_s=1e-5, weights_s=1e-3, context_s=1e-7, pair_s=1e-9, sample_s=1e-6, source="test")
PAGE_TOKENS = 4


def config(pages: int = 64, heads: int = 2, devices: int = 1, **changes) -> ControllerConfig:
    """A small group: `pages` in each of `devices` pools."""
    names = tuple(f"dev{index}" for index in range(devices))
    group = GroupConfig(names, (pages,) * devices, COST)
    base = ControllerConfig("uniform", "none", (group,), heads, PAGE_TOKENS, 64, 8, 16, 2, 100, 0.0)
    return replace(base, **changes)


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
        self.vocab, self.size, self.heads = vocab, config.page_tokens, config.kv_heads
        slots, most = config.max_seqs, config.max_model_len
        self.tokens: list[list[int] | None] = [None] * slots
        self.computed = [0] * slots
        self.choice = [0] * slots
        self.standing = np.zeros(slots, bool)
        self.devices = np.zeros((slots, self.heads), np.int32)
        self.pages = np.full((slots, self.heads, -(-most // self.size)), -1, np.int32)
        self.memory = [np.zeros((count, self.size), np.int64) for count in config.groups[group].pages]
        self.most_tokens = config.max_step_tokens

    def run(self, step: RunStep) -> list[int]:
        """The sampled tokens."""
        for slot in step.ends.tolist():
            assert self.tokens[slot] is not None, "ended twice, or never started"
            self.tokens[slot], self.standing[slot] = None, False
        for start in step.starts:
            self._start(start)
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
        self.devices[slot] = start.pools if len(start.pools) else 0

    def _pass(self, step: RunStep) -> list[int]:
        rows = [(int(slot), 1, True) for slot in np.flatnonzero(self.standing)]
        rows += [(s, n, bool(m)) for s, n, m in zip(step.chunk_slots.tolist(), step.chunk_tokens.tolist(), step.chunk_samples.tolist(), strict=True)]
        assert 0 < sum(count for _, count, _ in rows) <= self.most_tokens
        assert len({slot for slot, _, _ in rows}) == len(rows), "a slot twice in one step"
        for slot, count, samples in rows:
            self._store(slot, count)
            assert samples == (self.computed[slot] == len(self.tokens[slot])), "samples exactly at the last known token"
        for slot, _, _ in rows:
            self._read(slot)
        sampled = [(slot, next_token(np.array(self.tokens[slot]), self.choice[slot], self.vocab)) for slot, _, samples in rows if samples]
        for slot, token in sampled:
            self.tokens[slot].append(token)
        return [token for _, token in sampled]

    def _signs(self, slot: int, count: int) -> list[int]:
        """What the KV of each of the first `count` tokens must look like: it depends on everything before it."""
        sign, signs = 0, []
        for token in self.tokens[slot][:count]:
            sign = zlib.crc32(token.to_bytes(4, "little"), sign)
            signs.append(sign + 1)
        return signs

    def _store(self, slot: int, count: int) -> None:
        first, last = self.computed[slot], self.computed[slot] + count
        assert last <= len(self.tokens[slot]), "computes a token it does not know"
        for position, sign in list(enumerate(self._signs(slot, last)))[first:]:
            for head in range(self.heads):
                page = self.pages[slot, head, position // self.size]
                assert page >= 0, "stores without a page"
                self.memory[self.devices[slot, head]][page, position % self.size] = sign * 100 + head
        self.computed[slot] = last

    def _read(self, slot: int) -> None:
        for position, sign in enumerate(self._signs(slot, self.computed[slot])):
            for head in range(self.heads):
                found = self.memory[self.devices[slot, head]][self.pages[slot, head, position // self.size], position % self.size]
                assert found == sign * 100 + head, f"slot {slot} head {head} position {position}: somebody else's KV"


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
        self.workers = [Worker(config, group, vocab) for group in range(len(config.groups))]
        self.pending: list[list[RunStep]] = [[] for _ in config.groups]
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
        for command in commands:
            self._carry_out(command)
        self.controller.check()
        return commands

    def arrive(self, prompt: int | list[int], max_tokens: int = 5, **options):
        tokens = np.arange(1, prompt + 1, dtype=np.int32) if isinstance(prompt, int) else np.array(prompt, np.int32)
        request = Request(len(self.requests), tokens, max_tokens, **options)
        self.requests[request.id] = request
        for choice in range(request.n):
            self.answers[request.id, choice] = Answer()
        return self.send(Arrived, request)

    def complete(self, group: int = 0):
        """The oldest step in flight is done."""
        step = self.pending[group].pop(0)
        tokens = self.workers[group].run(step)
        return self.send(StepDone, step.step, group, np.array(tokens, np.int32), 0.001)

    def cancel(self, request: int):
        return self.send(Cancelled, request)

    def stop(self, request: int, choice: int, at_token: int):
        return self.send(Stopped, request, choice, at_token)

    def lose(self, group: int = 0):
        self.pending[group].clear()
        return self.send(WorkerLost, self.config.groups[group].devices[0], "it was killed")

    def rejoin(self, group: int = 0):
        self.workers[group] = Worker(self.config, group, self.vocab)
        return self.send(WorkerJoined, self.config.groups[group].devices[0])

    def run_out(self, most_steps: int = 100_000) -> None:
        """Completes steps until nothing is in flight."""
        for _ in range(most_steps):
            groups = [group for group, steps in enumerate(self.pending) if steps]
            if not groups:
                return
            self.complete(groups[0])
        raise AssertionError("it never ends")

    def longest(self) -> int:
        capacity = min(group.pages[0] // self.config.kv_heads * self.config.page_tokens for group in self.config.groups)
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
                assert len(self.pending[command.group]) <= self.config.depth
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
            for slot, tokens, samples in zip(command.chunk_slots, command.chunk_tokens, command.chunk_samples, strict=True):
                parts.append(f"chunk slot {slot} takes {tokens}{', samples' if samples else ''}")
            return "\n    ".join(parts)
        case Tokens():
            return "tell " + ", ".join(f"r{r}.{c} {t}" for r, c, t in zip(command.requests, command.choices, command.tokens, strict=True))
        case Finish():
            return f"finish r{command.request}.{command.choice} {command.reason} after {command.tokens}" + (f": {command.why}" if command.why else "")
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
