"""`hetserve replay`: gives a recorded run's events to today's controller and insists on the recorded decisions, byte for byte."""

from __future__ import annotations

from pathlib import Path

import click

from hetserve.errors import ReplayError

from .console import Screen


@click.command()
@click.argument("journal", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(journal: Path, as_json: bool) -> None:
    """Run the engine's journal JOURNAL again and compare every decision."""
    from hetserve.control.controller import Controller
    from hetserve.control.journal import read_head
    from hetserve.drive import drive
    from hetserve.sim.replay import ReplayExecutor
    from hetserve.systems import policies_for

    screen = Screen(as_json)
    try:
        with journal.open("rb") as file, screen.progress("replaying") as advance:
            head, entries = read_head(file.read)
            executor = ReplayExecutor((entry.event, entry.commands) for entry in entries)
            controller = Controller(head.config, policies_for(head.config.system, head.config.online))
            drive(controller, executor, lambda event, commands: advance())
    except OSError as error:
        raise ReplayError(f"the journal {str(journal)!r} cannot be read: {error.strerror}") from None
    controller.check()
    facts = {"events": executor.events_seen, "commands": executor.commands_seen, "plan": head.plan, "counts": controller.counts()}
    screen.json(facts)
    screen.say(f"{facts['events']:,} events, {facts['commands']:,} commands: every decision as recorded (plan {head.plan})")
