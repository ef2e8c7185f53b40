"""The engine: runs one model on its ranks, for many requests at a time.

One thread does the work: it takes new requests, lets the scheduler make batches, sends them to the workers, and passes
their results to the streams of the requests. It has no tensors and imports no torch: each rank runs in a worker process,
see `loadmaster.workers.supervisor`.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING

from loadmaster.arguments import expect, expect_function, expect_int
from loadmaster.engine.capacity import Capacity
from loadmaster.engine.grammar_check import GrammarCheck
from loadmaster.engine.launched import require_memory_of, run_of
from loadmaster.engine.limits import Limits, read_limits
from loadmaster.engine.loading import Loading, LoadProgress
from loadmaster.engine.pages import PagePool
from loadmaster.engine.prepared_grammars import PreparedGrammars
from loadmaster.engine.request import Event, Output, Request, Stream
from loadmaster.engine.scheduler import Counters, Scheduler
from loadmaster.engine.support import launch_of, num_drafts, refuse_options, refuse_plan, require_device
from loadmaster.errors import ArgumentError, LoadmasterError, RequestError, RunError
from loadmaster.workers.batch import Done
from loadmaster.workers.crew import DEFAULT_BUILDER
from loadmaster.workers.messages import Allocate, Allocated, Prepared, Usage, Vocabulary
from loadmaster.workers.sampling_params import SamplingParams, check_vocabulary
from loadmaster.workers.structured_outputs import StructuredOutputs
from loadmaster.workers.supervisor import State, Supervisor

if TYPE_CHECKING:
    from loadmaster.plan import ProvenPlan

"""The devices that stages can run on."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the engine does now: requests, pages of the KV cache, counts since the start, and each rank's time."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_used_pages: int
    most_used_pages: int
    counters: Counters
    stages: tuple[Usage, ...]


