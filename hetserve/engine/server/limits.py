"""Every limit the server holds clients to. All are flags of `hetserve serve`; none is hidden elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one client, one request and one connection may take."""

    body_bytes: int = 4 << 20  # larger: 413, without reading it
    prompt_tokens: int = 0  # 0: whatever the model's length leaves room for
    prompts: int = 256  # of one request
    n: int = 32  # choices of one prompt
    logprobs: int = 20  # most likely tokens reported beside each token
    stop: int = 16  # stop strings of one request
    stop_chars: int = 256  # of one stop string
    stop_token_ids: int = 64
    stream_buffer_bytes: int = 1 << 20  # text a streaming client may leave unread before its stream is cut
    connections: int = 4096  # open at once; more are answered 503 and closed
    head_bytes: int = 64 << 10  # request line and headers
    receive_s: float = 60.0  # for a whole request to arrive, from its first byte (or from connecting)
    idle_s: float = 30.0  # a connection may stay open between requests
    send_s: float = 60.0  # for a client to take the rest of an answer that is complete
    drain_s: float = 30.0  # for running requests to finish once the server has been told to stop
    retry_after_s: int = 1  # what a client that came too many is told to wait
