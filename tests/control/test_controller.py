"""What single transcripts and random lives do not single out: refusals, limits, order, several groups, late and odd events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from control_harness import World, config, expected, phases, splitwise, stage

from hetserve.control.config import GroupConfig
from hetserve.control.messages import MoveKv, Request, RunStep, StepDone
from hetserve.policy.pools import StagePools
from hetserve.policy.row import Policies
from hetserve.systems import UNIFORM


def started(commands) -> list[int]:
    """Requests that start in these commands."""
    return [start.request for step in commands if isinstance(step, RunStep) for start in step.starts]


@pytest.mark.parametrize(
    ("prompt", "options", "why"),
    [
        (0, {}, "empty"),
        (64, {}, "the model takes 64"),
        (200, {}, "the model takes 64"),
        (40, {}, "the KV memory holds 40"),
        (3, {"max_tokens": 0}, "max_tokens"),
        (3, {"n": 0}, "n must be"),
        (3, {"stop_token_ids": (1, -5)}, "stop token ids"),
        (3, {"stop_token_ids": (2**31,)}, "stop token ids"),
    ],
)
def test_what_can_never_be_served_is_refused_for_good(prompt, options, why) -> None:
    world = World(config(pages=20))
    world.arrive(prompt, **options)
    assert why in world.rejected[0].why and not world.rejected[0].retry
    world.arrive(39, 1)
    world.run_out()
    assert world.answers[1, 0].reason == "length"


def test_answers_are_cut_at_the_models_and_the_memorys_length() -> None:
    for shape, longest in ((config(max_model_len=20), 20), (config(pages=2 * 6), 24)):
        world = World(shape)
        world.arrive(7, 1000)
        world.run_out()
        assert (world.answers[0, 0].count, world.answers[0, 0].reason) == (longest - 7, "length")


def test_too_many_waiting_requests_are_turned_away_for_now() -> None:
    world = World(config(max_seqs=1, max_waiting=2))
    for _ in range(5):
        world.arrive(3, 3)
    assert [world.rejected[number].retry for number in (3, 4)] == [True, True] and len(world.rejected) == 2
    world.run_out()
    world.arrive(3, 3)
    assert len(world.rejected) == 2


def test_first_come_first_served() -> None:
    """Nobody overtakes a long prompt that waits for pages, so it cannot starve."""
    world = World(config(pages=2 * 10, heads=2, max_seqs=4))
    world.arrive(20, 6)
    world.arrive(30, 3)  # does not fit beside the first
    world.arrive(2, 3)  # would fit
    order = []
    while world.pending[0]:
        order += started(world.complete())
    assert started(world.log[0][1]) + order == [0, 1, 2]


def test_the_watermark_is_kept_free_unless_nothing_runs() -> None:
    """The first takes 10 of 20 pages; with the second's 8 there would be 2 left."""
    for watermark, waiting in ((0.0, 0), (0.1, 0), (0.15, 1)):
        world = World(config(pages=2 * 10, watermark=watermark))
        world.arrive(16, 4)
        world.complete()
        world.arrive(16, 4)
        world.complete()
        assert world.controller.counts()["waiting"] == waiting
        world.run_out()
        world.arrive(39, 1)
        assert world.controller.counts()["waiting"] == 0


def test_stop_tokens_count_from_min_tokens_on() -> None:
    for least in range(12):
        world = World(config(), vocab=3)
        world.arrive(5, 30, stop_token_ids=(0, 2), min_tokens=least)
        world.run_out()
        answer = world.answers[0, 0]
        assert (answer.tokens, answer.reason) == expected(world.requests[0], 0, 3, 64)
        assert answer.count >= least


def test_absurd_numbers_do_no_harm() -> None:
    world = World(config())
    world.arrive(3, 10**30, min_tokens=10**30, stop_token_ids=(0, 2**31 - 1))
    world.run_out()
    assert (world.answers[0, 0].reason, world.answers[0, 0].count) == ("length", 61)


def test_a_stop_string_reported_late_gives_the_earlier_length() -> None:
    world = World(config())
    world.arrive(3, 30)
    for _ in range(6):
        world.complete()
    world.stop(0, 0, 2)
    assert (world.answers[0, 0].count, world.answers[0, 0].reason) == (2, "stop")
    world.stop(0, 0, 1)
    world.stop(0, 5, 1)
    world.stop(99, 0, 1)
    world.cancel(0)
    world.cancel(99)
    world.run_out()
    assert world.controller.counts()["pages_free"] == 64


