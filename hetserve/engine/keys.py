"""One shared secret for an engine and the workers that join it: connections between them are encrypted, and only holders of the secret get in.

CurveZMQ with a server key derived from the secret: whoever does not know it cannot even begin a conversation. It covers steps and results, not
the workers' own exchange of tensors, which needs a private network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import zmq
from zmq.utils import z85

from hetserve.errors import UsageError

LEAST_CHARS = 16


def read_token(path: Path) -> bytes:
    """The secret in a file.

    Raises:
        UsageError: the file cannot be read, or what it holds is too short to be a secret.
    """
    hint = f"`openssl rand -hex 32 > {path}` makes one; every machine needs the same"
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"the token file {str(path)!r} cannot be read: {error.strerror}", hint) from None
    if len(token) < LEAST_CHARS:
        raise UsageError(f"the token file {str(path)!r} holds {len(token)} characters; a secret has at least {LEAST_CHARS}", hint)
    return token


def lock(socket: zmq.Socket[bytes], token: bytes) -> None:
    """Makes a socket that will be bound answer only to those who know the token."""
    socket.curve_secretkey = _secret(token)
    socket.curve_server = True


def unlock(socket: zmq.Socket[bytes], token: bytes) -> None:
    """Makes a socket that will be connected speak to one that was locked with the same token."""
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = zmq.curve_public(_secret(token))


def _secret(token: bytes) -> bytes:
    return z85.encode(hashlib.sha256(b"hetserve worker\0" + token).digest())
