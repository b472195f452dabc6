"""`hetserve serve`: one model behind an OpenAI-compatible HTTP API, by a plan file or a uniform plan. Flags as vLLM's where it has them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.engine.server.limits import Limits
from hetserve.errors import UsageError

from .plan_options import plan_of, plan_options
from .worker import far_options, require_built

if TYPE_CHECKING:
    from hetserve.engine.engine import Engine
    from hetserve.spec.model import ModelSpec
    from hetserve.spec.plan import Plan

    from .console import Screen

STOPPED_EARLY = 130  # a signal came before there was anything to drain

_file = click.Path(dir_okay=False, path_type=Path)
_count = click.IntRange(1)
_seconds = click.FloatRange(0, min_open=True)


def _limit(flag: str, field: str, kind: click.ParamType, what: str) -> Any:
    """A flag for one of `Limits`, with the default from there."""
    default = getattr(Limits, field)
    shown = {"prompt_tokens": "what the model takes"}.get(field, True)
    return click.option(flag, field, type=kind, default=default, show_default=shown, help=what)


@click.command()
@click.argument("model")
@click.option("--plan", type=_file, help="A plan file (`hetserve plan`)  [default: the uniform plan for --cluster]")
@plan_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Anything but loopback lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--served-model-name", multiple=True, help="The model's name in requests; may be given several times  [default: the folder's name]")
@click.option("--api-key", multiple=True, envvar="HETSERVE_API_KEY", help="Only requests with this key are served (also $HETSERVE_API_KEY).")
@click.option("--timeline", type=_file, help="Write the whole run there as a Chrome trace (chrome://tracing, Perfetto), once it has stopped.")
@click.option("--live", is_flag=True, help="Show placement, cache and load of each device (on a terminal).")
@click.option("--journal", type=_file, help="Record every event and command there, for `hetserve replay`.")
@click.option("--join-address", metavar="HOST:PORT", help="Let workers of other nodes in there (`hetserve worker --join HOST:PORT`).")
@click.option("--token", type=_file, help="A file with the secret that those workers have too.")
@far_options
@_limit("--max-body-bytes", "body_bytes", _count, "Larger request bodies are answered 413.")
@_limit("--max-prompt-tokens", "prompt_tokens", click.IntRange(0), "Longer prompts are refused.")
@_limit("--max-prompts", "prompts", _count, "Prompts in one request.")
@_limit("--max-n", "n", _count, "Choices of one prompt.")
@_limit("--max-logprobs", "logprobs", click.IntRange(0), "Most likely tokens reported beside each token.")
@_limit("--max-stop", "stop", click.IntRange(0), "Stop strings in one request.")
@_limit("--max-stop-chars", "stop_chars", _count, "Characters of one stop string.")
@_limit("--stream-buffer-bytes", "stream_buffer_bytes", _count, "What a client may leave unread before its stream is cut.")
@_limit("--max-connections", "connections", _count, "Connections open at once; more are answered 503.")
@_limit("--receive-timeout", "receive_s", _seconds, "Seconds a request may take to arrive.")
@_limit("--idle-timeout", "idle_s", _seconds, "Seconds a connection may stay open between requests.")
@_limit("--drain-timeout", "drain_s", click.FloatRange(0), "Seconds running requests get to finish after SIGTERM.")
@click.option("--json", "as_json", is_flag=True, help="Say where the server is as one JSON object.")
def serve(model: str, **given: Any) -> int:
    """Serve MODEL, a Hugging Face folder, over an OpenAI-compatible HTTP API.

    SIGTERM or Ctrl-C stops accepting and lets running requests finish; a second one stops at once.
    """
    from hetserve.engine.server import run
    from hetserve.spec.load import load_model

    from .console import Screen

    screen = Screen(given["as_json"])
    require_built(given["transport"], given["placement"])
    folder = Path(model)
    if not all(given["api_key"]):
        raise UsageError("--api-key is empty", "leave it out to serve everybody")
    bound = run.bind(given["host"], given["port"])  # before anything slow: a port in use is said at once
    spec = load_model(folder)
    plan = _plan(spec, given)
    limits = _limits(given, run.allow_connections)
    names = given["served_model_name"] or (folder.resolve().name,)
    if not run.is_loopback(bound):
        keyed = "" if given["api_key"] else ", and without --api-key anybody who reaches it is served"
        screen.note(f"warning: {given['host']} can be reached from other machines{keyed}; the connection is not encrypted")
    os.sched_setaffinity(0, plan.cluster.control_cores)
    return asyncio.Runner(loop_factory=run.event_loop_factory()).run(_serve(screen, folder, plan, bound, limits, names, given))


async def _serve(screen: Screen, folder: Path, plan: Plan, bound: Any, limits: Limits, names: tuple[str, ...], given: dict[str, Any]) -> int:
    from hetserve.engine.engine import Engine
    from hetserve.engine.server import run
    from hetserve.engine.server.app import create_app
    from hetserve.engine.tokenizer import load_tokenizer

    door = _door(given, screen, plan)
    engine = Engine(plan, folder, given["journal"], timeline=given["timeline"], door=door, on_lost=partial(_say_lost, screen, plan))
    screen.note(f"loading {folder} ...")
    loading = asyncio.get_running_loop().run_in_executor(None, load_tokenizer, folder)  # beside the workers, which load the weights
    tokenizer = None
    try:
        await run.start(engine)
        try:
            tokenizer = await loading
            app, service = create_app(engine, tokenizer, limits, names, given["api_key"])
            with screen.live() if given["live"] else nullcontext() as show:
                watching = asyncio.ensure_future(_watch(engine, plan.system, show)) if show else None
                try:
                    await run.serve(app, service, bound, lambda: _say_ready(screen, plan, run.url_of(bound), names[0]))
                finally:
                    if watching is not None:
                        watching.cancel()
        finally:
            await run.close(engine)
        return 0
    except asyncio.CancelledError:
        return STOPPED_EARLY
    finally:
        if tokenizer is not None:
            tokenizer.close()


def _door(given: dict[str, Any], screen: Screen, plan: Plan) -> Any:
    """Where workers of other nodes join; None: nowhere."""
    if given["join_address"] is None and given["token"] is None:
        return None
    if given["join_address"] is None or given["token"] is None:
        raise UsageError("--join-address and --token belong together")
    from hetserve.engine.channel import joining_devices
    from hetserve.engine.join import Door
    from hetserve.engine.keys import read_token

    joining = joining_devices(plan)
    if not joining:
        screen.note(f"the plan uses no device of another node: nobody will be let in at {given['join_address']}")
    door = Door(given["join_address"], read_token(given["token"]))
    for device in joining:
        screen.note(f"waiting for: hetserve worker --join {given['join_address']} --token FILE --device {device} --model FOLDER")
    return door


async def _watch(engine: Engine, title: str, show: Callable[[Any], None]) -> None:
    """Draws the live view until it is cancelled."""
    from .live import PERIOD_S, View, of_engine

    view = View()
    while True:
        show(view.table(title, of_engine(engine)))
        await asyncio.sleep(PERIOD_S)


def _say_lost(screen: Screen, plan: Plan, device: str, reason: str) -> None:
    primary = any(device in stage.primary for group in plan.groups for stage in group.stages)
    after = "its group serves no more" if primary else "requests with heads there are computed again, the others go on"
    screen.note(f"warning: device {device!r} was lost: {reason}; {after}")


def _say_ready(screen: Screen, plan: Plan, url: str, name: str) -> None:
    most, dtype = plan.limits.max_model_len, plan.model.dtype
    screen.say(f"{name} is served on {url} ({dtype}, up to {most:,} tokens, cluster {plan.cluster.name})")
    screen.json({"url": url, "model": name, "pid": os.getpid(), "dtype": dtype, "max_model_len": most, "plan": plan.hash})
    screen.out.file.flush()


def _plan(spec: ModelSpec, given: dict[str, Any]) -> Plan:
    """The plan from its file, or made here."""
    from hetserve.spec.cluster import require_cores
    from hetserve.spec.load import load_plan, this_host

    if given["plan"] is None:
        plan = plan_of(spec, given)
    else:
        plan = load_plan(given["plan"])
        _require_agreement(plan, given)
    require_cores(plan.cluster, this_host())
    return plan


def _require_agreement(plan: Plan, given: dict[str, Any]) -> None:
    """Raises UsageError for flags that contradict the plan."""
    from hetserve.spec.cluster import parse_bytes

    for name in ("profile", "delta", "heads", "theta", "workload", "mean_input_len", "mean_output_len", "mean_concurrency"):
        if given[name] is not None:
            raise UsageError(f"--plan is made already, so --{name.replace('_', '-')} cannot be given too", "make another plan")
    kv_bytes = parse_bytes(given["kv_memory"], "--kv-memory") if given["kv_memory"] else 0
    if given["cluster"] is not None:
        raise UsageError("--plan names its cluster already, so --cluster cannot be given too")
    planned = {
        "system": plan.system,
        "dtype": plan.model.dtype,
        "max_model_len": plan.limits.max_model_len,
        "max_num_seqs": plan.limits.max_seqs,
        "max_num_batched_tokens": plan.limits.max_step_tokens,
        "steps_in_flight": plan.limits.steps_in_flight,
        "max_waiting": plan.limits.max_waiting,
    }
    for name, value in planned.items():
        if given[name] not in (None, "auto", value):
            raise UsageError(
                f"--{name.replace('_', '-')} {given[name]} contradicts the plan, which says {value}", "leave the flag out, or make another plan"
            )
    pools_bytes = sum(pool.pages * pool.page_bytes for group in plan.groups for stage in group.stages for pool in stage.pools)
    if kv_bytes and pools_bytes > kv_bytes:
        raise UsageError(
            f"--kv-memory {given['kv_memory']} is less than the plan's KV pools, {pools_bytes} bytes", "leave the flag out, or make another plan"
        )


def _limits(given: dict[str, Any], allow_connections: Any) -> Limits:
    from dataclasses import fields, replace

    wanted = Limits(**{field.name: given[field.name] for field in fields(Limits) if field.name in given})
    return replace(wanted, connections=allow_connections(wanted.connections))