class Engine:
    """Runs a proven plan. Loading starts at once, in the background; requests wait for it.

    ``max_model_len`` limits prompt and answer together to fewer tokens than the model allows. ``capacity`` says how much is
    computed at a time, and how large the KV cache is. ``builder`` (``module:name``) builds the stage in each worker; see
    `loadmaster.workers.builder`. ``device`` is ``cpu``, or ``cuda`` for the GPUs of this host: rank ``i`` uses GPU ``i``
    modulo their number. A plan with MTP layers is run with them as a draft model: they propose ``num_speculative_tokens``
    tokens (default: one for each layer), which the model verifies together. They change no answer, only its speed.

    Under a launcher (torchrun) this is for rank 0; the other processes call `loadmaster.engine.run_rank`. When one of them is
    asked to end (SIGTERM), ``on_leave`` is called, from another thread: it sends this process SIGTERM, unless it is replaced.

    Raises:
        PlanError: the plan is not proven; has its findings.
        ArgumentError: an argument has the wrong type or value.
        UnsupportedError: running this family, a format of its weights, or data parallelism is not supported yet; more
            drafts than several MTP layers propose.
        ConfigError: config.json has no maximum length, or ``max_model_len`` is longer than it.
        LoadError: the host has too little memory for all ranks.
    """

    def __init__(
        self,
        plan: ProvenPlan,
        *,
        max_model_len: int | None = None,
        capacity: Capacity | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
        builder: str = DEFAULT_BUILDER,
        device: str = "cpu",
        num_speculative_tokens: int | None = None,
    ) -> None:
        if builder == DEFAULT_BUILDER:
            from loadmaster.plan import admit

            admit(plan)
        if max_model_len is not None:
            expect_int("max_model_len", max_model_len, 1)
        expect("capacity", capacity, (Capacity, type(None)), "a Capacity")
        expect("builder", builder, str, "module:name")
        require_device(device)
        expect_function("on_progress", on_progress, "a number of bytes", optional=False)
        launch = launch_of(plan.layout, os.environ)
        if launch is not None and launch.rank > 0:
            raise ArgumentError(
                f"a launcher started this process as rank {launch.rank} of {launch.num_ranks}, and the engine is on rank 0",
                hint="on the other ranks call loadmaster.engine.run_rank with the same plan",
            )
        refuse_options(None, plan.layout.data_parallel_size)
        self._num_speculative_tokens = num_drafts(plan.layout.num_draft_layers, num_speculative_tokens)
        self._num_draft_layers = plan.layout.num_draft_layers
        if builder == DEFAULT_BUILDER:
            refuse_plan(plan)
        self.limits: Limits = read_limits(plan.family.describe(plan.config), plan.model_path, max_model_len)
        run = run_of(plan, builder, device, launch)
        if builder == DEFAULT_BUILDER:
            require_memory_of(plan, device, launch)
        ranks = range(run.num_ranks)
        self._loading = LoadProgress([plan.rank(r).needed_bytes for r in ranks], [run.place(r).stage for r in ranks])
        self._on_progress = on_progress
        self._device = device
        self.capacity = capacity or Capacity()
        self._numbers = count(1)
        self._lock = threading.Lock()  # guards the two lists below, and whether requests are still taken
        self._arrivals: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._ended: LoadmasterError | None = None
        self._grammars = GrammarCheck()
        self._vocabulary: Vocabulary | None = None
        self._sent_vocabulary: Vocabulary | None = None
        self._last_ranks = tuple(run.place(run.num_ranks - 1).stage_ranks)
        self._prepared = PreparedGrammars(
            len(self._last_ranks), lambda message: self._supervisor.send(message, self._last_ranks)
        )
        self._ready = threading.Event()
        self._is_ready = False
        self._scheduler: Scheduler | None = None
        self.on_leave: Callable[[], object] = _terminate
        self._supervisor = Supervisor(
            run, launch=launch, on_progress=self._add_progress, on_leave=lambda: self.on_leave()
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """``loading``, ``ready``, ``failed`` or ``closed``."""
        state = self._supervisor.state
        return "loading" if state == "ready" and not self._is_ready else state

    @property
    def failed(self) -> LoadmasterError | None:
        """The error that ended the engine, or None."""
        return self._supervisor.error

    @property
    def max_model_len(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.limits.max_model_len

    def progress(self) -> tuple[int, int]:
        """Return the bytes loaded so far and the bytes to load, of all ranks."""
        loading = self._loading.now()
        return loading.loaded_bytes, loading.total_bytes

    def loading(self) -> Loading:
        """Return how far each rank is loaded, and how fast; after the end, how long loading took."""
        return self._loading.now()

    def statistics(self, *, within_s: float = 0.0) -> Statistics:
        """Return what the engine does now. All numbers are zero before it is ready.

        Stages report their times twice a second while they compute. With ``within_s``, they are asked for their times as of
        now, and the call waits up to this many seconds.
        """
        if within_s > 0 and self._is_ready:
            self._supervisor.refresh_usage(within_s)
        scheduler = self._scheduler
        if scheduler is None:
            return Statistics(0, 0, 0, 0, 0, Counters(), self._supervisor.usage)
        return Statistics(
            scheduler.num_running,
            scheduler.num_waiting + self._num_arrived,
            scheduler.pool.num_pages,
            scheduler.pool.num_used,
            scheduler.pool.most_used,
            replace(scheduler.counters, accepted_at=list(scheduler.counters.accepted_at)),
            self._supervisor.usage,
        )

    def num_queued(self) -> int:
        """Return how many requests wait: for a place, or for pages. Arrivals that find a free place are not among them."""
        if (scheduler := self._scheduler) is None:
            return len(self._arrivals)
        num_waiting = scheduler.num_waiting
        num_free = max(0, self.capacity.max_num_seqs - scheduler.num_running - num_waiting)
        return num_waiting + max(0, self._num_arrived - num_free)

    def wait_ready(self) -> None:
        """Wait until the model is loaded and its KV cache is allocated.

        Raises:
            LoadError: loading failed.
        """
        self._ready.wait()
        if self._ended is not None:
            raise self._ended

    def wait_ended(self) -> LoadmasterError | None:
        """Wait until the engine has failed or was closed. Return the error, if there is one."""
        return self._supervisor.wait_ended()

    def stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """Return the tokens that end an answer. The answer includes the one that ended it."""
        return frozenset(params.stop_token_ids) | (set() if params.ignore_eos else set(self.limits.eos_token_ids))

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams | None = None) -> None:
        """Check a prompt, and the tokens that ``params`` name, against the model's limits.

        Raises:
            RequestError: the prompt is empty or too long; or it, ``stop_token_ids`` or ``logit_bias`` have ids that are not in
                the model's vocabulary.
        """
        self.limits.check_prompt(prompt_token_ids)
        if params is not None:
            expect("params", params, SamplingParams, "SamplingParams")
            if self.limits.vocab_size is not None:
                check_vocabulary(params, self.limits.vocab_size)

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the texts of the tokens (`Tokenizer.vocabulary`), which structured outputs need.

        Best called before the engine is ready: the workers take a second or two for it.
        """
        self._vocabulary = vocabulary
        self._supervisor.wake()

    def compiled(self, params: SamplingParams) -> SamplingParams:
        """Return ``params`` with their structured outputs checked and compiled, which can take seconds. See `GrammarCheck`.

        Raises:
            RequestError: they are not valid or not supported, allow no answer or exceed the limits; or the model has no
                tokenizer or no end token.
            RunError: they cannot be checked.
        """
        wanted = params.structured_outputs
        if not isinstance(wanted, StructuredOutputs):
            return params
        if self._vocabulary is None:
            raise RequestError("structured_outputs need a tokenizer, and the model has none")
        if not self.limits.eos_token_ids:
            raise RequestError("structured_outputs need an end token, and the model has none")
        return replace(params, structured_outputs=self._grammars.compiled(wanted))

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        on_event: Callable[[Event], None] | None = None,
    ) -> Stream:
        """Begin a request, and return the stream of its answer. May be called from any thread, also during loading.

        ``on_event`` gets each output instead, or the error that ends the request; the engine's thread calls it. Structured
        outputs that are not `compiled` are compiled first.

        Raises:
            RequestError: the prompt is not valid, ``params`` name tokens that are not in the model's vocabulary, or their
                structured outputs are refused.
            LoadError, RunError: the engine has failed or is closed.
        """
        expect("params", params, SamplingParams, "SamplingParams")
        self.check(prompt_token_ids, params)
        params = self.compiled(params)
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        room = self.max_model_len - len(prompt_token_ids)
        stream = Stream(lambda: self._cancel(request), on_event)
        request = Request(
            next(self._numbers),
            prompt_token_ids,
            params,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            ends=self.stop_token_ids(params),
            stream=stream,
        )
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._arrivals.append(request)
        self._supervisor.wake()
        return stream

    def generate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> Generator[int, None, None]:
        """Return the tokens that follow ``prompt_token_ids``, one by one, as soon as each is sampled.

        Closing the iterator cancels the request. Several may be used at the same time, from several threads.

        Raises:
            RequestError: the prompt or ``params`` are not valid (at once), or the request fails (from the iterator).
            LoadError, RunError: loading or a stage failed (from the iterator). The engine is unusable.
        """
        expect("params", params, SamplingParams, "SamplingParams")
        self.check(prompt_token_ids, params)
        return self._generate(tuple(prompt_token_ids), params)

    def close(self) -> None:
        """End all workers and wait for them. Requests that are not finished end with an error."""
        self._supervisor.close()
        self._grammars.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _num_arrived(self) -> int:
        """Requests that the scheduler does not have yet."""
        return len(self._arrivals) + self._prepared.num_held

    def _add_progress(self, rank: int, num_bytes: int) -> None:
        self._loading.add(rank, num_bytes)
        self._on_progress(num_bytes)

    def _generate(self, prompt: tuple[int, ...], params: SamplingParams) -> Generator[int, None, None]:
        self.wait_ready()
        stream = self.submit(prompt, params)
        try:
            for output in stream:
                yield from output.token_ids
        finally:
            stream.cancel()

    def _cancel(self, request: Request) -> None:
        with self._lock:
            if self._ended is not None or request.is_over:
                return
            self._cancelled.append(request)
        self._supervisor.wake()

    # All methods below run in the engine's thread.

    def _run(self) -> None:
        try:
            self._scheduler = self._start()
            self._is_ready = True
            self._ready.set()
            self._loop(self._scheduler)
        except LoadmasterError as error:
            self._end(error)
        except BaseException as error:
            self._end(RunError(f"the engine failed: {type(error).__name__}: {error}"))
            raise

    def _start(self) -> Scheduler:
        """Wait for the workers, and let them allocate the KV cache."""
        supervisor, capacity = self._supervisor, self.capacity
        supervisor.wait_ready()
        self._loading.finish()
        num_pages = capacity.num_pages(supervisor.ready, self._device, self.max_model_len)
        self._send_vocabulary()
        supervisor.send(
            Allocate(num_pages, capacity.block_size, self.limits.eos_token_ids, self._num_speculative_tokens)
        )
        num_allocated = 0
        while num_allocated < supervisor.num_ranks:
            num_allocated += isinstance(supervisor.next(), Allocated)
        return Scheduler(
            PagePool(num_pages, capacity.block_size, adjacent=self._device == "cpu"),
            num_places=supervisor.num_stages,
            max_num_seqs=capacity.max_num_seqs,
            max_num_batched_tokens=capacity.num_batched_tokens(self._device),
            enable_prefix_caching=capacity.enable_prefix_caching,
            num_draft_layers=self._num_draft_layers,
            num_draft_slots=self._num_speculative_tokens - 1 if self._num_draft_layers == 1 else 0,
        )

    def _loop(self, scheduler: Scheduler) -> None:
        while True:
            self._admit(scheduler)
            while (batch := scheduler.schedule()) is not None:
                self._supervisor.send(batch)
                self._note_begin(scheduler.begun(batch))
            done = self._supervisor.next()
            if isinstance(done, Done):
                now = time.monotonic()
                for request, event in scheduler.commit(done):
                    self._pass_on(request, event, now)
            elif isinstance(done, Prepared):
                self._take(scheduler, done)

    def _admit(self, scheduler: Scheduler) -> None:
        """Take the requests that arrived, then those that were cancelled."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        self._send_vocabulary()
        for request in arrivals:
            if self._prepared.add(request):
                scheduler.add(request)
        for request in cancelled:
            if not self._prepared.cancel(request):
                scheduler.cancel(request)

    def _take(self, scheduler: Scheduler, answer: Prepared) -> None:
        """Let requests begin whose grammar is compiled, or end those whose grammar cannot be used."""
        for request in self._prepared.take(answer):
            if answer.error is None:
                scheduler.add(request)
            else:
                request.is_over = True
                self._pass_on(request, RequestError(answer.error), time.monotonic())

    def _send_vocabulary(self) -> None:
        """Send the vocabulary to the last stage, if it has come since the last time."""
        if (vocabulary := self._vocabulary) is not self._sent_vocabulary:
            assert vocabulary is not None
            self._supervisor.send(vocabulary, self._last_ranks)
            self._sent_vocabulary = vocabulary

    def _note_begin(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            if request.stream.timing.scheduled is None:  # not again after a preemption
                request.stream.timing.scheduled = now
                request.stream.num_cached = request.num_cached

    def _pass_on(self, request: Request, event: Event, now: float) -> None:
        timing = request.stream.timing
        if timing.first_token is None and isinstance(event, Output) and event.token_ids:
            timing.first_token = now
        if isinstance(event, LoadmasterError) or event.finish_reason is not None:
            timing.ended = now
        request.stream.put(event)

    def _end(self, error: LoadmasterError) -> None:
        """Give every request that is not over the error that ended the engine."""
        if self._supervisor.error is None and self._supervisor.state != "closed":
            self._supervisor.fail(error)
        with self._lock:
            self._ended = error
            scheduled = self._scheduler.requests if self._scheduler else ()
            requests = [*self._arrivals, *self._prepared.held, *scheduled]
        self._ready.set()
        for request in requests:
            request.stream.put(error)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
