"""The protocol between executors and the controller, as conversations to read. An event stands at the margin, the commands it causes below it.

Pages hold 4 tokens here, so 6 tokens need 2 pages of each head. Executors complete steps in the order they were sent.
"""

from __future__ import annotations

from control_harness import World, config, splitwise, transcript
from test_controller import placed


def same(world: World, text: str) -> None:
    assert transcript(world) == text.strip("\n")


def test_a_request_one_step_at_a_time() -> None:
    """The prompt is one chunk; it samples because it ends at the last known token. Then the slot joins the standing set, and from then on
    a step needs no words: every standing slot takes its last sampled token. A full page is followed by a grant of one page per head."""
    world = World(config(depth=1))
    world.arrive(6, 5)
    world.run_out()
    same(
        world,
        """
r0 arrives: 6 tokens, wants 5
  step 0:
    start r0.0 in slot 0 with 6 tokens
    grant slot 0 page 0 = [0, 1]
    grant slot 0 page 1 = [2, 3]
    chunk slot 0 takes 6, samples
step 0 done: [7]
  step 1:
    join slot 0
  tell r0.0 7
step 1 done: [6]
  step 2:
  tell r0.0 6
step 2 done: [4]
  step 3:
    grant slot 0 page 2 = [4, 5]
  tell r0.0 4
step 3 done: [8]
  step 4:
  tell r0.0 8
step 4 done: [4]
  tell r0.0 4
  finish r0.0 length after 5
""",
    )


def test_two_steps_in_flight() -> None:
    """Step 1 is sent before anybody knows what step 0 sampled. No step is sent for a token that the length limit forbids."""
    world = World(config(heads=1))
    world.arrive(3, 3)
    world.run_out()
    same(
        world,
        """
r0 arrives: 3 tokens, wants 3
  step 0:
    start r0.0 in slot 0 with 3 tokens
    grant slot 0 page 0 = [0]
    chunk slot 0 takes 3, samples
  step 1:
    join slot 0
step 0 done: [1]
  step 2:
    grant slot 0 page 1 = [1]
  tell r0.0 1
step 1 done: [2]
  tell r0.0 2
step 2 done: [3]
  tell r0.0 3
  finish r0.0 length after 3
""",
    )


def test_a_stop_found_late() -> None:
    """r0 samples its stop token 4 in step 2, when step 3 with r0 in it is on its way. Step 4 leaves r0 out, what r0 samples in step 3 is not
    told to anybody, and only then are its slot and pages given up: step 5 says so."""
    world = World(config(heads=1))
    world.arrive([1, 2, 3, 4, 5, 6], 20, stop_token_ids=(4,))
    world.arrive([9], 5)
    world.run_out()
    same(
        world,
        """
r0 arrives: 6 tokens, wants 20
  step 0:
    start r0.0 in slot 0 with 6 tokens
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    chunk slot 0 takes 6, samples
  step 1:
    join slot 0
r1 arrives: 1 tokens, wants 5
step 0 done: [7]
  step 2:
    start r1.0 in slot 1 with 1 tokens
    grant slot 1 page 0 = [2]
    chunk slot 1 takes 1, samples
  tell r0.0 7
step 1 done: [6]
  step 3:
    grant slot 0 page 2 = [3]
    join slot 1
  tell r0.0 6
step 2 done: [4, 11]
  step 4:
    leave slot 0
  tell r0.0 4, r1.0 11
  finish r0.0 stop after 3
step 3 done: [8, 10]
  step 5:
    end slot 0
  tell r1.0 10
step 4 done: [6]
  step 6:
    grant slot 1 page 1 = [0]
  tell r1.0 6
step 5 done: [7]
  tell r1.0 7
step 6 done: [7]
  tell r1.0 7
  finish r1.0 length after 5
""",
    )


