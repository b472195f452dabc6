"""Tensor-parallel ranks in the control plane, with numbers: a primary holds the KV heads it computes and no other rank's, attention workers any.

No engine runs this yet; plans that ask for it are refused (tests/spec/test_plan.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from control_harness import World, config, splitwise, stage
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import ALL, QUIET, Life, finished

from hetserve.control.config import ControllerConfig, GroupConfig
from hetserve.control.messages import ANY_RANK, MoveKv, Place
from hetserve.policy import heads, rebalance
from hetserve.policy.row import Policies
from hetserve.systems import UNIFORM

HEADS = 8


def two_ranks(pages: tuple[int, ...] = (64, 64, 64), stages: int = 1, **changes) -> ControllerConfig:
    """Stages of two primaries and attention workers, with so many pages each; 8 KV heads."""
    group = GroupConfig(tuple(stage(f"dev{index}", pages, (index, index + 1), ranks=2) for index in range(stages)))
    return replace(config(heads=HEADS, **changes), groups=(group,))


def placed(*counts: list[int]) -> Policies:
    """UNIFORM, but every request gets these head groups of each rank."""
    return replace(UNIFORM, heads=lambda kv_heads, ranks, tokens, *_: np.array([counts] * len(tokens), np.int32))


def at_random(seed: int) -> Policies:
    """For every request whenever it is asked for, each head group on its primary or any worker; some are re-placed at every look."""
    rng = np.random.default_rng(seed)

    def deal(kv_heads, ranks, tokens, rows, pools):
        counts = np.zeros((len(tokens), ranks, len(pools.held)), np.int32)
        for request, rank in np.ndindex(len(tokens), ranks):
            for pool in rng.choice([rank, *range(ranks, len(pools.held))], kv_heads // ranks):
                counts[request, rank, pool] += 1
        return counts

    return replace(UNIFORM, heads=deal, rebalance=lambda kv_heads, ranks, counts, *_: np.flatnonzero(rng.random(len(counts)) < 1 / len(counts)))


def check_moves(world: World) -> list[MoveKv]:
    """All moves of a life; none brings a head group to or from a primary of another rank."""
    moves = [command for _, commands in world.log for command in commands if isinstance(command, MoveKv)]
    for move in moves:
        for place in (move.source, move.target):
            spec = world.config.groups[place.group]
            number = next(index for index, pools in enumerate(spec.pool_ranges) if place.pool in pools)
            ranks, pool = spec.stages[number].ranks, place.pool - spec.pool_ranges[number].start
            assert place.tp_rank == (pool if pool < ranks else ANY_RANK)
            assert place.tp_rank == ANY_RANK or set((move.heads * ranks // HEADS).tolist()) == {place.tp_rank}
            assert spec.stages[number].layers == move.layers
    return moves


def test_a_lane_is_at_home_on_the_primary_of_its_rank() -> None:
    (group,) = two_ranks(stages=2).groups
    assert group.home(HEADS) == (0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 4, 4, 4, 4)
    assert group.tp_ranks == (0, 1, ANY_RANK, 0, 1, ANY_RANK)
    assert config(heads=2, devices=2, stages=2).groups[0].home(2) == (0, 0, 2, 2)


def test_a_prompt_takes_pages_of_both_primaries() -> None:
    world = World(two_ranks())
    world.arrive(11, 3)
    assert world.controller.groups[0].pools.free_each().tolist() == [64 - 12, 64 - 12, 64], "three pages of each of four heads"
    world.run_out()
    world.expect_answers()


def test_what_fits_is_what_the_tighter_primary_holds() -> None:
    world = World(two_ranks((64, 20, 500)))
    assert world.controller.groups[0].capacity_tokens() == 20 // 4 * 4
    world.arrive(20, 1)
    assert "the KV memory holds 20" in world.rejected[0].why
    world.arrive(19, 1)
    world.run_out()
    assert world.answers[1, 0].reason == "length"


def test_each_rank_sends_its_own_head_groups_to_the_worker() -> None:
    world = World(two_ranks(depth=1), policies=placed([2, 0, 2], [0, 3, 1]))
    world.arrive(8, 9)
    for _ in range(3):
        world.complete()
        while world.moves:
            world.move()
    routes = {(move.source, move.target): sorted(move.heads.tolist()) for move in check_moves(world)}
    worker = Place(0, 2, ANY_RANK)
    assert routes == {(Place(0, 0, 0), worker): [2, 3], (Place(0, 1, 1), worker): [7]}
    group = world.controller.groups[0]
    assert group.slots.placement[0].tolist() == [0, 0, 2, 2, 1, 1, 1, 2]
    rows = group.slots.room[0] // 4
    assert group.pools.free_each().tolist() == [64 - 2 * rows, 64 - 3 * rows, 64 - 3 * rows]
    world.run_out()
    world.expect_answers()


def test_a_placement_on_another_ranks_primary_is_noticed() -> None:
    """The check itself: a policy that gives rank 1's primary one of rank 0's head groups fails."""
    world = World(two_ranks(), policies=placed([3, 1, 0], [0, 4, 0]))
    with pytest.raises(AssertionError, match="another rank's primary"):
        world.arrive(8, 9)


def test_the_policy_is_told_of_ranks_and_of_pages_kept_for_prompts_on_each_primary() -> None:
    asked = []

    def watch(kv_heads, ranks, tokens, rows, pools):
        asked.append((kv_heads, ranks, tokens.tolist(), rows.tolist(), pools))
        return heads.on_group(kv_heads, ranks, tokens, rows, pools)

    world = World(two_ranks((64, 80, 40), staging=0.125), policies=replace(UNIFORM, heads=watch))
    world.arrive(8, 9)
    ((kv_heads, ranks, tokens, rows, pools),) = asked
    assert (kv_heads, ranks, tokens, rows) == (8, 2, [8], [3])
    assert pools.pages_free.tolist() == [64 - 8, 80 - 10, 40] and not pools.held.any()
    assert pools.fixed_s.tolist() == [0, 1e-5, 2e-5] and pools.shared.tolist() == [1, 1, 1]


def test_stages_without_attention_workers_are_not_asked_about() -> None:
    def never(*_):
        raise AssertionError

    world = World(two_ranks((64, 64)), policies=replace(UNIFORM, heads=never, rebalance=never))
    world.arrive(9, 30)
    world.run_out()
    world.expect_answers()


def test_a_lost_primary_of_any_rank_ends_the_group_and_a_lost_worker_does_not() -> None:
    for pool, ends in ((0, True), (1, True), (2, False)):
        world = World(two_ranks(), policies=placed([2, 0, 2], [0, 3, 1]))
        world.arrive(8, 9)
        world.complete()
        world.lose(pool=pool)
        assert world.controller.serves() == (not ends)
        assert (world.answers[0, 0].reason == "error") == ends
        world.rejoin(pool=pool)
        world.arrive(8, 9)
        world.run_out()
        assert world.controller.serves() and world.answers[1, 0].reason == "length"
        world.expect_answers()


def test_prompts_are_handed_over_from_primary_to_primary() -> None:
    """Also between groups of unlike ranks: every head group goes from the primary that computed it to the one that will."""
    for ranks, routes in (((2, 2), 2), ((2, 1), 2), ((1, 2), 2), ((1, 4), 4)):
        groups = tuple(
            GroupConfig((stage(name, (64,) * count, ranks=count),), role)
            for name, role, count in zip(("first", "second"), ("prefill", "decode"), ranks, strict=True)
        )
        world = World(replace(splitwise(heads=HEADS), groups=groups))
        for _ in range(3):
            world.arrive(9, 7)
        world.run_out()
        world.expect_answers()
        moves = check_moves(world)
        assert len({(move.source, move.target) for move in moves}) == routes and finished(world)


@st.composite
def shapes(draw, stages=1):
    """Often with far too few pages; with or without attention workers."""
    seqs, workers = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    pages = [HEADS // 2 * draw(st.integers(4, 20)) + draw(st.integers(0, 3)) for _ in range(2 + workers)]
    return two_ranks(
        tuple(pages),
        stages,
        max_model_len=draw(st.sampled_from([16, 40, 64])),
        max_seqs=seqs,
        max_step_tokens=seqs + draw(st.integers(1, 20)),
        depth=draw(st.sampled_from([1, 2])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2).flatmap(shapes), st.integers(0, 2**32), st.integers(0, 150), st.integers(0, 2))
def test_heads_moved_at_random_stay_with_their_rank(shape, seed, actions, pool) -> None:
    """Pools run out one by one, moves fail, a primary of either rank or a worker goes and comes back; everybody ends with the right text."""
    lost = min(pool, len(shape.groups[0].stages[0].pools) - 1)
    world = Life(World(shape, policies=at_random(seed)), seed, ALL, lost).live(actions)
    world.expect_answers()
    check_moves(world)
    assert finished(world)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.integers(0, 2**32), st.integers(0, 120), st.sampled_from([heads.exact, heads.dealt, heads.paper, heads.even]))
def test_every_policy_keeps_ranks_apart(shape, seed, actions, policy) -> None:
    policies = replace(UNIFORM, heads=policy, rebalance=rebalance.drift(0.1))
    world = Life(World(shape, policies=policies), seed, ALL, pool=1).live(actions)
    world.expect_answers()
    check_moves(world)
    assert finished(world)


def test_the_fuzz_reaches_moves_from_both_ranks() -> None:
    totals: Counter[object] = Counter()
    for seed in range(10):
        world = Life(World(two_ranks((80, 80, 80)), policies=at_random(seed)), seed, QUIET).live(120)
        totals.update({name: world.controller.counts()[name] for name in ("moves_total", "moves_failed_total")})
        totals.update((move.source.tp_rank, move.target.tp_rank) for move in check_moves(world))
    assert totals["moves_total"] > 50 and totals["moves_failed_total"] > 5, totals
    assert min(totals[route] for route in ((0, ANY_RANK), (1, ANY_RANK), (ANY_RANK, 0), (ANY_RANK, 1))) > 5, totals
