"""Random lives of a controller: arrivals, stops, cancels, losses, too few pages, one or two steps in flight. Every invariant after every event."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from control_harness import World, config, expected, phases, splitwise
from hypothesis import given, settings
from hypothesis import strategies as st

from hetserve.control.messages import MoveKv, RunStep, WorkerLost
from hetserve.control.states import LEAVING
from hetserve.policy.row import Policies
from hetserve.systems import UNIFORM

ALL = ("arrive", "complete", "stop", "cancel", "lose", "rejoin")
QUIET = ("arrive", "complete")
DEALT = (*ALL, "deal", "deal")
LOSSES = ("lose", "lose")


@st.composite
def shapes(draw, devices=1, stages=1, make=config):
    """A small controller, often with far too few pages."""
    layout = {} if make in (splitwise, phases) else {"devices": devices, "stages": stages}
    heads = draw(st.sampled_from([1, 2, 5]))
    seqs = draw(st.integers(1, 6))
    return make(
        pages=heads * draw(st.integers(4, 30)) + draw(st.integers(0, heads - 1)),
        heads=heads,
        **layout,
        max_model_len=draw(st.sampled_from([16, 40, 64])),
        max_seqs=seqs,
        max_step_tokens=seqs + draw(st.integers(1, 20)),
        depth=draw(st.sampled_from([1, 2])),
        max_waiting=draw(st.sampled_from([4, 100])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
    )


class Life:
    """Random actions on a world, from a seed."""

    def __init__(self, world: World, seed: int, kinds: tuple[str, ...], pool: int = 0, group: int = 0) -> None:
        self.world, self.kinds, self.lost = world, kinds, {"group": group, "pool": pool}
        self.random = random.Random(seed)
        self.busy = self.random.choice([0.3, 0.7, 0.9])  # how often the next thing is a step's end
        self.down = False

    def live(self, actions: int) -> World:
        for _ in range(actions):
            self.act()
        self.world.run_out()
        return self.world

    def act(self) -> None:
        kind = "complete" if self.random.random() < self.busy else self.random.choice(self.kinds)
        getattr(self, kind)()

    def arrive(self) -> None:
        draw = self.random
        prompt = [draw.choice([1, 2]) for _ in range(draw.choice([0, 1, 4, 5, 9, 16, 17, 33, 45]))]
        options = {"n": draw.choice([1, 1, 2, 4]), "stop_token_ids": draw.choice([(), (0,), (3, 5, 9)]), "min_tokens": draw.randint(0, 6)}
        self.world.arrive(prompt, draw.choice([1, 2, 8, 20, 60]), **options)

    def complete(self) -> None:
        """A step is done, or through all layers and not reported, or a move is done."""
        groups = [group for group, steps in enumerate(self.world.pending) if steps]
        behind = [group for group in groups if len(self.world.sampled[group]) < len(self.world.pending[group])]
        early = self.random.random() < 0.1  # drawn in any case: what else happens is the same for one and two steps in flight
        if early and behind:
            self.world.run(behind[-1])
        elif self.world.moves and self.random.random() < 0.5:
            self.world.move(self.random.randrange(len(self.world.moves)), ok=self.random.random() < 0.9)
        elif groups:
            self.world.complete(groups[0] if len(groups) == 1 else self.random.choice(groups))

    def stop(self) -> None:
        """A stop string in the text so far."""
        heard = [(key, answer) for key, answer in self.world.answers.items() if answer.tokens]
        if heard:
            (request, choice), answer = self.random.choice(heard)
            self.world.stop(request, choice, self.random.randint(max(1, len(answer.tokens) - 2), len(answer.tokens)))

    def cancel(self) -> None:
        self.world.cancel(self.random.randint(0, len(self.world.requests)))

    def deal(self) -> None:
        """Some running sequence's head groups are dealt anew, as they would be to make room."""
        dispatcher = self.world.controller.groups[0].dispatcher
        dispatcher.replace(self.random.randrange(self.world.config.max_seqs))

    def lose(self) -> None:
        if not self.down and self.random.random() < 0.1:
            self.world.lose(**self.lost)
            self.down = True

    def rejoin(self) -> None:
        if self.down:
            self.world.rejoin(**self.lost)
            self.down = False


@settings(max_examples=150)
@given(shapes(), st.integers(0, 2**32), st.integers(0, 250))
def test_nothing_is_lost_held_twice_or_read_from_anothers_page(shape, seed, actions) -> None:
    world = Life(World(shape), seed, ALL).live(actions)
    world.expect_answers()
    counts = world.controller.counts()
    assert counts["running"] == counts["waiting"] == 0
    assert counts["pages_free"] == counts["pages"]