def test_a_long_prompt_beside_a_running_request() -> None:
    """A step takes 8 tokens: r0's one, then 7 and 4 of r1's prompt. Only the chunk that reaches its end samples."""
    world = World(config(heads=1, max_step_tokens=8, depth=1))
    world.arrive(3, 4)
    world.arrive(11, 2)
    world.run_out()
    same(
        world,
        """
r0 arrives: 3 tokens, wants 4
  step 0:
    start r0.0 in slot 0 with 3 tokens
    grant slot 0 page 0 = [0]
    chunk slot 0 takes 3, samples
r1 arrives: 11 tokens, wants 2
step 0 done: [1]
  step 1:
    start r1.0 in slot 1 with 11 tokens
    grant slot 1 page 0 = [1]
    grant slot 1 page 1 = [2]
    grant slot 1 page 2 = [3]
    join slot 0
    chunk slot 1 takes 7
  tell r0.0 1
step 1 done: [2]
  step 2:
    grant slot 0 page 1 = [4]
    chunk slot 1 takes 4, samples
  tell r0.0 2
step 2 done: [3, 3]
  step 3:
    join slot 1
  tell r0.0 3, r1.0 3
step 3 done: [6, 10]
  tell r0.0 6, r1.0 10
  finish r0.0 length after 4
  finish r1.0 length after 2
""",
    )


def test_two_choices_share_a_prompt() -> None:
    """Choice 0 computes the prompt. Choice 1 starts when the prompt's full pages are computed (0 and 1 here), refers to the same pages, and
    computes only the two tokens of the tail, in a page of its own."""
    world = World(config(heads=1, depth=1))
    world.arrive(10, 2, n=2)
    world.run_out()
    same(
        world,
        """
r0 arrives: 10 tokens, wants 2 x2
  step 0:
    start r0.0 in slot 0 with 10 tokens
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    grant slot 0 page 2 = [2]
    chunk slot 0 takes 10, samples
step 0 done: [7]
  step 1:
    start r0.1 in slot 1 with 10 tokens (8 cached)
    grant slot 1 page 0 = [0]
    grant slot 1 page 1 = [1]
    grant slot 1 page 2 = [3]
    join slot 0
    chunk slot 1 takes 2, samples
  tell r0.0 7
step 1 done: [8, 10]
  step 2:
    end slot 0
    join slot 1
  tell r0.0 8, r0.1 10
  finish r0.0 length after 2
step 2 done: [6]
  tell r0.1 6
  finish r0.1 length after 2
""",
    )


def test_pages_run_out() -> None:
    """Four pages. For step 3 r0 needs a third one, so r1, the later arrival, gives up both of its own. When r0 is done, r1 starts again: the
    token it had generated is now part of what it computes first, and its text goes on where it was."""
    world = World(config(heads=1, pages=4, depth=1))
    world.arrive(6, 4)
    world.arrive(5, 3)
    world.run_out()
    same(
        world,
        """
r0 arrives: 6 tokens, wants 4
  step 0:
    start r0.0 in slot 0 with 6 tokens
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    chunk slot 0 takes 6, samples
r1 arrives: 5 tokens, wants 3
step 0 done: [7]
  step 1:
    start r1.0 in slot 1 with 5 tokens
    grant slot 1 page 0 = [2]
    grant slot 1 page 1 = [3]
    join slot 0
    chunk slot 1 takes 5, samples
  tell r0.0 7
step 1 done: [6, 10]
  step 2:
    join slot 1
  tell r0.0 6, r1.0 10
step 2 done: [4, 2]
  step 3:
    end slot 1
    grant slot 0 page 2 = [2]
  tell r0.0 4, r1.0 2
step 3 done: [8]
  step 4:
    end slot 0
    start r1.0 in slot 0 with 7 tokens
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    chunk slot 0 takes 7, samples
  tell r0.0 8
  finish r0.0 length after 4
step 4 done: [1]
  tell r1.0 1
  finish r1.0 length after 3
""",
    )


def test_the_client_goes_away_and_a_stop_string() -> None:
    """Both end a choice from outside. Steps in flight are still reported; their tokens are dropped."""
    world = World(config(heads=1))
    world.arrive(2, 9)
    world.arrive(1, 9)
    world.complete()
    world.cancel(0)
    world.complete()
    world.complete()
    world.stop(1, 0, 1)
    world.run_out()
    same(
        world,
        """
r0 arrives: 2 tokens, wants 9
  step 0:
    start r0.0 in slot 0 with 2 tokens
    grant slot 0 page 0 = [0]
    chunk slot 0 takes 2, samples
  step 1:
    join slot 0
r1 arrives: 1 tokens, wants 9
step 0 done: [6]
  step 2:
    start r1.0 in slot 1 with 1 tokens
    grant slot 1 page 0 = [1]
    chunk slot 1 takes 1, samples
  tell r0.0 6
r0 is cancelled
  finish r0.0 abort after 1
step 1 done: [6]
  step 3:
    leave slot 0
    join slot 1
step 2 done: [11, 9]
  step 4:
    end slot 0
  tell r1.0 9
r1.0 has a stop string after 1
  finish r1.0 stop after 1
step 3 done: [2]
step 4 done: [12]
""",
    )


