"""A served model: its engine, its tokenizer and its names."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

from loadmaster.engine import AnswerText, Engine, Piece, Stream, TextOptions, Tokenizer
from loadmaster.engine.request import Event
from loadmaster.engine.template import NUM_RENDERERS
from loadmaster.errors import LoadmasterError, RequestError, RunError
from loadmaster.server.inbox import Events, Inbox
from loadmaster.server.log import notice
from loadmaster.server.observations import Observations
from loadmaster.server.output_format import OutputFormat, output_format
from loadmaster.server.records import Answer, Record, Records
from loadmaster.server.request_log import RequestLog
from loadmaster.server.settings import Settings
from loadmaster.workers import SamplingParams

T = TypeVar("T")

State = Literal["loading", "ready", "failed", "shutting down"]

NUM_TOKENIZED = 2
"""Prompts tokenized at once. The others wait, to limit memory."""

MAX_UNREAD = 8192
"""The most tokens of one answer that wait for a client that reads slowly. Without a limit they would fill the memory."""


class ShutdownError(RunError):
    """The server is shutting down, and a request is not answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class QueueFullError(RunError):
    """As many requests wait as may, and another one is not accepted."""

    def __init__(self, max_queue: int) -> None:
        super().__init__(f"{max_queue} requests wait already, and no more may (--max-queue)")


