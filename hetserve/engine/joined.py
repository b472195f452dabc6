"""A worker that joins an engine on another machine: knocks, learns what it is to be, and serves steps like any other until the connection ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import zmq

from hetserve.engine.join import Knock, is_cut, knock, split_address, watch
from hetserve.engine.keys import unlock
from hetserve.engine.process import run
from hetserve.errors import WorkerError
from hetserve.spec.cluster import Host
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.load import load_model


def own_address(engine: str) -> str:
    """The address of the interface by which HOST:PORT is reached; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(split_address(engine, "--join"))
        except OSError as error:
            raise WorkerError(f"{engine} cannot be reached: {error}") from None
        return str(probe.getsockname()[0])


def serve_joined(engine: str, token: bytes, device: str, model_folder: str, address: str, host: Host, say: Callable[[str], None]) -> int:
    """Joins as `device` and serves until the engine stops or is gone.

    Args:
        engine: HOST:PORT of its door.
        model_folder: the model on this machine; empty: the same path as on the engine's.
        address: where peers reach this worker; empty: the interface by which the engine is reached.
        host: this machine.
        say: is told how far it is.

    Returns: the exit code.

    Raises:
        ModelError, UnsupportedError: `model_folder` is no model, or none for us.
        WorkerError: nobody answers, the engine refuses (another model, or not the cores that the device has in the cluster file), or it went away.
    """
    model = model_fingerprint(load_model(model_folder)) if model_folder else ""
    answer = knock(engine, token, Knock(device, address or own_address(engine), host.isa, host.cores, model))
    assert answer.config is not None
    config = replace(answer.config, model_folder=model_folder) if model_folder else answer.config
    say(f"joined {engine} as {device!r}; loading")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PULL) as steps, context.socket(zmq.PUSH) as results:
        for one, url in ((steps, answer.steps_url), (results, answer.results_url)):
            unlock(one, token)
            one.setsockopt(zmq.RECONNECT_IVL, -1)  # an engine that is gone does not come back as the same
            monitor = watch(one)
            one.connect(url)
        alive = True

        def wanted() -> bool:
            nonlocal alive
            alive = alive and not is_cut(monitor)
            return alive

        code = run(config, wanted, steps, results)
    context.destroy()  # the monitors too
    if not alive:
        raise WorkerError(f"the connection to the engine at {engine} ended")
    return code
