"""The engine: one model over its pipeline stages, one request at a time.

It checks requests, feeds the stages and hands tokens out. It holds no tensor and imports no torch: the stages are
processes, see `loadmaster.workers.supervisor`.
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
"""A longer prompt is computed in chunks of so many tokens, so that several stages work on it at once."""

DEVICES = ("cpu", "cuda")
"""Where stages run."""


class Engine:
    """Runs a proven plan. Loading begins at once, in the background; `generate` waits for it.

    ``max_model_len`` shortens the model's own length. ``prefill_tokens`` is the longest piece of a prompt computed at
    once. ``builder`` (``module:name``) makes a stage in each worker; see `loadmaster.workers.builder`. ``device`` is
    ``cpu`` or ``cuda``: stages run on this host's GPUs, dealt out in turns.

    Raises:
        PlanError: the plan was not proven; carries its findings.
        ArgumentError: an argument is not of its kind.
        UnsupportedError: the layout has tensor- or data-parallel ranks or drafts, the layers do not compute the family
            or a format that its weights are stored in, or a launcher (torchrun) started several of these processes.
        ConfigError: the model's length is not known, or is exceeded.
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
            hint = "divide the model over GPUs (--device cuda), or free memory"
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
        """What ended the engine, if something did."""
        return self._supervisor.error

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.limits.max_model_len

    def progress(self) -> tuple[int, int]:
        """Return bytes loaded and bytes to load, over all stages."""
        return self._done_bytes, self._total_bytes

    def wait_ready(self) -> None:
        """Return when the model is loaded.

        Raises:
            LoadError: loading failed.
        """
        self._supervisor.wait_ready()

    def wait_ended(self) -> LoadmasterError | None:
        """Return when the engine has failed, with the error, or was closed."""
        return self._supervisor.wait_ended()

    def stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """Return the tokens that end an answer. The one that did is its last."""
        return frozenset(params.stop_token_ids) | (set() if params.ignore_eos else set(self.limits.eos_token_ids))

    def check(self, prompt_token_ids: Sequence[int]) -> None:
        """Hold a prompt against the model.

        Raises:
            RequestError: it is empty, leaves no room for a token, or has ids that the model doesn't know.
        """
        limits = self.limits
        if not isinstance(prompt_token_ids, Sequence) or isinstance(prompt_token_ids, (str, bytes)):
            raise RequestError(f"the prompt is {shown(prompt_token_ids)}, expected token ids")
        for token in prompt_token_ids:
            if not isinstance(token, int):
                raise RequestError(f"the prompt has {shown(token)} among its token ids, expected integers")
        if not prompt_token_ids:
            raise RequestError("the prompt is empty: it has no tokens")
        if len(prompt_token_ids) >= limits.max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt_token_ids)} tokens, and the model's length is {limits.max_model_len} "
                "tokens, prompt and answer together"
            )
        top = limits.vocab_size
        bad = next((t for t in prompt_token_ids if t < 0 or (top is not None and t >= top)), None)
        if bad is not None:
            raise RequestError(
                f"token id {bad} is not in the model's vocabulary" + (f" of {top} tokens" if top is not None else "")
            )

    def generate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> Generator[int, None, None]:
        """Return the tokens that follow ``prompt_token_ids``, one by one, as they are made.

        Closing the iterator gives the request up and leaves the engine usable. One request runs at a time: a second
        is refused, when its first token is asked for, until the first iterator is exhausted or closed.

        Raises:
            RequestError: the prompt is refused (at once), or the request (by the iterator); the engine goes on.
            LoadError, RunError: by the iterator: loading failed, or a stage did. The engine is unusable.
        """
        self.check(prompt_token_ids)
        prompt = tuple(prompt_token_ids)
        expect("params", params, SamplingParams, "SamplingParams")
        return self._generate(prompt, params)

    def close(self) -> None:
        """End all workers; return when they are gone."""
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
            raise RequestError("another request is running", hint="exhaust or close its iterator first")
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
                f"there is no memory for a cache of {num_positions} tokens: {refusals[0]}",
                hint="ask for fewer tokens (max_tokens)",
            )

    def _prefill(self, request: int, prompt: tuple[int, ...]) -> int:
        """Send the prompt in chunks, as many ahead as there are stages, and return the token that follows."""
        chunk, ahead = self._prefill_tokens, 0
        for first in range(0, len(prompt), chunk):
            if ahead == self._supervisor.num_stages:
                self._supervisor.reply(request)
                ahead -= 1
            last = first + chunk >= len(prompt)
            self._send_step(request, first, prompt[first : first + chunk], sample=last)
            ahead += 1
        for _ in range(ahead - 1):
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
