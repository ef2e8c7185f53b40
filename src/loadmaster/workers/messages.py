"""The messages on the pipe between the engine's process and a worker. Plain data, pickled.

    to a worker     Job, Allocate, then Batch …, Report at any time between them
    from a worker   Progress …, Ready, Allocated, Done … (from the last stage), Usage …, Reported; Failed at any time

Nothing but these messages is unpickled anywhere: the pipe has no name, and only these two processes have an end of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.errors import LoadmasterError


@dataclass(frozen=True, slots=True)
class Job:
    """A worker's first message: its stage, and how to build it. ``builder`` is ``module:name``, see `workers.builder`.

    ``device`` is ``cpu`` or ``cuda``. ``previous`` and ``following`` are file descriptors that the worker has inherited:
    its sockets to the stages before and after it.
    """

    stage: int
    num_stages: int
    num_threads: int
    builder: str
    plan: bytes
    device: str = "cpu"
    previous: int | None = None
    following: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of the plan that were loaded since the last `Progress`."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The stage is loaded and built. Its KV cache will take ``token_bytes`` for each token; ``free_bytes`` are available."""

    token_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Allocate:
    """Allocate the KV cache: the same number of pages, of ``page_size`` tokens each, on every worker.

    ``end_token_ids`` are the model's end tokens, which the sampler needs. ``num_speculative_tokens``: how many tokens the
    draft model proposes.
    """

    num_pages: int
    page_size: int
    end_token_ids: tuple[int, ...] = ()
    num_speculative_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Allocated:
    """The KV cache is allocated."""


@dataclass(frozen=True, slots=True)
class Report:
    """Answer with `Reported`, between two batches."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a stage has spent its time since it was ready, in seconds, and how many batches and tokens it has computed.

    ``input_s``: waiting for the previous stage. ``engine_s``: waiting for a batch.
    """

    stage: int
    busy_s: float = 0.0
    input_s: float = 0.0
    engine_s: float = 0.0
    num_batches: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """How the stage has spent its time when it got a `Report`."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends with ``error``. If not ``is_cause``, the error is only that a neighbouring stage has ended."""

    error: LoadmasterError
    is_cause: bool