def test_pages_are_not_reused_while_a_step_in_flight_writes_to_them() -> None:
    """One slot: the next request may start only once the cancelled one's last step is reported."""
    world = World(config(max_seqs=1))
    world.arrive(3, 30)
    world.arrive(3, 30)
    world.cancel(0)
    assert world.controller.counts()["pages_free"] < 64
    assert started(world.complete()) == []
    assert started(world.complete()) == [1]


def test_a_report_of_a_lost_workers_step_is_ignored() -> None:
    world = World(config())
    world.arrive(3, 30)
    late = world.pending[0][0].step
    world.lose()
    assert world.send(StepDone, late, 0, np.array([5], np.int32), 0.1) == []
    world.rejoin()
    world.arrive(3, 3)
    assert world.send(StepDone, late, 0, np.array([5], np.int32), 0.1) == []
    world.run_out()
    assert world.answers[1, 0].reason == "length"


def two_groups(**changes) -> World:
    """Two groups on a device each; as `replicas` plans have them."""
    one = config(**changes)
    other = GroupConfig((stage("other", (64,)),))
    return World(replace(one, groups=(one.groups[0], other)))


def test_requests_go_to_the_group_with_the_smaller_load() -> None:
    world = two_groups()
    for prompt in (10, 4, 4, 9):
        world.arrive(prompt, 3)
    homes = [group for _, commands in world.log for group in {step.group for step in commands if isinstance(step, RunStep) and step.starts}]
    assert homes[:2] == [0, 1]
    world.run_out()
    world.expect_answers()
    assert all(answer.reason == "length" for answer in world.answers.values())


def test_what_a_lost_group_ran_goes_on_elsewhere_with_the_same_text() -> None:
    """Also its waiting requests and all choices of one request; earlier arrivals go first there too."""
    world = two_groups(max_seqs=2)
    for _ in range(6):
        world.arrive(10, 12, n=2)
    for _ in range(4):
        world.complete(0)
        world.complete(1)
    world.lose(0)
    while world.pending[1]:
        world.complete(1)
    for (number, choice), answer in world.answers.items():
        assert answer.tokens == expected(world.requests[number], choice, world.vocab, 64)[0]
    world.rejoin(0)
    world.arrive(3, 3)
    assert world.pending[0]
    world.run_out()


def test_many_stop_ids_and_many_choices() -> None:
    world = World(config(max_seqs=8), vocab=1000)
    world.arrive(9, 6, n=20, stop_token_ids=tuple(range(2, 900, 2)))
    world.arrive(9, 6, stop_token_ids=(1,))
    world.run_out()
    for (number, choice), answer in world.answers.items():
        assert (answer.tokens, answer.reason) == expected(world.requests[number], choice, 1000, 64)


def test_counts() -> None:
    world = World(config(max_seqs=1))
    world.arrive(5, 4, n=2)
    world.arrive(0)
    counts = world.controller.counts()
    assert (counts["running"], counts["waiting"], counts["arrived_total"], counts["rejected_total"]) == (1, 1, 3, 1)
    world.run_out()
    counts = world.controller.counts()
    assert (counts["length_total"], counts["generation_tokens_total"], counts["prompt_tokens_total"]) == (2, 8, 5)


def test_policies_are_asked_with_numbers_only() -> None:
    """No policy sees a request, so none can see how long an answer will be."""
    seen: list[object] = []

    def watch(policy):
        def asked(*numbers):
            for number in numbers:
                seen.extend(number if isinstance(number, StagePools) else [number])
            return policy(*numbers)

        return asked

    policies = Policies(*(watch(getattr(UNIFORM, name)) for name in ("route", "batch", "heads", "rebalance", "evict")))
    world = World(config(pages=2 * 8, devices=2), policies=policies)
    for _ in range(3):
        world.arrive(9, 15)
    world.run_out()
    assert len(seen) > 10 and all(isinstance(number, int | np.ndarray) for number in seen)
    assert not any(isinstance(number, Request) for number in seen)


def placed(*placements: list[int]) -> Policies:
    """UNIFORM, but the n-th request gets the n-th of these: head groups on the primary and on the attention worker; the last goes for the rest."""
    left = list(placements)

    def heads(kv_heads, ranks, tokens, *_):
        return np.array([[left.pop(0) if len(left) > 1 else left[0]] for _ in tokens], np.int32)

    return replace(UNIFORM, heads=heads)


