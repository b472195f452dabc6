"""The control plane: `handle(event) -> commands`. No clock, no randomness, no I/O; the same events always give the same commands.

Two steps may be in flight, so a sequence's next input can be a token nobody has seen yet. A sequence that turns out to be over is taken out
of the next step, what it sampled meanwhile is dropped, and its pages are free once its last step in flight is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetserve.control.config import ControllerConfig
from hetserve.control.form import Former
from hetserve.control.group import Group
from hetserve.control.handoff import Handoffs
from hetserve.control.messages import (
    Arrived,
    Cancelled,
    Command,
    Event,
    Finish,
    MoveDone,
    MoveKv,
    Reject,
    Request,
    RunStep,
    StepDone,
    Stopped,
    WorkerJoined,
    WorkerLost,
)
from hetserve.control.moves import Moves
from hetserve.control.states import MAX_CHOICES, RequestState, Sequence
from hetserve.policy.row import Policies


class Controller:
    """Decides for all groups of one plan.

    Args:
        config: groups, pools and limits.
        policies: the online half of a system's row.
    """

    def __init__(self, config: ControllerConfig, policies: Policies) -> None:
        self.config = config
        self.policies = policies
        self.groups = [Group(index, config, policies) for index in range(len(config.groups))]
        self.requests: dict[int, RequestState] = {}
        self._formers = [Former(group) for group in self.groups]
        self._handoffs = {
            group.index: Handoffs(group, [(self.groups[target], share) for target, share in config.targets(group.index)])
            for group in self.groups
            if group.spec.role == "prefill"
        }
        self._speed = np.array([group.spec.speed for group in self.groups])
        self._capacity = np.array([group.capacity_tokens() for group in self.groups], np.int64)
        self._arrivals = 0
        self._steps = 0
        self._moves = 0
        self._why_down = ""
        self._totals = {"arrived": 0, "rejected": 0, "stop": 0, "length": 0, "abort": 0, "error": 0, "prompt_tokens": 0, "generation_tokens": 0}
        self._handlers: dict[type, Callable[[Any, list[Command]], None]] = {
            StepDone: self._step_done,
            Arrived: self._arrived,
            Stopped: self._stopped,
            Cancelled: self._cancelled,
            WorkerLost: self._worker_lost,
            WorkerJoined: self._worker_joined,
            MoveDone: self._move_done,
        }

    def handle(self, event: Event) -> list[Command]:
        """What is to be done now that `event` has happened: new steps and moves first, then what listeners are told."""
        news: list[Command] = []
        self._handlers[type(event)](event, news)
        return self._go_on(news) + news

    def _go_on(self, news: list[Command]) -> list[Command]:
        """Steps and moves of the groups that something has happened to, until nothing more can begin."""
        work: list[Command] = []
        while touched := [group for group in self.groups if group.touched]:
            for group in touched:
                group.touched = False
            self._requeue(touched, news)
            work += self._copies(touched)
            work += self._form([group for group in self.groups if group.touched or group in touched])
        return work

    def serves(self) -> bool:
        """Whether any group can take a request."""
        return any(self._takes_prompts(group) for group in self.groups)

    def counts(self) -> dict[str, float]:
        """Numbers for /metrics. Gauges of now, totals since the start; requests with several choices count once per choice."""
        return {
            "running": sum(group.running for group in self.groups),
            "waiting": sum(group.queue.waiting for group in self.groups),
            "pages": sum(group.pools.pages for group in self.groups),
            "pages_free": sum(group.pools.free for group in self.groups),
            "kv_tokens": sum(group.kv_tokens() for group in self.groups),
            "preemptions_total": sum(group.preemptions for group in self.groups),
            "moves_total": sum(mover.done for mover in self._movers()),
            "moves_failed_total": sum(mover.failed for mover in self._movers()),
            **{f"{name}_total": total for name, total in self._totals.items()},
        }

    # --------------------------------------------------------------------------------------------------- events

    def _arrived(self, event: Arrived, news: list[Command]) -> None:
        request = event.request
        assert request.id not in self.requests, request.id
        self._totals["arrived"] += request.n
        why = self._refusal(request)
        group = self._route(len(request.prompt))
        busy = sum(one.queue.waiting for one in self.groups) >= self.config.max_waiting
        if why or group < 0 or busy:
            self._totals["rejected"] += request.n
            full = f"{self.config.max_waiting} requests are waiting already"
            news.append(Reject(request.id, why or (self._why_down if group < 0 else full), retry=not why and group >= 0))
            return
        size = self.config.page_tokens
        state = RequestState(request, self._target(request), (len(request.prompt) - 1) // size * size, group, open=request.n)
        for choice in range(request.n):
            sequence = Sequence(state, choice, self._arrivals * MAX_CHOICES + choice, request.prompt, group)
            state.sequences.append(sequence)
            self.groups[group].enqueue(sequence)
        self._arrivals += 1
        self._totals["prompt_tokens"] += len(request.prompt)
        self.requests[request.id] = state

    def _step_done(self, event: StepDone, news: list[Command]) -> None:
        group = self.groups[event.group]
        if not group.in_flight or event.step < group.in_flight[0].step:
            return  # of a worker that was lost meanwhile
        tokens, endings = group.absorb(event)
        self._totals["generation_tokens"] += len(tokens.tokens)
        if tokens.tokens:
            news.append(tokens)
        for ending in endings:
            sequence = group.slots.sequences[ending.slot]
            assert sequence is not None
            self._finish(sequence, ending.reason, self._generated(sequence), news)
        group.release_going()
        group.dispatcher.rebalance()

    def _move_done(self, event: MoveDone, news: list[Command]) -> None:
        for mover in self._movers():
            if event.move in mover.commands:  # a lost worker's moves are forgotten
                for number in mover.report(event.move, event.ok):
                    self.groups[number].touched = True
                    self.groups[number].release_going()

    def _stopped(self, event: Stopped, news: list[Command]) -> None:
        state = self.requests.get(event.request)
        if state is None or event.choice >= state.request.n or state.sequences[event.choice].done:
            return  # it ended by itself meanwhile
        sequence = state.sequences[event.choice]
        self._finish(sequence, "stop", min(event.at_token, self._generated(sequence)), news)

    def _cancelled(self, event: Cancelled, news: list[Command]) -> None:
        state = self.requests.get(event.request)
        for sequence in state.sequences if state else ():
            if not sequence.done:
                self._finish(sequence, "abort", self._generated(sequence), news)

    def _worker_lost(self, event: WorkerLost, news: list[Command]) -> None:
        """What needed the device waits again, with its tokens as the new prompt, or fails where nobody is left to take it."""
        homeless: list[Sequence] = []
        for group in self.groups:
            if any(pool.device == event.device for pool in group.spec.pools):
                homeless += group.lose(event.device, event.reason)
        homeless += self._give_up_alone()
        if not all(group.up for group in self.groups):
            self._why_down = f"device {event.device!r} was lost: {event.reason}"
        for sequence in homeless:
            self._rehouse(sequence, news)

    def _worker_joined(self, event: WorkerJoined, news: list[Command]) -> None:
        for group in self.groups:
            group.join(event.device)

    def _give_up_alone(self) -> list[Sequence]:
        """A prefill group is of no use without a decode group, nor the other way round. Returns the sequences of those that are alone now."""
        homeless: list[Sequence] = []
        alone = [handoffs.source for handoffs in self._handoffs.values() if not handoffs.open]
        fed = [way.target for handoffs in self._handoffs.values() if handoffs.source.up for way in handoffs.ways]
        alone += [group for group in self.groups if group.spec.role == "decode" and group not in fed]
        for group in alone:
            homeless += group.abandon()
        gone = [*alone, *(group for group in self.groups if not group.up)]
        for handoffs in self._handoffs.values():
            handoffs.lose(gone)
            handoffs.source.release_going()
        return homeless

    # -------------------------------------------------------------------------------------------------- helpers

    def _route(self, tokens: int) -> int:
        """The group for a request without one, of which so many tokens are known; -1: all are down."""
        usable = [group.tokens() if self._takes_prompts(group) else -1 for group in self.groups]
        return self.policies.route(tokens, np.array(usable, np.int64), self._capacity, self._speed)

    def _takes_prompts(self, group: Group) -> bool:
        handoffs = self._handoffs.get(group.index)
        return group.spec.role != "decode" and group.up and (handoffs is None or handoffs.open)

    def _movers(self) -> list[Moves | Handoffs]:
        return [*(group.moves for group in self.groups), *self._handoffs.values()]

    def _number(self) -> int:
        self._moves += 1
        return self._moves

    def _copies(self, touched: list[Group]) -> list[MoveKv]:
        """What is to be copied now, between the pools of a group and from group to group."""
        movers: list[Moves | Handoffs] = [group.moves for group in touched]
        movers += [handoffs for handoffs in self._handoffs.values() if handoffs.source in touched or handoffs.roomier()]
        return [command for mover in movers for command in mover.advance(self._number)]

    def _form(self, touched: list[Group]) -> list[Command]:
        """Steps, each behind the moves that ship what its chunks write: a worker hears of nothing else while it works on a step."""
        commands: list[Command] = []
        for group in touched:
            begun, former = group.moves.begun, self._formers[group.index]
            while (step := former.form(self._steps)) is not None:
                self._steps += 1
                commands += [*self._shipments(step), step]
                group.touched = True
            if group.moves.begun != begun or group.again:
                group.touched = True
        return commands

    def _shipments(self, step: RunStep) -> list[MoveKv]:
        if not len(step.chunk_slots):
            return []
        found = self.groups[step.group].moves.follow(step, self._number)
        if step.group in self._handoffs:
            found += self._handoffs[step.group].follow(step, self._number)
        return found

    def _requeue(self, touched: list[Group], news: list[Command]) -> None:
        """Sequences that gave way wait again where prompts are computed."""
        for group in touched:
            again, group.again = group.again, []
            for sequence in again:
                self._rehouse(sequence, news)

    def _target(self, request: Request) -> int:
        """Tokens at which a choice is complete: what was asked for, as far as the model and the smallest group's pages go."""
        longest = min(self.config.max_model_len, int(self._capacity.min()))
        return min(len(request.prompt) + request.max_tokens, longest)

    def _refusal(self, request: Request) -> str:
        """Why a request can never be served; empty if it can."""
        prompt = len(request.prompt)
        if prompt == 0:
            return "the prompt is empty"
        if prompt >= self.config.max_model_len:
            return f"the prompt has {prompt} tokens; with an answer of at least one the model takes {self.config.max_model_len}"
        if prompt >= int(self._capacity.min()):
            return f"the prompt has {prompt} tokens; with an answer of at least one the KV memory holds {int(self._capacity.min())}"
        if not (1 <= request.n < MAX_CHOICES and request.max_tokens >= 1 and request.min_tokens >= 0):
            return f"n must be 1 to {MAX_CHOICES - 1}, max_tokens at least 1 and min_tokens at least 0"
        if any(not 0 <= stop < 2**31 for stop in request.stop_token_ids):
            return "stop token ids must be from 0 to 2147483647"
        return ""

    def _generated(self, sequence: Sequence) -> int:
        """Tokens the sequence has generated and reported."""
        state = sequence.request
        known = self.groups[sequence.group].slots.known[sequence.slot] if sequence.slot >= 0 else len(sequence.tokens)
        return int(known) - len(state.request.prompt)

    def _finish(self, sequence: Sequence, reason: str, tokens: int, news: list[Command], why: str = "") -> None:
        """Ends a choice that waits or runs, and says so."""
        group = self.groups[sequence.group]
        if sequence.slot >= 0:
            group.end(sequence.slot)
        else:
            group.queue.drop(sequence)
        group.touched = True
        self._closed(sequence, reason, tokens, news, why)

    def _closed(self, sequence: Sequence, reason: str, tokens: int, news: list[Command], why: str) -> None:
        """The books and the news of a choice that is over."""
        state = sequence.request
        state.open -= 1
        self._totals[reason] += 1
        news.append(Finish(state.request.id, sequence.choice, reason, tokens, why))
        if not state.waits():
            self.groups[state.group].prompts.drop(state.request.id)
            self.groups[state.group].touched = True
        if state.open == 0:
            del self.requests[state.request.id]

    def _rehouse(self, sequence: Sequence, news: list[Command]) -> None:
        """Finds a group for a sequence that lost its own. A request's choices stay together: the first one's route is everyone's."""
        state = sequence.request
        if not self._takes_prompts(self.groups[state.group]) and (group := self._route(len(sequence.tokens))) >= 0:
            state.group = group
        sequence.group = state.group
        if self._takes_prompts(self.groups[state.group]):
            self.groups[state.group].enqueue(sequence)
            return
        sequence.done = True
        self._closed(sequence, "error", len(sequence.tokens) - len(state.request.prompt), news, self._why_down)

    # ------------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Asserts that nothing is lost or held twice: call it after any event."""
        for group in self.groups:
            group.check([pages for one in self._handoffs.values() for pages in one.borrowed(group)])
            to_come = [one for handoffs in self._handoffs.values() for one in handoffs.active.values() if one.way.target is group]
            assert group.promised == len(to_come) <= len(group.free_slots)
        self._check_progress()
        sequences = [one for state in self.requests.values() for one in state.sequences if not one.done]
        totals = self._totals
        over = sum(totals[name] for name in ("rejected", "stop", "length", "abort", "error"))
        assert totals["arrived"] == over + len(sequences)
        assert len(sequences) == sum(group.running + group.queue.waiting for group in self.groups)
        for state in self.requests.values():
            assert state.open == sum(not one.done for one in state.sequences) > 0
        for group in self.groups:
            assert set(group.prompts.kept) <= self.requests.keys()

    def _check_progress(self) -> None:
        """Work that nobody will ever report anything about would hang."""
        waits = [mover.commands for mover in self._movers()]
        under_way = any(group.in_flight for group in self.groups) or any(waits)
        assert under_way or not any((group.running or group.queue.waiting) and group.up for group in self.groups), "work, but nothing under way"
        moving = sum(int(group.slots.moving.sum()) for group in self.groups)
        orphaned = sum(one.waits for handoffs in self._handoffs.values() for one in handoffs.orphans)
        assert moving + orphaned == sum(map(len, waits))
