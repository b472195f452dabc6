"""The group of commands: instant help, errors as a sentence with a hint and an exit code, refusals, no terminal needed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import types

import click
import pytest

from hetserve import errors
from hetserve.cli import main as cli

HEAVY = ("torch", "transformers", "numpy", "rich", "fastapi", "pandas")

COUNT_HEAVY = f"""
import sys, time
from hetserve.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
print("cpu_s:", time.process_time(), file=sys.stderr)
"""

SLEEPER = """
import signal, sys, time, types, click
from hetserve.cli import main as cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has SIGINT ignored

@click.command()
def sleep():
    print("asleep", flush=True)
    time.sleep(60)

cli.COMMANDS["sleep"] = "Sleep."
sys.modules["hetserve.cli.sleep"] = types.SimpleNamespace(sleep=sleep)
cli.main(["sleep"])
"""


def said(done: subprocess.CompletedProcess[str], key: str) -> str:
    return next(line.partition(": ")[2] for line in done.stderr.splitlines() if line.startswith(key))


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_HEAVY, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert said(done, "heavy") == "[]"
    assert float(said(done, "cpu_s")) < 0.5


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_every_command_works_without_torch(command: str) -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_HEAVY, command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: hetserve {command}")
    assert "torch" not in said(done, "heavy") and "transformers" not in said(done, "heavy")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_listed_exists_and_explains_itself(command: str) -> None:
    found = cli.hetserve.get_command(click.Context(cli.hetserve), command)
    assert found is not None and found.name == command and found.help


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["benhc"], "Did you mean 'bench'?"),
        (["zzz"], "There is no command 'zzz'."),
        (["doctor", "--jsn"], "--json"),
        (["--verion"], "--version"),
        (["model", "shwo", "x"], "shwo"),
    ],
)
def test_a_slip_of_the_fingers_is_a_usage_error(run, args: list[str], expected: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert "hint: `hetserve" in done.stderr and "Traceback" not in done.stderr


def test_no_arguments_show_the_help(run) -> None:
    done = run()
    assert done.returncode == 2 and done.stdout.startswith("Usage: hetserve")


def test_version(run) -> None:
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("hetserve 0.")


# ------------------------------------------------------------------------------------------- errors of a made-up command


@pytest.fixture
def failing(monkeypatch):
    """failing(error) -> the exit code of a command that raises it."""

    def go(error: BaseException, *args: str) -> object:
        @click.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(cli.COMMANDS, "fail", "Fail.")
        monkeypatch.setitem(sys.modules, "hetserve.cli.fail", types.SimpleNamespace(fail=fail))
        with pytest.raises(SystemExit) as left:
            cli.main([*args, "fail"])
        return left.value.code

    return go


USER_ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HetserveError)]


@pytest.mark.parametrize("kind", USER_ERRORS)
def test_a_user_error_is_one_sentence_a_hint_and_its_exit_code(failing, capsys, kind) -> None:
    assert failing(kind("Expected 3 pages, got [red]4[/red].", hint="try fewer")) == kind.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: Expected 3 pages, got [red]4[/red].\nhint: try fewer\n")


def test_exit_codes_tell_the_errors_apart() -> None:
    codes = [kind.exit_code for kind in USER_ERRORS]
    assert len(USER_ERRORS) > 5 and len(set(codes)) == len(codes) and 0 not in codes


def test_no_hint_no_hint_line(failing, capsys) -> None:
    failing(errors.ModelError("No model."))
    assert capsys.readouterr().err == "error: No model.\n"


def test_an_unexpected_error_is_short_unless_debugged(failing, capsys, monkeypatch) -> None:
    assert failing(RuntimeError("boom")) == cli.UNEXPECTED
    err = capsys.readouterr().err
    assert "unexpected RuntimeError: boom" in err and "--debug" in err and "Traceback" not in err
    assert failing(RuntimeError("boom"), "--debug") == cli.UNEXPECTED
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("HETSERVE_DEBUG", "1")
    failing(RuntimeError("boom"))
    assert "Traceback" in capsys.readouterr().err


def test_the_machines_own_errors_are_not_called_a_fault_of_ours(failing, capsys) -> None:
    assert failing(PermissionError(13, "Permission denied", "/etc/plan.json")) == errors.ResourceError.exit_code
    assert capsys.readouterr().err == "error: Permission denied (/etc/plan.json)\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (click.Abort(), 130), (SystemExit(3), 3)])
def test_interruptions_keep_the_shells_codes(failing, error: BaseException, code: int) -> None:
    assert failing(error) == code


def test_control_c_is_130_and_quiet() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "hetserve.cli.main", "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert done.returncode == cli.PIPE_CLOSED
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------- with and without colour


def test_without_a_terminal_nothing_is_coloured(run) -> None:
    done = run("doctor", "--quick")
    assert "\x1b" not in done.stdout + done.stderr
    assert "cores" in done.stdout


@pytest.mark.parametrize("no_color", [True, False])
def test_colour_on_a_terminal_unless_no_color(no_color: bool) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150"}
    environment = environment | {"NO_COLOR": "1"} if no_color else {key: value for key, value in environment.items() if key != "NO_COLOR"}
    script = "from hetserve.cli.console import Screen; Screen().table('t', ['a'], [['b']]); Screen().say('coloured', style='red')"
    subprocess.run([sys.executable, "-c", script], stdout=follower, stderr=follower, stdin=follower, env=environment, check=True)
    os.close(follower)
    text = os.read(leader, 65536).decode()
    os.close(leader)
    assert "╭" in text and "coloured" in text
    assert ("\x1b[31m" in text) is not no_color