def test_heads_of_a_running_request_move_while_it_decodes() -> None:
    """Full pages first; then the request sits out one step, its last page follows, and the next step is told."""
    world = World(config(heads=2, devices=2, depth=1, max_model_len=40))
    world.arrive(11, 9)
    world.complete()
    assert world.controller.groups[0].moves.begin(0, np.array([0, 1], np.int32)) and not world.moves
    world.complete()
    assert [(move.pages_from.shape, move.step) for move in world.moves] == [((1, 3), -1)]
    world.complete()
    world.move()
    assert not world.moves and world.pending[0], "its step in flight comes first"
    world.complete()
    assert [(move.pages_from.shape, move.step) for move in world.moves] == [((1, 1), -1)] and not world.pending[0]
    (step,) = world.move()
    assert [(one.slot, one.lanes.tolist(), one.pools.tolist()) for one in step.replaces] == [(0, [1], [1])]
    assert world.controller.groups[0].pools.free_each().tolist() == [64 - 4, 64 - 4]
    world.run_out()
    world.expect_answers()


def shipping(**changes) -> World:
    """A group whose second head group goes to its attention worker; its steps take 8 tokens."""
    return World(config(heads=2, devices=2, max_step_tokens=8, **changes), policies=placed([1, 1]))


def beside_another(world: World) -> None:
    """r0 decodes, and the step that ends r1's prompt is in flight."""
    world.arrive(3, 40)
    world.complete()
    world.move()
    world.arrive(11, 9)
    while not any(1 in step.chunk_slots[step.chunk_samples == 1] for step in world.pending[0]):
        world.complete()
    assert [move.request for move in world.moves] == [1, 1]


def test_a_request_decodes_only_where_its_prompt_was_shipped_to() -> None:
    """Its first token is told meanwhile, and nobody else waits."""
    world = shipping(max_seqs=3)
    beside_another(world)
    while not world.answers[1, 0].tokens:
        world.complete()
    for _ in range(5):
        assert len(world.pending[0]) == 2 and all(1 not in step.joins for step in world.pending[0])
        world.complete()
    world.move()
    world.move()
    step = world.complete()[0]
    assert [(one.slot, one.lanes.tolist(), one.pools.tolist()) for one in step.replaces] == [(1, [1], [1])] and step.joins.tolist() == [1]
    world.run_out()
    world.expect_answers()


def test_a_request_whose_prompt_arrives_with_its_last_chunk_misses_no_step_it_could_have_taken() -> None:
    """The last layers are there before the step is reported, so the next step to be sent has the request in its new place."""
    world = shipping(max_seqs=3)
    beside_another(world)
    world.move()
    world.move()
    assert not world.answers[1, 0].tokens
    step = world.complete()[0]
    assert [one.slot for one in step.replaces] == [1] and step.joins.tolist() == [1]
    world.run_out()
    world.expect_answers()


def test_a_failed_move_leaves_everything_as_it_was() -> None:
    """The request decodes at home at once, whichever of its moves fails."""
    for failed in (0, 1):
        world = shipping(depth=1)
        world.arrive(11, 9)
        world.complete()
        world.complete()
        assert len(world.moves) == 2 and not world.pending[0]
        world.move(failed, ok=False)
        assert world.controller.counts()["moves_failed_total"] == 1
        assert world.pending[0], "it does not wait for the other one"
        assert world.controller.groups[0].pools.free_each()[1] == 64 - 3, "whose pages are still written to"
        world.move()
        assert world.controller.groups[0].pools.free_each()[1] == 64
        world.run_out()
        world.expect_answers()
        assert world.answers[0, 0].reason == "length"


@pytest.mark.parametrize("how", ["cancelled", "stopped", "target lost", "source lost", "preempted"])
def test_what_is_shipped_for_a_request_that_goes_away(how) -> None:
    """In the middle of its prompt, or with its first token. Its pages come back on both sides once nothing writes to them any more."""
    world = shipping(depth=1)
    world.arrive(11, 9, stop_token_ids=(3,) if how == "stopped" else ())
    group = world.controller.groups[0]
    world.complete()
    if how == "stopped":
        world.complete()
        assert world.answers[0, 0].reason == "stop"
    elif how == "cancelled":
        world.cancel(0)
    elif how == "preempted":
        group.preempt(0)
    else:
        world.lose(pool=int(how == "target lost"))
        if how == "target lost":
            assert not world.moves and group.pools.free_each().tolist() == [64 - 6, 64]
            world.run_out()
            assert world.answers[0, 0].reason == "length"
            world.expect_answers()
    if how in ("stopped", "cancelled", "preempted"):
        assert group.slots.phase[0] > 2 and group.pools.free_each().tolist() == [64 - 6, 64 - 3]
    world.run_out()
    assert group.pools.free_each().tolist() == [64, 64] and not group.moves.active
    world.expect_answers()


