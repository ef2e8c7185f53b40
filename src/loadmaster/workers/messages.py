"""The messages on the pipe between the engine's process and a worker. Plain data, pickled.

    to a worker     Job, then for each request Begin, Step …, End
    from a worker   Progress …, Ready; Begun or Refused, Stepped …; Failed at any time

``request`` is the request's number: replies to a cancelled request are dropped by it. Nothing but these messages is
unpickled anywhere: the pipe has no name, and only these two processes have an end of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.errors import LoadmasterError
from loadmaster.workers.sampling_params import SamplingParams


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
    """The stage is loaded and built."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A request begins: allocate a KV cache for ``num_positions`` tokens, prompt and answer together."""

    request: int
    num_positions: int
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Begun:
    """The KV cache is allocated."""

    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """There is not enough memory for the KV cache. The worker keeps running."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """Compute ``num_tokens`` tokens from position ``first``. ``token_ids`` is None for all stages but the first.

    ``sample``: the last stage samples the next token.
    """

    request: int
    first: int
    num_tokens: int
    token_ids: tuple[int, ...] | None
    sample: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """The last stage has computed a step. ``token`` is the sampled token, or None if the step did not ask for one."""

    request: int
    token: int | None


@dataclass(frozen=True, slots=True)
class End:
    """The request is over: free its KV cache."""

    request: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends with ``error``. If not ``is_cause``, the error is only that a neighbouring stage has ended."""

    error: LoadmasterError
    is_cause: bool