class RequestTimeoutError(RunError):
    """A request was not answered in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request was not finished within {timeout_s:g} s (--request-timeout)")


class SlowClientError(RunError):
    """A client reads its stream so slowly that too much of the answer waits for it."""

    def __init__(self) -> None:
        super().__init__(f"the client reads too slowly: {MAX_UNREAD:,} tokens wait for it")


class Service:
    """Runs requests on the engine, which computes them together.

    ``names`` are the model's names that requests may use; answers use the first. ``num_generating`` counts the HTTP requests
    whose answers are being computed. ``settings`` are those of the whole server.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, names: Sequence[str], settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings()
        self.engine = engine
        self.tokenizer = tokenizer
        self.names = tuple(names)
        self.num_requests = 0
        self.num_generating = 0
        self.records = Records()
        self.request_log = RequestLog(self.settings)
        self.observations = Observations(engine.max_model_len)
        self._failed: LoadmasterError | None = None
        self._is_ready = False
        self._num_in_flight = 0
        self._inbox: Inbox | None = None
        self._tokenizing = ThreadPoolExecutor(NUM_TOKENIZED, thread_name_prefix="tokenize")
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._rendering = ThreadPoolExecutor(NUM_RENDERERS, thread_name_prefix="render")
        self.is_draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.stopping = asyncio.Event()

    def drain(self) -> None:
        """Refuse new requests from now on. ``idle`` is set when those that are being answered have ended."""
        self.is_draining = True

    @contextmanager
    def answering(self) -> Generator[None, None, None]:
        """Count a request that is being answered."""
        self._num_in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self.idle.set()

    @property
    def failed(self) -> LoadmasterError | None:
        """The error that ended the service, or None."""
        return self._failed or self.engine.failed

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and the engine runs."""
        return self._is_ready and self.engine.state == "ready" and self.failed is None

    @property
    def state(self) -> State:
        """What the service does now; only a ready one takes requests."""
        if self.failed is not None:
            return "failed"
        if self.is_draining:
            return "shutting down"
        return "ready" if self.is_ready else "loading"

    @cached_property
    def output_format(self) -> OutputFormat:
        """How the model writes tool calls and reasoning. Loads the tokenizer, if `load` has not done so."""
        return output_format(self.tokenizer, self.settings)

    def load(self) -> None:
        """Load the tokenizer and wait until the engine is ready. Blocks.

        Raises:
            LoadmasterError: either failed (kept as ``failed``), or the service was closed.
        """
        try:
            self.tokenizer.load()
            if self.tokenizer.exists:
                self._learn_vocabulary()
            with suppress(RuntimeError):  # the service was closed in the meantime
                self._rendering.submit(self._try_template)
            self.engine.wait_ready()
        except LoadmasterError as error:
            if self.engine.state != "closed":
                self._failed = error
            raise
        self._is_ready = True

    async def compiled(self, params: SamplingParams) -> SamplingParams:
        """Return ``params`` with their structured outputs checked and compiled.

        Raises:
            RequestError: they are refused.
        """
        if params.structured_outputs is None:
            return params
        return await self._in(self._compiling, self.engine.compiled, params)

    async def encode(self, text: str, add_special_tokens: bool = True, *, any_length: bool = False) -> list[int]:
        """Return the token ids of a text, which may be longer than the model's length only with ``any_length``.

        Raises:
            RequestError: the text is refused, or has more characters than the model's length can hold.
        """
        return await self._in(self._tokenizing, self._encode, text, add_special_tokens, any_length)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do work that takes long in one of the threads that tokenize."""
        return await self._in(self._tokenizing, work)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a prompt; it is empty if the model has no tokenizer."""
        return self.tokenizer.decode(token_ids) if self.tokenizer.exists else ""

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a conversation, rendered with the chat template and ``variables``.

        Raises:
            RequestError: it is refused.
            CheckpointError: the chat template cannot be used.
        """
        render = partial(
            self.tokenizer.render_chat,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            documents=documents,
            variables=variables,
            tools=tools,
        )
        return await self._in(self._rendering, render, messages)

    async def generate(
        self, prompts: Sequence[tuple[Sequence[int], SamplingParams]], options: TextOptions, record: Record
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Compute the answers to several prompts together; yield their pieces as they come, with the prompt's number.

        Closing the generator cancels what is not finished. ``record`` is filled. The same list of token ids again is another
        choice of the prompt before.

        Raises:
            RequestError: a request is refused.
            QueueFullError, RequestTimeoutError, SlowClientError: a limit of the settings or of memory.
            RunError: the engine failed.
        """
        limits = self.settings
        if limits.max_queue is not None and self.engine.num_queued() >= limits.max_queue:
            raise QueueFullError(limits.max_queue)
        if self._inbox is None:
            self._inbox = Inbox(asyncio.get_running_loop())
        events: Events = asyncio.Queue()
        put = partial(self._inbox.put, events)
        texts = [AnswerText(self.tokenizer, params, options) for _, params in prompts]
        streams: list[Stream] = []
        answers: list[Answer] = []
        failed = False
        self.num_generating += 1
        timer = None
        if limits.request_timeout_s is not None:
            ended = (0, RequestTimeoutError(limits.request_timeout_s))
            timer = asyncio.get_running_loop().call_later(limits.request_timeout_s, events.put_nowait, ended)
        try:
            for number, (prompt_token_ids, params) in enumerate(prompts):
                streams.append(self._submit(prompt_token_ids, params, partial(put, number)))
                repeats = number > 0 and prompt_token_ids is prompts[number - 1][0]
                answers.append(Answer(streams[-1], len(prompt_token_ids), params.max_tokens, repeats))
                record.answers.append(answers[-1])
            num_running = len(prompts)
            while num_running:
                number, event = await events.get()
                if isinstance(event, LoadmasterError):
                    raise event
                if events.qsize() > MAX_UNREAD * len(prompts):
                    raise SlowClientError
                if texts[number].is_over:
                    continue  # the engine was ahead when a stop string ended the answer
                pieces = texts[number].add(event)
                self.observations.add(record, answers[number], pieces, time.monotonic())
                for piece in pieces:
                    yield number, piece
                if texts[number].is_over:
                    num_running -= 1
                    streams[number].cancel()
        except LoadmasterError:
            failed = True
            raise
        finally:
            self.num_generating -= 1
            if timer is not None:
                timer.cancel()
            for stream in streams:
                stream.cancel()
            self.observations.end_answers(record, answers, time.monotonic(), failed=failed)

    def _submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, on_event: Callable[[Event], None]
    ) -> Stream:
        try:
            stream = self.engine.submit(prompt_token_ids, params, on_event)
        except RunError as error:
            if self.engine.state != "closed":
                raise
            raise ShutdownError from error
        self.num_requests += 1
        return stream

    def close(self) -> None:
        """End the engine and the requests that run on it. Blocks."""
        self.engine.close()
        self.tokenizer.close()
        self._rendering.shutdown(cancel_futures=True)
        self._tokenizing.shutdown(cancel_futures=True)
        self._compiling.shutdown(cancel_futures=True)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work, *args)
        except RuntimeError as error:
            if self.engine.state != "closed":
                raise
            raise ShutdownError from error

    def _encode(self, text: str, add_special_tokens: bool, any_length: bool) -> list[int]:
        if self.tokenizer.exists and not any_length:
            max_characters = self.engine.max_model_len * self.tokenizer.longest_token
            if len(text) > max_characters:
                raise RequestError(
                    f"the prompt has {len(text):,} characters, and the model allows {self.engine.max_model_len} tokens for "
                    f"prompt and answer together, at most {max_characters:,} characters",
                    hint="send a shorter prompt",
                )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _learn_vocabulary(self) -> None:
        with suppress(RequestError):  # which every request for structured outputs gets
            self.engine.learn(self.tokenizer.vocabulary())

    def _try_template(self) -> None:
        try:
            self.tokenizer.start_template()
        except LoadmasterError as error:
            if self.engine.state != "closed":
                notice(f"/v1/chat/completions: {error.message}", logging.WARNING)
