"""What goes over the pipe between the engine's process and a worker. Plain data, pickled.

    to a worker     Job, then for each request Begin, Step …, End
    from a worker   Progress …, Ready; Begun or Refused, Stepped …; Failed at any time

``request`` numbers the requests, so that answers to one that was given up are told from those to the next. The pipe is
the only place where anything is unpickled: it has no name, and only the two processes have an end of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.errors import LoadmasterError
from loadmaster.workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is: its stage, and what to build it from. ``builder`` is ``module:name``, see `runtime.builder`.

    ``device`` is ``cpu`` or ``cuda``: the host's GPUs, dealt out to the stages in turns. ``previous`` and ``following``
    are file descriptors that the worker has inherited: of its sockets to the stages before and after it.
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
    """Bytes of the plan that are done since the last such message."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The stage is loaded and built."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A request begins: make a cache for ``num_positions`` tokens, prompt and answer together."""

    request: int
    num_positions: int
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Begun:
    """The cache is there."""

    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no memory for the cache; the worker goes on."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """Compute ``num_tokens`` tokens from position ``first``. Only the first stage is given their ids.

    ``sample``: the last stage chooses the token that follows.
    """

    request: int
    first: int
    num_tokens: int
    token_ids: tuple[int, ...] | None
    sample: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """The last stage has done a step; ``token`` is the one chosen, None if none was asked for."""

    request: int
    token: int | None


@dataclass(frozen=True, slots=True)
class End:
    """The request is over: its cache may go."""

    request: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends with ``error``. Without ``is_cause`` it only noticed that a neighbour has gone."""

    error: LoadmasterError
    is_cause: bool
