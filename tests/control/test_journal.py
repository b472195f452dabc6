"""Journals: read back as written, replayed to the same commands, and damage is noticed where it stands."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from control_harness import World, config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import ALL, Life

from hetserve.control.codec import MESSAGES
from hetserve.control.controller import Controller
from hetserve.control.journal import Entry, Journal, read_head
from hetserve.control.messages import Sampling, Tokens
from hetserve.drive import drive
from hetserve.errors import ReplayError
from hetserve.sim.replay import ReplayExecutor
from hetserve.systems import UNIFORM


def journal_of(world: World) -> bytes:
    file = io.BytesIO()
    journal = Journal(file.write, world.config)
    for event, commands in world.log:
        journal(event, commands)
    return file.getvalue()


def busy_world(shape=None) -> World:
    """Every kind of event and command but moves."""
    world = World(shape or config(pages=2 * 9))
    for number in range(4):
        world.arrive(9, 12, n=2, stop_token_ids=(number,), sampling=Sampling(temperature=0.5, seed=number))
    world.arrive(0)
    for _ in range(9):
        world.complete()
    world.cancel(1)
    world.complete()
    world.lose()
    world.rejoin()
    world.arrive(3, 3)
    world.run_out()
    return world


def replay(raw: bytes, entries=None) -> Controller:
    head, recorded = read_head(io.BytesIO(raw).read)
    controller = Controller(head.config, UNIFORM)
    drive(controller, ReplayExecutor((entry.event, entry.commands) for entry in (entries or recorded)))
    return controller


def test_what_is_read_is_what_was_written() -> None:
    world = busy_world()
    head, entries = read_head(io.BytesIO(journal_of(world)).read)
    assert (head.format, head.plan, head.config) == (2, "none", world.config)
    for entry, (event, commands) in zip(entries, world.log, strict=True):
        assert [MESSAGES.encode(one) for one in (entry.event, *entry.commands)] == [MESSAGES.encode(one) for one in (event, *commands)]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_a_recorded_life_replays_to_the_same_commands_and_state(seed, depth) -> None:
    world = Life(World(config(pages=2 * 14, depth=depth)), seed, ALL).live(120)
    assert replay(journal_of(world)).counts() == world.controller.counts()


def test_every_damaged_byte_is_noticed() -> None:
    world = World(config())
    world.arrive(3, 3)
    world.run_out()
    raw = journal_of(world)
    for position in range(len(raw)):
        spoilt = bytearray(raw)
        spoilt[position] ^= 1
        with pytest.raises(ReplayError):
            list(read_head(io.BytesIO(bytes(spoilt)).read)[1])


def test_a_journal_cut_off_is_noticed_unless_cut_between_frames() -> None:
    world = World(config())
    world.arrive(3, 3)
    world.run_out()
    raw = journal_of(world)
    whole = 0
    for length in range(len(raw)):
        try:
            entries = list(read_head(io.BytesIO(raw[:length]).read)[1])
        except ReplayError:
            continue
        assert len(entries) == whole
        whole += 1
    assert whole == len(world.log)  # after the head, and after each entry but the last, which is not cut


def tamper(entries: list[Entry], change) -> list[Entry]:
    """The entries with a command changed, as somebody with the means to write a sound journal could."""
    for index, entry in enumerate(entries):
        changed = change(list(entry.commands))
        if changed is not None:
            return [*entries[:index], Entry(entry.event, tuple(changed)), *entries[index + 1 :]]
    raise AssertionError("nothing to change")


def another_token(commands):
    for index, command in enumerate(commands):
        if isinstance(command, Tokens):
            return [*commands[:index], replace(command, tokens=(command.tokens[0] + 1, *command.tokens[1:])), *commands[index + 1 :]]
    return None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_token, r"Tokens.tokens was recorded as \(8,\), and now is \(7,\)"),
        (lambda commands: commands[:-1] if commands else None, "recorded was nothing more"),
        (lambda commands: [*commands, commands[0]] if len(commands) == 1 else None, "now nothing more"),
        (lambda commands: commands[::-1] if len(commands) > 1 and type(commands[0]) is not type(commands[-1]) else None, "recorded was Tokens"),
    ],
)
def test_a_tampered_journal_does_not_replay(change, said) -> None:
    world = World(config(heads=1))
    world.arrive(6, 3)
    world.run_out()
    raw = journal_of(world)
    replay(raw)
    entries = tamper(list(read_head(io.BytesIO(raw).read)[1]), change)
    with pytest.raises(ReplayError, match=said):
        replay(raw, entries)


def test_the_loop_records_the_event_that_broke_it() -> None:
    """A controller's fault leaves its event in the journal, without commands."""

    class Broken:
        def handle(self, event):
            raise RuntimeError("a bug")

    seen = []
    world = busy_world()
    with pytest.raises(RuntimeError):
        drive(Broken(), ReplayExecutor(world.log), lambda event, commands: seen.append((event, commands)))  # type: ignore[arg-type]
    assert seen == [(world.log[0][0], ())]


@pytest.mark.parametrize("raw", [b"", b"hello", b"hetserve journal\n"])
def test_what_is_no_journal(raw) -> None:
    with pytest.raises(ReplayError):
        read_head(io.BytesIO(raw).read)
