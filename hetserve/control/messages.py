"""Everything the controller hears (events) and says (commands). Frozen data, no behaviour, no tensors.

Events are facts and carry `at_s` (the executor's clock, seconds) and `seq` (the executor's event number): the controller knows no other time.
Commands are orders to whichever executor drives the controller: the engine, the simulator or a replay.
Arrays are numpy and must not be written to after a message is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32s: TypeAlias = NDArray[np.int32]

NO_INTS: Int32s = np.zeros(0, np.int32)
NO_INTS.setflags(write=False)
NO_PAGES: Int32s = np.zeros((0, 0), np.int32)
NO_PAGES.setflags(write=False)
ANY_RANK = -1  # an attention worker's: it holds head groups of every rank


# ---------------------------------------------------------------------------------------------------- what is served


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen. The random number of a token is a function of (seed, choice, position) only."""

    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    seed: int = 0
    logprobs: int = -1  # -1 none; k >= 0: the sampled token's and the k most likely tokens' log-probabilities


@dataclass(frozen=True)
class Request:
    """One request, before anybody knows how long its answers will be."""

    id: int
    prompt: Int32s  # [prompt_tokens]
    max_tokens: int  # per choice, >= 1
    n: int = 1  # choices; they share the prompt's full pages
    stop_token_ids: tuple[int, ...] = ()  # the model's end-of-sequence ids included, unless the request ignores them
    min_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)


# ------------------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True)
class Arrived:
    at_s: float
    seq: int
    request: Request


@dataclass(frozen=True)
class Cancelled:
    """The client went away; nothing more is wanted of this request."""

    at_s: float
    seq: int
    request: int


@dataclass(frozen=True)
class Stopped:
    """The server found a stop string: choice `choice` ends after `at_token` generated tokens."""

    at_s: float
    seq: int
    request: int
    choice: int
    at_token: int


@dataclass(frozen=True)
class StepDone:
    """A step's sampled tokens, in the step's sampling order: standing decode slots ascending, then the chunks that sample, in chunk order."""

    at_s: float
    seq: int
    step: int
    group: int
    tokens: Int32s  # [sampled]
    step_s: float  # how long the step ran on the device


@dataclass(frozen=True)
class MoveDone:
    at_s: float
    seq: int
    move: int
    ok: bool


@dataclass(frozen=True)
class WorkerLost:
    at_s: float
    seq: int
    device: str
    reason: str


@dataclass(frozen=True)
class WorkerJoined:
    at_s: float
    seq: int
    device: str


@dataclass(frozen=True)
class Woke:
    at_s: float
    seq: int


Event: TypeAlias = Arrived | Cancelled | Stopped | StepDone | MoveDone | WorkerLost | WorkerJoined | Woke


# ---------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Start:
    """A sequence (one choice of one request) enters slot `slot` of a group: first time, or again after preemption. Its lanes are the primaries'."""

    slot: int
    request: int
    choice: int
    tokens: Int32s  # [known] prompt, then what was generated before a preemption
    prompt_tokens: int
    cached_tokens: int  # leading tokens whose KV already lies in (shared) pages granted in the same step
    sampling: Sampling


@dataclass(frozen=True)
class Replace:
    """From this step on, some head groups of a running sequence lie in other pools: their KV has been moved there."""

    slot: int
    lanes: Int32s  # [l]
    pools: Int32s  # [l]
    pages: Int32s  # [l, rows] all pages of each lane


@dataclass(frozen=True)
class RunStep:
    """One forward pass of a group, as changes to what its workers already hold. Applied in the order of the fields.

    Every worker of the group gets the same message. A *lane* is stage * kv_heads + kv_head: one head group in one stage's layers. The group's pools
    are numbered stage by stage, in the plan's order: the primaries' first, one per tensor-parallel rank, then the attention workers'.

    The workers keep a *standing* set of decoding slots: each takes one token (its last sampled) and samples one token per step.
    Chunks are pieces of known tokens (prompt, or recomputed) of other slots; a chunk that reaches the last known token samples, and its slot
    usually joins the standing set in the next step.
    """

    step: int
    group: int
    ends: Int32s  # [e] slots given up: the workers forget them (and they leave the standing set)
    starts: tuple[Start, ...]
    replaces: tuple[Replace, ...]
    grant_slots: Int32s  # [k] page grants: slot ...
    grant_index: Int32s  # [k] ... its page number (token position // page_tokens) ...
    grant_pages: Int32s  # [k, lanes] ... and the page id of each lane, in the pool that holds it
    leaves: Int32s  # [l] slots that leave the standing set but stay in their slot
    joins: Int32s  # [j] slots that join the standing set
    chunk_slots: Int32s  # [c]
    chunk_tokens: Int32s  # [c] how many known tokens each chunk takes
    chunk_samples: Int32s  # [c] 1: the chunk ends at the last known token and samples
    predicted_s: float  # the cost model's step time; the watchdog allows 10 times this, at least 5 s


@dataclass(frozen=True)
class Tokens:
    """New tokens of one step, one per sequence, for whoever is listening. Never includes tokens past a stop."""

    step: int
    requests: tuple[int, ...]
    choices: tuple[int, ...]
    tokens: tuple[int, ...]
    rows: tuple[int, ...]  # each token's place in the step's sampling order (where the executor kept its log-probabilities)


@dataclass(frozen=True)
class Finish:
    """A choice is complete. `reason`: "stop" (token or string), "length", "abort" (cancelled), "error" (`why` says)."""

    request: int
    choice: int
    reason: str
    tokens: int  # how many tokens it generated
    why: str = ""


@dataclass(frozen=True)
class Reject:
    """The request can never be served here (or not now: `retry`); nothing was started."""

    request: int
    why: str
    retry: bool = False


@dataclass(frozen=True)
class Place:
    """A pool: the number of a group, and of a pool within it."""

    group: int
    pool: int
    tp_rank: int = ANY_RANK  # which of its stage's tensor-parallel ranks it is the primary of: it holds no other rank's head groups


@dataclass(frozen=True)
class MoveKv:
    """Copy KV pages of some head groups from one pool to another (Hetis's Hauler, HexGen-2's KV transfer). In the background, at low priority.

    The pages do not change meanwhile, and neither side's are given to anybody else before MoveDone. With a `step`, that step of the source's
    group writes them, and is sent right after this: each layer is copied once the step has passed it.
    """

    move: int
    request: int
    choice: int
    layers: tuple[int, int]  # [first, last), of the model; both pools hold them
    heads: Int32s  # [h] KV heads, for people
    pages_from: Int32s  # [h, pages]
    pages_to: Int32s  # [h, pages]
    source: Place
    target: Place
    step: int = -1  # the step that writes the pages' last tokens; -1: they are written


@dataclass(frozen=True)
class WakeAt:
    at_s: float


Command: TypeAlias = RunStep | Tokens | Finish | Reject | MoveKv | WakeAt
