"""The dispatcher and its policies on a controller: heads spread as load comes, and come home as it goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from control_harness import COST, World, config

from hetserve.control.config import ControllerConfig, GroupConfig, PoolConfig, StageConfig
from hetserve.cost.costs import HeadCost
from hetserve.policy import heads, rebalance
from hetserve.systems import UNIFORM

HEADS = 8
POLICIES = replace(UNIFORM, heads=heads.exact, rebalance=rebalance.drift(0.1))


def two_devices(shared: float, fixed_s: float) -> ControllerConfig:
    """A primary and a like attention worker that costs `fixed_s` once it holds anything; they slow each other. A request's attention takes 96 us."""
    costs = HeadCost(12e-6, 1e-12, 0.0, "test", shared), HeadCost(12e-6, 1e-12, fixed_s, "test", shared)
    pools = tuple(PoolConfig(name, 600, cost) for name, cost in zip(("one", "two"), costs, strict=True))
    return replace(config(heads=HEADS, max_step_tokens=40), groups=(GroupConfig((StageConfig((0, 1), pools, COST),)),))


def there(world: World) -> list[int]:
    """Head groups of each running request on the worker."""
    slots = world.controller.groups[0].slots
    return [int((slots.placement[one.slot] == 1).sum()) for state in world.controller.requests.values() for one in state.sequences if one.slot >= 0]


def steps(world: World, count: int) -> None:
    for _ in range(count):
        world.complete()
        while world.moves:
            world.move()


def test_heads_come_home_when_the_load_falls() -> None:
    """The second request is split: 192 us are more than with a worker that costs 90 us and slows both by a fifth. Alone it is better off at home."""
    world = World(two_devices(shared=1.2, fixed_s=9e-5), policies=POLICIES)
    world.arrive(12, 10)
    steps(world, 2)
    assert there(world) == [0]
    world.arrive(12, 50)
    steps(world, 4)
    split = there(world)
    assert split[0] == 0 and 0 < split[1] < HEADS
    while len(there(world)) > 1:
        steps(world, 1)
    steps(world, 18)
    assert there(world) == [0]
    world.run_out()
    world.expect_answers()


def test_devices_that_slow_each_other_too_much_are_not_used_together() -> None:
    for shared, used in ((1.0, True), (1.9, True), (2.1, False)):
        world = World(two_devices(shared, fixed_s=0.0), policies=POLICIES)
        for _ in range(3):
            world.arrive(12, 20)
        steps(world, 8)
        assert any(there(world)) == used, shared
        world.run_out()
        world.expect_answers()


def test_balance_leaves_prompts_their_pages() -> None:
    """Everything lies on the worker; how much comes back when balance is looked at is a matter of what the primary keeps for prompts."""
    for staging, home in ((0.0, 4), (0.95, 3), (1.0, 0)):
        asked = []

        def away_at_first(kv_heads, ranks, tokens, rows, now, asked=asked):
            asked.append(tokens)
            first = tokens[0] == 12
            return np.array([[[0, HEADS]]], np.int32) if first else heads.exact(kv_heads, ranks, tokens, rows, now)

        world = World(replace(two_devices(1.0, 0.0), staging=staging), policies=replace(POLICIES, heads=away_at_first))
        world.arrive(12, 50)
        steps(world, 22)
        assert HEADS - there(world)[0] == home
        assert len(asked) == (2 if home else 1), "nobody is placed anew where there is no room to come to"
        world.run_out()
        world.expect_answers()


def small_worker(pages: int) -> ControllerConfig:
    """A primary with room for everybody, and a worker that attends in no time and has few pages."""
    costs = HeadCost(12e-6, 1e-6, 0.0, "test"), HeadCost(1e-9, 1e-12, 0.0, "test")
    pools = tuple(PoolConfig(name, count, cost) for name, count, cost in zip(("one", "two"), (600, pages), costs, strict=True))
    return replace(config(heads=HEADS, max_step_tokens=40), groups=(GroupConfig((StageConfig((0, 1), pools, COST),)),))


def test_a_worker_has_a_page_for_each_head_group_that_grows() -> None:
    """Nobody gives way while the primary has room, though the worker could be filled to the brim."""
    for pages in (60, 100, 200):
        world = World(small_worker(pages), policies=replace(POLICIES, rebalance=rebalance.none))
        for number in range(6):
            world.arrive(10 + number, 40)
        used = False
        while world.pending[0]:
            steps(world, 1)
            used |= any(there(world))
        assert used and world.controller.counts()["preemptions_total"] == 0, pages
        world.expect_answers()


def test_another_moves_where_the_latest_cannot() -> None:
    """The worker is full and the latest arrival rests: an earlier one comes home, nobody gives way."""

    def all_away(kv_heads, ranks, tokens, rows, now):
        return np.array([[[0, HEADS]] if now.pages_free[1] >= HEADS * size else [[HEADS, 0]] for size in rows], np.int32)

    world = World(small_worker(HEADS * 12), policies=replace(POLICIES, heads=all_away, rebalance=rebalance.none))
    world.arrive(12, 40)
    steps(world, 4)
    world.arrive(5, 40)
    steps(world, 3)
    assert there(world) == [HEADS, HEADS]
    dispatcher = world.controller.groups[0].dispatcher
    movable, latest = dispatcher.movable, world.controller.requests[1].sequences[0].slot
    dispatcher.movable = lambda slot: slot != latest and movable(slot)
    while sum(there(world)) == 2 * HEADS:
        steps(world, 1)
    assert there(world) == [0, HEADS] and world.controller.counts()["preemptions_total"] == 0
    world.run_out()
    world.expect_answers()