@settings(max_examples=80)
@given(shapes(), st.integers(0, 2**32), st.integers(0, 120))
def test_one_and_two_steps_in_flight_give_the_same_answers(shape, seed, actions) -> None:
    """Also the same as an uninterrupted run of the model; max_waiting is lifted, for who is turned away may depend on the depth."""
    answers = []
    for depth in (1, 2):
        world = Life(World(replace(shape, depth=depth, max_waiting=1000)), seed, QUIET).live(actions)
        for (number, choice), answer in world.answers.items():
            if number not in world.rejected:
                tokens, reason = expected(world.requests[number], choice, world.vocab, world.longest())
                assert (answer.tokens, answer.reason, answer.count) == (tokens, reason, len(tokens))
        answers.append(world.answers)
    assert answers[0] == answers[1]


def at_random(seed: int) -> Policies:
    """A placement of its own for every request whenever it is asked for, with room or not; somebody is re-placed at every look."""
    rng = np.random.default_rng(seed)

    def heads(kv_heads, ranks, tokens, rows, pools):
        draws = rng.integers(0, len(pools.held), (len(tokens), kv_heads))
        return np.stack([(draws == pool).sum(1) for pool in range(len(pools.held))], 1)[:, None].astype(np.int32)

    return replace(UNIFORM, heads=heads, rebalance=lambda kv_heads, ranks, counts, *_: np.flatnonzero(rng.random(len(counts)) < 1 / len(counts)))


def finished(world: World) -> bool:
    counts = world.controller.counts()
    return counts["running"] == counts["waiting"] == 0 and counts["pages_free"] == counts["pages"]


@settings(max_examples=150)
@given(st.integers(2, 3).flatmap(lambda devices: shapes(devices)), st.integers(0, 2**32), st.integers(0, 250), st.sampled_from([0, 1]))
def test_heads_moved_at_random_between_several_devices(shape, seed, actions, pool) -> None:
    """Pools run out one by one, moves fail, a primary or an attention worker goes and comes back, and still everybody ends with the right text."""
    world = Life(World(shape, policies=at_random(seed)), seed, DEALT, pool).live(actions)
    world.expect_answers()
    assert finished(world)


@settings(max_examples=100)
@given(shapes(devices=2), st.integers(0, 2**32), st.integers(0, 150))
def test_a_lost_attention_worker_ends_nobody(shape, seed, actions) -> None:
    kinds = ("arrive", "complete", "deal", "lose", "rejoin")
    world = Life(World(replace(shape, max_waiting=1000), policies=at_random(seed)), seed, kinds, pool=1).live(actions)
    for (number, choice), answer in world.answers.items():
        if number not in world.rejected:
            assert (answer.tokens, answer.reason) == expected(world.requests[number], choice, world.vocab, world.longest())


@settings(max_examples=100)
@given(st.tuples(st.integers(1, 2), st.integers(2, 3)).flatmap(lambda both: shapes(*both)), st.integers(0, 2**32), st.integers(0, 200))
def test_several_stages(shape, seed, actions) -> None:
    world = Life(World(shape, policies=at_random(seed)), seed, DEALT).live(actions)
    world.expect_answers()
    assert finished(world)


@settings(max_examples=150)
@given(shapes(make=splitwise), st.integers(0, 2**32), st.integers(0, 250), st.sampled_from([0, 1]))
def test_prompts_in_one_group_and_answers_in_another(shape, seed, actions, group) -> None:
    world = Life(World(shape), seed, ALL, group=group).live(actions)
    world.expect_answers()
    assert finished(world)


@settings(max_examples=60)
@given(shapes(make=phases), st.integers(0, 2**32), st.integers(0, 250), st.sampled_from([0, 1, 2, 3]))
def test_many_groups_of_unlike_stages_and_ranks(shape, seed, actions, group) -> None:
    world = Life(World(shape), seed, ALL, group=group).live(actions)
    world.expect_answers()
    assert finished(world)