def test_a_worker_dies_and_comes_back() -> None:
    """With no other group to go to, what ran there fails and says why; so does what comes next, until the device is back, empty."""
    world = World(config(heads=1))
    world.arrive(3, 9)
    world.complete()
    world.lose()
    world.arrive(2, 2)
    world.rejoin()
    world.arrive(2, 1)
    world.run_out()
    same(
        world,
        """
r0 arrives: 3 tokens, wants 9
  step 0:
    start r0.0 in slot 0 with 3 tokens
    grant slot 0 page 0 = [0]
    chunk slot 0 takes 3, samples
  step 1:
    join slot 0
step 0 done: [1]
  step 2:
    grant slot 0 page 1 = [1]
  tell r0.0 1
dev0 is lost
  finish r0.0 error after 1: device 'dev0' was lost: it was killed
r1 arrives: 2 tokens, wants 2
  reject r1: device 'dev0' was lost: it was killed
dev0 is back
r2 arrives: 2 tokens, wants 1
  step 3:
    start r2.0 in slot 0 with 2 tokens
    grant slot 0 page 0 = [0]
    chunk slot 0 takes 2, samples
step 3 done: [6]
  tell r2.0 6
  finish r2.0 length after 1
""",
    )


def test_a_prompt_follows_its_chunks_to_an_attention_worker() -> None:
    """Head group 1 is to lie in pool 1, the attention worker's. What a chunk completes is on its way before the chunk's step is: two full pages
    behind step 0, the page that is only begun with the last chunk, behind step 1. The first token waits for nothing; r0's first decode step, 2,
    waits until the move is done, and says where the head group lies. Nothing is copied twice."""
    world = World(config(heads=2, devices=2, depth=1, max_step_tokens=8, max_seqs=2), policies=placed([1, 1]))
    world.arrive(11, 3)
    world.move()
    world.complete()
    world.complete()
    world.run_out()
    same(
        world,
        """
r0 arrives: 11 tokens, wants 3
  move 1: r0.0 2 pages of heads [1], pool 0.0 to 0.1, behind step 0
  step 0:
    start r0.0 in slot 0 with 11 tokens
    grant slot 0 page 0 = [0, 1]
    grant slot 0 page 1 = [2, 3]
    grant slot 0 page 2 = [4, 5]
    chunk slot 0 takes 8
move 1 is done
step 0 done: []
  move 2: r0.0 1 pages of heads [1], pool 0.0 to 0.1, behind step 1
  step 1:
    chunk slot 0 takes 3, samples
step 1 done: [3]
  tell r0.0 3
move 2 is done
  step 2:
    join slot 0
    slot 0 lanes [1] now in pools [1], pages [[0, 1, 2]]
step 2 done: [10]
  step 3:
    grant slot 0 page 3 = [1, 3]
  tell r0.0 10
step 3 done: [5]
  tell r0.0 5
  finish r0.0 length after 3
""",
    )


def test_a_prompt_follows_its_chunks_to_a_decode_group() -> None:
    """The same from a prefill group to a decode group, all heads. It starts there once its first token is known, with that to compute."""
    world = World(splitwise(heads=1, depth=1, max_step_tokens=8, max_seqs=2))
    world.arrive(11, 2)
    world.complete()
    world.move()
    world.move()
    world.complete()
    world.run_out()
    same(
        world,
        """
r0 arrives: 11 tokens, wants 2
  move 1: r0.0 2 pages of heads [0], pool 0.0 to 1.0, behind step 0
  step 0:
    start r0.0 in slot 0 with 11 tokens
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    grant slot 0 page 2 = [2]
    chunk slot 0 takes 8
step 0 done: []
  move 2: r0.0 1 pages of heads [0], pool 0.0 to 1.0, behind step 1
  step 1:
    chunk slot 0 takes 3, samples
move 1 is done
move 2 is done
step 1 done: [3]
  step 2:
    start r0.0 in slot 0 with 12 tokens (11 cached)
    grant slot 0 page 0 = [0]
    grant slot 0 page 1 = [1]
    grant slot 0 page 2 = [2]
    chunk slot 0 takes 1, samples
  tell r0.0 3
step 2 done: [10]
  tell r0.0 10
  finish r0.0 length after 2
""",
    )
