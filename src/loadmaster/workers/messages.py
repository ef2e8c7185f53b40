"""The messages on the pipe between the engine's process and a worker. Plain data; `loadmaster.workers.encoding` encodes them.

    to a worker     Vocabulary at any time; Allocate, then Batch …; Prepare, Drop and Report at any time between them
    from a worker   Progress …, Ready, Allocated, Done … (from the last stage's first rank), Usage …, Reported;
                    Prepared once for each Prepare, also during a batch; Failed at any time

A worker reads its Job from its standard input. On the link to a process that a launcher started (`loadmaster.workers.member`)
pass Failed and Leaving, and at the end Ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.errors import LoadmasterError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands: in one of ``num_stages`` stages, in one of the ``num_slots`` slots (tensor-parallel ranks) of it.

    >>> str(Place(1, 2)), str(Place(1, 2, 1, 2))
    ('stage 1 of 2', 'rank 3 (stage 1 of 2, tensor-parallel rank 1 of 2)')
    """

    stage: int = 0
    num_stages: int = 1
    slot: int = 0
    num_slots: int = 1

    @classmethod
    def of(cls, rank: int, num_stages: int, num_slots: int) -> Place:
        """Return the place of a rank; `loadmaster.parallel.ParallelLayout` numbers them."""
        stage, slot = divmod(rank, num_slots)
        return cls(stage, num_stages, slot, num_slots)

    @property
    def rank(self) -> int:
        """The rank's number."""
        return self.stage * self.num_slots + self.slot

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return self.num_stages * self.num_slots

    @property
    def is_last(self) -> bool:
        """Whether the rank is on the last stage."""
        return self.stage == self.num_stages - 1

    @property
    def stage_ranks(self) -> range:
        """The ranks of the stage."""
        first = self.rank - self.slot
        return range(first, first + self.num_slots)

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The ranks that this one exchanges tensors with: the same slot of the stages around, the other slots of its stage."""
        along = (self.rank - self.num_slots, self.rank + self.num_slots)
        return tuple(r for r in (*along, *self.stage_ranks) if 0 <= r < self.num_ranks and r != self.rank)

    def __str__(self) -> str:
        stage = f"stage {self.stage} of {self.num_stages}"
        if self.num_slots == 1:
            return stage
        return f"rank {self.rank} ({stage}, tensor-parallel rank {self.slot} of {self.num_slots})"


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does: its place, and how to build its stage. ``builder`` is ``module:name``, see `workers.builder`.

    ``device`` is ``cpu`` or ``cuda``. ``previous``, ``following`` and ``peers`` are file descriptors that the worker has
    inherited: its sockets to the same slot of the stages before and after it, and to each other slot of its stage (None in its
    place). ``meeting`` is a path in a private folder where the ranks of a stage meet that use NCCL. ``pulse`` is the file
    descriptor of `loadmaster.workers.pulse`. ``num_local_ranks``: how many ranks share the host's memory and cores.
    ``local_ranks``: the numbers on their host of the ranks of the stage, by slot; each computes on the GPU of that number.
    """

    place: Place
    num_threads: int
    builder: str
    plan: bytes
    device: str = "cpu"
    previous: int | None = None
    following: int | None = None
    peers: tuple[int | None, ...] = (None,)
    meeting: str = ""
    pulse: int | None = None
    num_local_ranks: int = 1
    local_ranks: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of the plan that were loaded since the last `Progress`."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The rank is loaded and built. Its KV cache will take ``token_bytes`` for each token.

    ``free_bytes`` are available to it: of the host's memory, an equal share of all ranks of the host.
    """

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
class Vocabulary:
    """The text of each token, which structured outputs need: the ``tokenizer`` in the format of tokenizer.json, deflated.

    ``num_tokens`` is one more than its largest token id. For the ranks of the last stage.
    """

    tokenizer: bytes
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Compile a grammar (`structured_outputs.Grammar.text`), answer with `Prepared`, and keep it until `Drop`.

    For the ranks of the last stage. No request with this grammar begins before all of them have answered.
    """

    number: int
    grammar: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The grammar of the `Prepare` with this number is compiled; or ``error`` says why it cannot be used."""

    number: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a grammar: no request needs it."""

    grammar: str


@dataclass(frozen=True, slots=True)
class Allocated:
    """The KV cache is allocated."""


@dataclass(frozen=True, slots=True)
class Report:
    """Answer with `Reported`, between two batches."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a rank has spent its time since it was ready, in seconds, and how many batches and tokens it has computed.

    ``input_s``: waiting for the previous stage. ``engine_s``: waiting for a batch. Waiting for the other ranks of the stage is
    part of ``busy_s``.
    """

    rank: int
    stage: int
    busy_s: float = 0.0
    input_s: float = 0.0
    engine_s: float = 0.0
    num_batches: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """How the rank has spent its time when it got a `Report`."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends with ``error``. If not ``is_cause``, the error is only that a neighbouring rank has ended."""

    error: LoadmasterError
    is_cause: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    """The process that a launcher started was asked to end (SIGTERM, SIGINT): the engine is to end, as if it were asked."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The engine has ended, because of ``error`` or because it was closed."""

    error: str | None = None
