"""What ``/status`` answers: the state of the server as numbers, for the page at ``/`` and for scripts.

Counts and times only grow, so that two answers give the rates. Nothing of a prompt or an answer is in it, and no
client's address. Taking a snapshot waits for nothing.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final

from pydantic import BaseModel

from loadmaster import __version__
from loadmaster.server.records import Record
from loadmaster.server.service import Service, State

NUM_REQUESTS: Final = 20
"""The most requests under ``recent``."""


class Rank(BaseModel):
    """How much of its bytes a rank has loaded."""

    rank: int
    stage: int
    loaded_bytes: int
    total_bytes: int


class Loading(BaseModel):
    """How much is loaded, of all ranks together and of each."""

    loaded_bytes: int
    total_bytes: int
    ranks: list[Rank]


class Model(BaseModel):
    """The model: the names that requests may use, its longest request in tokens, and what text it takes."""

    names: list[str]
    max_model_len: int
    has_tokenizer: bool
    has_chat_template: bool


class Requests(BaseModel):
    """Requests in the engine now, the most that are computed at a time, and those that were submitted since the start."""

    running: int
    waiting: int
    max_num_seqs: int
    total: int


class Cache(BaseModel):
    """The pages of the KV cache, each of ``page_tokens`` tokens."""

    pages: int
    used_pages: int
    most_used_pages: int
    page_tokens: int


class Counts(BaseModel):
    """Tokens and preemptions since the start. ``cached_tokens`` of the ``prompt_tokens`` were in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int


class Usage(BaseModel):
    """How a rank has spent its time since it was ready, in seconds. It reports twice a second while it computes."""

    rank: int
    stage: int
    busy_s: float
    input_s: float
    engine_s: float
    num_batches: int
    num_tokens: int


class EngineNumbers(BaseModel):
    """What the engine does."""

    requests: Requests
    kv_cache: Cache
    counters: Counts
    stages: list[Usage]


class Recent(BaseModel):
    """A request that is over. Times are in seconds, and null if they were not reached."""

    id: str
    outcome: str
    is_error: bool
    prompt_tokens: int
    output_tokens: int
    queue_s: float | None
    first_token_s: float | None
    per_token_s: float | None


class Status(BaseModel):
    """The answer of ``/status``.

    Without a valid API key, where one is required, it has nothing but the state and the bytes that are loaded. ``loading`` is
    null once the model is loaded, and ``engine`` until then. ``recent`` begins with the last request.
    """

    status: State
    version: str | None = None
    uptime_s: float
    error: str | None = None
    requires_key: bool
    authorized: bool
    loading: Loading | None = None
    model: Model | None = None
    engine: EngineNumbers | None = None
    recent: list[Recent] = []


def take_status(service: Service, *, started: float, requires_key: bool, authorized: bool) -> Status:
    """Return the state now. ``started`` is when the server started, in seconds of `time.monotonic`."""
    state = service.state
    status = Status(
        status=state,
        uptime_s=time.monotonic() - started,
        error=None if service.failed is None else str(service.failed),
        requires_key=requires_key,
        authorized=authorized,
    )
    if state == "loading":
        now = service.engine.loading()
        ranks = [Rank(**dataclasses.asdict(rank)) for rank in now.ranks]
        status.loading = Loading(loaded_bytes=now.loaded_bytes, total_bytes=now.total_bytes, ranks=ranks)
    if not authorized:
        return status
    status.version = __version__
    status.model = Model(
        names=list(service.names),
        max_model_len=service.engine.max_model_len,
        has_tokenizer=service.tokenizer.exists,
        has_chat_template=service.tokenizer.has_chat_template,
    )
    if state != "loading":
        status.engine = _engine(service)
    status.recent = [_recent(record) for record in list(service.records.recent_posts)[: -NUM_REQUESTS - 1 : -1]]
    return status


def _engine(service: Service) -> EngineNumbers:
    now, capacity = service.engine.statistics(), service.engine.capacity
    return EngineNumbers(
        requests=Requests(
            running=now.num_running,
            waiting=now.num_waiting,
            max_num_seqs=capacity.max_num_seqs,
            total=service.num_requests,
        ),
        kv_cache=Cache(
            pages=now.num_pages,
            used_pages=now.num_used_pages,
            most_used_pages=now.most_used_pages,
            page_tokens=capacity.block_size,
        ),
        counters=Counts(**_fields(now.counters, Counts)),
        stages=[Usage(**_fields(usage, Usage)) for usage in now.stages],
    )


def _fields(values: object, kind: type[BaseModel]) -> dict[str, Any]:
    return {name: getattr(values, name) for name in kind.model_fields}


def _recent(record: Record) -> Recent:
    return Recent(
        id=record.id,
        outcome=record.outcome or "",
        is_error=record.outcome in ("failed", "refused", "timed out"),
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        queue_s=record.queue_s,
        first_token_s=record.first_token_s,
        per_token_s=record.per_token_s,
    )
