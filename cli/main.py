"""`hetserve`: the group all commands hang on. A command's file is imported only when that command is asked for, so `--help` is instant.

A command is `cli/<name>.py` with a click command called `<name>`, and one line in COMMANDS. Errors leave through `main`:
one sentence, a hint, an exit code. A traceback is for us, behind --debug.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback

import click

from hetserve.errors import HetserveError, ResourceError, UsageError

COMMANDS = {
    "bench": "Measure this engine, and a real vLLM beside it with --baseline vllm.",
    "serve": "Serve a model over an OpenAI-compatible HTTP API.",
    "profile": "Measure the devices and links of a cluster for a model.",
    "plan": "Lay a model out over the devices of a cluster: write a plan file.",
    "simulate": "Run a plan on a workload without the devices.",
    "reproduce": "The papers' claims, each beside our number.",
    "replay": "Run an engine's journal again and compare every decision.",
    "model": "Make a random-weight checkpoint, or show what a model folder holds.",
    "cost": "What steps take on GPUs nobody here owns, and how good such numbers are.",
    "cluster": "The clusters that come with hetserve, and others drawn at random.",
    "workload": "Fetch public traces and profiles from where they were published.",
    "baseline": "Install and check the real systems we are compared with.",
    "worker": "Lend a device of this machine to an engine on another one.",
    "doctor": "What this machine has, and what hetserve will use of it.",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 1  # `hetserve ... | head`, as click has it
UNEXPECTED = 70  # EX_SOFTWARE: a fault of ours


class Commands(click.Group):
    """A click group that knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _load(name) if name in COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or name in self.list_commands(ctx):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
        raise click.UsageError(f"There is no command '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""), ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _load(name: str) -> click.Command:
    command = getattr(importlib.import_module(f".{name}", __package__), name)
    assert isinstance(command, click.Command), f"cli/{name}.py must define a click command called {name}"
    return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"hetserve {version('hetserve')}")
    except PackageNotFoundError:
        click.echo("hetserve (not installed)")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback behind an error (or set HETSERVE_DEBUG=1).")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def hetserve() -> None:
    """Serve one language model over unlike devices, and prove what that is worth."""
    if (said := os.environ.get("HETSERVE_NET", "")) not in ("", "off"):
        raise UsageError(f"HETSERVE_NET is '{said}', expected off or nothing", hint="off: messages between devices are posted from Python")


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    argv = sys.argv[1:] if args is None else args
    debug = "--debug" in argv[:1] or os.environ.get("HETSERVE_DEBUG", "") not in ("", "0")
    sys.exit(_run(argv, debug))


def _run(argv: list[str], debug: bool) -> int:
    try:
        code = hetserve.main(argv, prog_name="hetserve", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except HetserveError as error:
        return _fail(error.message, error.hint, error.exit_code, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "hetserve"
        return _fail(error.format_message(), f"`{where} --help` shows what it takes", error.exit_code, debug)
    except click.ClickException as error:
        return _fail(error.format_message(), "", error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains again when it flushes at exit
        return PIPE_CLOSED
    except OSError as error:  # a full disk, a read-only folder: the machine's word, not our fault
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", "", ResourceError.exit_code, debug)
    except Exception as error:  # the last line of defence: a user never meets a bare traceback
        said = f"unexpected {type(error).__name__}: {error}"
        return _fail(said, "this is a fault in hetserve; `hetserve --debug COMMAND ...` shows where", UNEXPECTED, debug)


def _fail(message: str, hint: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return code


if __name__ == "__main__":
    main()