def test_the_fuzz_reaches_the_rare_paths() -> None:
    """Preemption, two steps in flight, shared and kept prompts: if a change made them unreachable, the tests above would prove nothing."""
    preemptions = shared = kept = dropped = most = 0
    for seed in range(20):
        world = World(config(pages=2 * 14, max_step_tokens=16, max_seqs=3))
        group = world.controller.groups[0]
        drop = group.prompts.drop_one

        def count_drop(drop=drop) -> bool:
            nonlocal dropped
            done = drop()
            dropped += done
            return done

        group.prompts.drop_one = count_drop
        life = Life(world, seed, QUIET)
        for _ in range(150):
            getattr(life, life.random.choice(("arrive", "complete", "complete", "complete")))()
            kept += bool(group.prompts.kept)
        world.run_out()
        preemptions += world.controller.counts()["preemptions_total"]
        most = max(most, world.most_in_flight)
        shared += sum(start.cached_tokens > 0 for _, commands in world.log for step in commands if hasattr(step, "starts") for start in step.starts)
        world.expect_answers()
    assert min(preemptions, shared, kept, dropped) > 10 and most == 2, (preemptions, shared, kept, dropped, most)


def count_shipments(life: Life) -> Counter[str]:
    """Lives, and counts what becomes of prompts that follow their chunks."""
    world = life.world
    movers = [*(group.moves for group in world.controller.groups), *world.controller._handoffs.values()]
    totals: Counter[str] = Counter()
    shared: set[tuple[int, int]] = set()
    for _ in range(150):
        heard, following = len(world.log), any(move.step >= 0 for move in world.moves)
        life.act()
        for event, commands in world.log[heard:]:
            totals["a device lost"] += isinstance(event, WorkerLost) and following
            starts = [start for step in commands if isinstance(step, RunStep) for start in step.starts]
            shared |= {(start.request, start.choice) for start in starts if start.cached_tokens}
            moves = [command for command in commands if isinstance(command, MoveKv)]
            totals["with shared pages"] += sum(move.step >= 0 and (move.request, move.choice) in shared for move in moves)
            totals["behind no step"] += sum(move.step < 0 for move in moves)
        given_up = [move for mover in movers for move in mover.active.values() if move.over]
        totals["given up"] += any(world.controller.groups[0].slots.phase[move.slot] >= LEAVING for move in given_up)
    world.run_out()
    world.expect_answers()
    assert finished(world)
    return totals + world.shipped + Counter(world.controller.counts())


def test_the_fuzz_reaches_moves() -> None:
    totals: Counter[str] = Counter()
    for seed in range(40):
        world = World(config(pages=2 * 20, devices=2, max_step_tokens=12), policies=at_random(seed))
        totals += count_shipments(Life(world, seed, (*DEALT, *LOSSES), pool=1))
    assert totals["moves_total"] > 100 and totals["moves_failed_total"] > 10 and totals["preemptions_total"] > 0, totals
    kinds = ("late", "before the step's report", "failed", "behind no step", "with shared pages", "given up", "a device lost")
    assert min(totals[kind] for kind in kinds) > 5, totals


def test_the_fuzz_reaches_handoffs() -> None:
    totals: Counter[str] = Counter()
    for seed in range(40):
        totals += count_shipments(Life(World(splitwise(pages=2 * 20, max_step_tokens=12)), seed, (*ALL, *LOSSES), group=seed % 2))
    assert totals["moves_total"] > 100 and totals["moves_failed_total"] > 10 and totals["preemptions_total"] > 0, totals
    kinds = ("late", "before the step's report", "failed", "behind no step", "with shared pages", "given up", "a device lost")
    assert min(totals[kind] for kind in kinds) > 5, totals


def test_the_fuzz_reaches_losses_of_one_group_of_many() -> None:
    """Moves from a lost group to one that lives, sequences that begin anew elsewhere, and answers that end all the same."""
    orphaned = again = 0
    arcs: Counter[tuple[int, int]] = Counter()
    for seed in range(20):
        world = Life(World(phases(pages=2 * 20, max_step_tokens=12)), seed, (*ALL, *LOSSES), group=seed % 4).live(150)
        assert finished(world)
        world.expect_answers()
        orphaned += len(world.orphaned)
        again += sum(answer.reason in ("stop", "length") for answer in world.answers.values()) if world.down else 0
        arcs += Counter((move.source.group, move.target.group) for _, commands in world.log for move in commands if isinstance(move, MoveKv))
    assert orphaned > 5 and again > 20, (orphaned, again)
    assert set(arcs) == {(0, 2), (0, 3), (1, 3)} and min(arcs.values()) > 20, arcs


def test_a_wrong_page_is_noticed() -> None:
    """The harness itself: a controller that hands out one page twice fails."""
    world = World(config())
    world.arrive(3, 20)
    pool = world.controller.groups[0].pools.pools[0]
    pool._stack[pool.free - 1] = world.pending[0][0].grant_pages[0, 0]
    with pytest.raises(AssertionError):
        world.run_out()