def test_choices_share_a_prompt_that_has_moved_away() -> None:
    """One slot of two is taken, so the second choice waits until the first is far away; the prompt's pages are kept at home for it."""
    world = shipping(max_seqs=2)
    world.arrive(3, 20)
    world.arrive(9, 4, n=2)
    world.run_out()
    starts = [start for _, commands in world.log for step in commands if isinstance(step, RunStep) for start in step.starts]
    assert [(start.request, start.choice, start.cached_tokens) for start in starts] == [(0, 0, 0), (1, 0, 0), (1, 1, 8)]
    assert world.controller.groups[0].moves.done == 3
    world.expect_answers()


def test_a_full_attention_worker_is_relieved_before_anybody_is_preempted() -> None:
    """r0's and r1's heads fill the attention worker; when r0 needs a page there, the later one's come back to the primary."""
    world = World(config(heads=1, pages=6, devices=2, depth=1, max_model_len=24), policies=placed([0, 1], [0, 1], [1, 0]))
    world.arrive(9, 12)
    world.arrive(9, 3)
    world.run_out()
    assert world.controller.counts()["preemptions_total"] == 0
    world.expect_answers()


def test_a_request_is_handed_over_once_its_first_token_is_known_and_its_prompt_is_there() -> None:
    for last in ("move", "complete"):
        world = World(splitwise(depth=1))
        world.arrive(7, 5)
        assert world.pending[0] and not world.pending[1] and [move.step for move in world.moves] == [0]
        world.run(0)
        first, second = (world.complete, world.move) if last == "move" else (world.move, world.complete)
        assert not [one for one in first() if isinstance(one, RunStep)]
        (step, *_) = second()
        assert step.group == 1 and step.starts[0].cached_tokens == 7 and len(step.starts[0].tokens) == 8
        world.run_out()
        world.expect_answers()
        assert world.answers[0, 0].reason == "length"


def test_a_prompt_without_room_in_the_decode_group_is_handed_over_when_there_is_some() -> None:
    """r0 takes 6 of the decode group's 8 pages, so r1 is copied when r0 is over; r2, which would fit beside r0, does not overtake it."""
    groups = (GroupConfig((stage("first", (64,)),), "prefill"), GroupConfig((stage("second", (8,)),), "decode"))
    world = World(replace(config(heads=1, depth=1, max_step_tokens=40), groups=groups))
    for prompt in (20, 14, 2):
        world.arrive(prompt, 3)
    for _ in range(2):
        world.complete(0)
    assert [(move.request, move.step) for move in world.moves] == [(0, 0)] and not world.pending[0]
    world.run_out()
    moves = [(one.request, one.step) for _, commands in world.log for one in commands if isinstance(one, MoveKv)]
    assert moves == [(0, 0), (1, -1), (2, -1)]
    world.expect_answers()
    assert all(answer.reason == "length" for answer in world.answers.values())


def test_decode_groups_get_their_shares_of_the_flow() -> None:
    """A quarter and three quarters of the first prefill group's requests; the second one's all go to the last group."""
    world = World(phases(pages=400, max_seqs=16, max_step_tokens=32))
    for _ in range(10):
        for _ in range(6):
            world.arrive(12, 1)
        world.run_out()
    moves = [one for _, commands in world.log for one in commands if isinstance(one, MoveKv)]
    taken = Counter(arc for arc, _ in {((one.source.group, one.target.group), one.request) for one in moves})
    first = taken[0, 2] + taken[0, 3]
    assert abs(taken[0, 2] - first / 4) <= 1 and first + taken[1, 3] == 60 and min(taken.values()) >= 5, taken


def test_a_failed_handoff_is_tried_again() -> None:
    """From the start, as the pages were given back meanwhile."""
    world = World(splitwise(depth=1, max_step_tokens=8))
    world.arrive(15, 5)
    world.complete(0)
    world.move(ok=False)
    assert [(move.pages_from.shape, move.step) for move in world.moves] == [((2, 2), 1)]
    world.move(0, ok=False)
    assert world.controller.groups[1].pools.free_each().tolist() == [64] and not world.moves
    world.complete(0)
    assert [(move.pages_from.shape, move.step) for move in world.moves] == [((2, 4), -1)]
    world.run_out()
    world.expect_answers()


def test_nobody_starts_before_a_step_has_a_token_for_them() -> None:
    """Pages are not held for a prompt whose turn is steps away."""
    world = World(config(max_step_tokens=8, depth=1))
    for _ in range(3):
        world.arrive(12, 2)
    assert world.controller.counts()["running"] == 1
    world.complete()
    assert world.controller.counts()["running"] == 2
