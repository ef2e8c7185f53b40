"""The engine: runs one model on its pipeline stages, one request at a time.

It checks requests, sends steps to the stages and returns tokens. It has no tensors and imports no torch: each stage runs
in a worker process, see `loadmaster.workers.supervisor`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING

from loadmaster.arguments import expect, expect_int, shown
from loadmaster.engine.limits import Limits, read_limits
from loadmaster.engine.support import refuse_launcher, refuse_options, refuse_plan
from loadmaster.errors import ArgumentError, LoadmasterError, RequestError
from loadmaster.host_memory import require_memory
from loadmaster.workers.messages import Begin, Begun, End, Refused, Step, Stepped
from loadmaster.workers.sampling_params import SamplingParams
from loadmaster.workers.supervisor import DEFAULT_BUILDER, State, Supervisor

if TYPE_CHECKING:
    from loadmaster.plan import ProvenPlan

PREFILL_TOKENS = 2048
"""A longer prompt is computed in chunks of this many tokens, so that several stages work on it at the same time."""

DEVICES = ("cpu", "cuda")
"""The devices that stages can run on."""


class Engine:
    """Runs a proven plan. Loading starts at once, in the background; `generate` waits for it.

    ``max_model_len`` limits prompt and answer together to fewer tokens than the model allows. ``prefill_tokens`` is the
    most prompt tokens in one step. ``builder`` (``module:name``) builds the stage in each worker; see
    `loadmaster.workers.builder`. ``device`` is ``cpu``, or ``cuda`` for the GPUs of this host: stage ``i`` uses GPU ``i``
    modulo their number.

    Raises:
        PlanError: the plan is not proven; has its findings.
        ArgumentError: an argument has the wrong type or value.
        UnsupportedError: running this family, a format of its weights, tensor or data parallelism, or a draft model is
            not supported yet; or a launcher (torchrun) started several of these processes.
        ConfigError: config.json has no maximum length, or ``max_model_len`` is longer than it.
        LoadError: the host has too little memory for all stages.
    """

    def __init__(
        self,
        plan: ProvenPlan,
        *,
        max_model_len: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        on_progress: Callable[[int], None] = lambda _: None,
        builder: str = DEFAULT_BUILDER,
        device: str = "cpu",
    ) -> None:
        if builder == DEFAULT_BUILDER:
            from loadmaster.plan import admit

            admit(plan)
        if max_model_len is not None:
            expect_int("max_model_len", max_model_len, 1)
        expect_int("prefill_tokens", prefill_tokens, 1)
        expect("builder", builder, str, "module:name")
        if device not in DEVICES:
            raise ArgumentError(f"device is {shown(device)}, expected one of {', '.join(DEVICES)}")
        if not callable(on_progress):
            raise ArgumentError(f"on_progress is {shown(on_progress)}, expected a function of a number of bytes")
        refuse_launcher(os.environ)
        drafts = {"method": "mtp"} if plan.layout.num_draft_layers else None
        refuse_options(plan.layout.tensor_parallel_size, drafts, plan.layout.data_parallel_size)
        if builder == DEFAULT_BUILDER:
            refuse_plan(plan)
        self.limits: Limits = read_limits(plan.family.describe(plan.config), plan.model_path, max_model_len)
        num_stages = plan.layout.pipeline_parallel_size
        if builder == DEFAULT_BUILDER and device == "cpu":
            resident = sum(plan.rank(rank).resident_bytes for rank in range(num_stages))
            hint = "use GPUs (--device cuda), or free memory"
            require_memory(resident, f"the {num_stages} stage(s) of the model take", hint=hint)
        self._total_bytes = sum(plan.rank(rank).needed_bytes for rank in range(num_stages))
        self._done_bytes = 0
        self._on_progress = on_progress
        self._prefill_tokens = prefill_tokens
        self._requests = count(1)
        self._busy = threading.Lock()
        self._supervisor = Supervisor(
            plan.to_json(), num_stages, builder=builder, device=device, on_progress=self._add_progress
        )

    @property
    def state(self) -> State:
        """``loading``, ``ready``, ``failed`` or ``closed``."""
        return self._supervisor.state

    @property
    def failed(self) -> LoadmasterError | None:
        """The error that ended the engine, or None."""
        return self._supervisor.error

    @property
    def max_model_len(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.limits.max_model_len

    def progress(self) -> tuple[int, int]:
        """Return the bytes loaded so far and the bytes to load, of all stages."""
        return self._done_bytes, self._total_bytes

    def wait_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            LoadError: loading failed.
        """
        self._supervisor.wait_ready()

    def wait_ended(self) -> LoadmasterError | None:
        """Wait until the engine has failed or was closed. Return the error, if there is one."""
        return self._supervisor.wait_ended()

    def stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """Return the tokens that end an answer. The answer includes the one that ended it."""
        return frozenset(params.stop_token_ids) | (set() if params.ignore_eos else set(self.limits.eos_token_ids))

    def check(self, prompt_token_ids: Sequence[int]) -> None:
        """Check a prompt against the model's limits.

        Raises:
            RequestError: the prompt is empty or too long, or has ids that are not in the model's vocabulary.
        """
        limits = self.limits
        if not isinstance(prompt_token_ids, Sequence) or isinstance(prompt_token_ids, (str, bytes)):
            raise RequestError(f"the prompt is {shown(prompt_token_ids)}, expected a list of token ids")
        for token in prompt_token_ids:
            if not isinstance(token, int):
                raise RequestError(f"the prompt has {shown(token)} among its token ids, expected integers")
        if not prompt_token_ids:
            raise RequestError("the prompt has no tokens")
        if len(prompt_token_ids) >= limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt_token_ids)} tokens, and the model allows {limits.max_model_len} tokens "
                "for prompt and answer together",
                hint="send a shorter prompt",
            )
        size = limits.vocab_size
        unknown = next((t for t in prompt_token_ids if t < 0 or (size is not None and t >= size)), None)
        if unknown is not None:
            raise RequestError(
                f"token id {unknown} is not in the model's vocabulary"
                + (f" of {size} tokens" if size is not None else "")
            )

    def generate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> Generator[int, None, None]:
        """Return the tokens that follow ``prompt_token_ids``, one by one, as soon as each is sampled.

        Closing the iterator cancels the request; the engine stays usable. Only one request can run at a time: until its
        iterator is exhausted or closed, the iterator of any other raises RequestError.

        Raises:
            RequestError: the prompt is not valid (at once), or the request cannot run (from the iterator). The engine
                stays usable.
            LoadError, RunError: loading or a stage failed (from the iterator). The engine is unusable.
        """
        self.check(prompt_token_ids)
        prompt = tuple(prompt_token_ids)
        expect("params", params, SamplingParams, "SamplingParams")
        return self._generate(prompt, params)

    def close(self) -> None:
        """End all workers and wait for them."""
        self._supervisor.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add_progress(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._on_progress(num_bytes)

    def _generate(self, prompt: tuple[int, ...], params: SamplingParams) -> Generator[int, None, None]:
        self.wait_ready()
        self._supervisor.check()
        if not self._busy.acquire(blocking=False):
            raise RequestError("another request is running", hint="exhaust or close the iterator of that request first")
        request = next(self._requests)
        try:
            room = self.max_model_len - len(prompt)
            num_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
            stops = self.stop_token_ids(params)
            self._begin(request, len(prompt) + num_tokens, params)
            token = self._prefill(request, prompt)
            for position in range(len(prompt), len(prompt) + num_tokens):
                yield token
                if token in stops or position == len(prompt) + num_tokens - 1:
                    break
                self._send_step(request, position, (token,), sample=True)
                token = self._next_token(request)
        finally:
            self._supervisor.send(End(request))
            self._busy.release()

    def _begin(self, request: int, num_positions: int, params: SamplingParams) -> None:
        self._supervisor.send(Begin(request, num_positions, params))
        refusals = []
        for _ in range(self._supervisor.num_stages):
            reply = self._supervisor.reply(request)
            if isinstance(reply, Refused):
                refusals.append(reply.reason)
            else:
                assert isinstance(reply, Begun)
        if refusals:
            raise RequestError(
                f"there is not enough memory for a KV cache of {num_positions} tokens: {refusals[0]}",
                hint="use a smaller max_tokens",
            )

    def _prefill(self, request: int, prompt: tuple[int, ...]) -> int:
        """Send the prompt in chunks and return the token that follows. At most one chunk a stage is in flight."""
        chunk, in_flight = self._prefill_tokens, 0
        for first in range(0, len(prompt), chunk):
            if in_flight == self._supervisor.num_stages:
                self._supervisor.reply(request)
                in_flight -= 1
            last = first + chunk >= len(prompt)
            self._send_step(request, first, prompt[first : first + chunk], sample=last)
            in_flight += 1
        for _ in range(in_flight - 1):
            self._supervisor.reply(request)
        return self._next_token(request)

    def _send_step(self, request: int, first: int, tokens: tuple[int, ...], *, sample: bool) -> None:
        self._supervisor.send(Step(request, first, len(tokens), tokens, sample), [0])
        self._supervisor.send(Step(request, first, len(tokens), None, sample), range(1, self._supervisor.num_stages))

    def _next_token(self, request: int) -> int:
        reply = self._supervisor.reply(request)
        assert isinstance(reply, Stepped)
        assert reply.token is not None
        return reply.token
