"""A model being served: its engine, its tokenizer, its names, and one request after another."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar

from loadmaster.engine import Engine, Piece, Tokenizer, complete
from loadmaster.engine.template import NUM_RENDERERS
from loadmaster.errors import LoadmasterError, RequestError, RunError
from loadmaster.workers import SamplingParams

T = TypeVar("T")

QUEUE_PIECES = 64
"""Pieces that a slow client may lie behind before the engine waits for it."""

NUM_TOKENIZED = 2
"""Prompts tokenized at once; the others wait, so that they don't all take memory."""


class ShutdownError(RunError):
    """The server was told to stop before a request was answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Service:
    """Feeds the engine one request at a time, in the order they came, each from a thread of its own.

    ``names`` are what clients may call the model; answers use the first.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, names: Sequence[str]) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.names = tuple(names)
        self.num_requests = 0
        self._failed: LoadmasterError | None = None
        self._is_ready = False
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._tokenizing = ThreadPoolExecutor(NUM_TOKENIZED, thread_name_prefix="tokenize")
        self._rendering = ThreadPoolExecutor(NUM_RENDERERS, thread_name_prefix="render")
        self.stopping = asyncio.Event()

    @property
    def failed(self) -> LoadmasterError | None:
        """What ended the service, if something did."""
        return self._failed or self.engine.failed

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._is_ready and self.engine.state == "ready" and self.failed is None

    def load(self) -> None:
        """Load the tokenizer, and wait until the engine is ready too; blocks.

        Raises:
            LoadmasterError: either failed, which is kept as ``failed``, or the service was closed.
        """
        try:
            self.tokenizer.load()
            with suppress(RuntimeError):  # the service was closed in the meantime
                self._rendering.submit(self._try_template)
            self.engine.wait_ready()
        except LoadmasterError as error:
            if self.engine.state != "closed":
                self._failed = error
            raise
        self._is_ready = True

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a prompt.

        Raises:
            RequestError: it is refused, or too long for the model whatever its tokens are.
        """
        return await self._in(self._tokenizing, self._encode, text, add_special_tokens)

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> list[int]:
        """Return the ids of a conversation, by the chat template with further ``variables``.

        Raises:
            RequestError: it is refused, or too long for the model whatever its tokens are.
            CheckpointError: the chat template cannot be used.
        """
        render = partial(self.tokenizer.render_chat, add_generation_prompt=add_generation_prompt, variables=variables)
        text = await self._in(self._rendering, render, messages)
        return await self.encode(text, add_special_tokens=False)

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, stop: Sequence[str]
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer's pieces, once it is this request's turn. Closing the generator gives the request up.

        Raises:
            RequestError: the request is refused.
            RunError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        room, given_up = threading.Semaphore(QUEUE_PIECES), threading.Event()

        def work() -> None:
            last: Exception | None = None
            try:
                with closing(complete(self.engine, self.tokenizer, prompt_token_ids, params, stop)) as answer:
                    for piece in answer:
                        room.acquire()
                        if given_up.is_set():
                            break
                        loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except Exception as error:
                last = error
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, last)

        await self._turn.acquire()
        try:
            done = loop.run_in_executor(self._thread, work)
        except RuntimeError as error:  # the service was closed in the meantime
            self._turn.release()
            raise ShutdownError from error
        self.num_requests += 1
        done.add_done_callback(lambda _: self._turn.release())  # only then is the engine free
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                room.release()
                yield piece
        finally:
            given_up.set()
            room.release()

    def close(self) -> None:
        """End the engine, and with it what is being generated; blocks."""
        self.engine.close()
        self.tokenizer.close()
        self._thread.shutdown()
        self._rendering.shutdown(cancel_futures=True)
        self._tokenizing.shutdown(cancel_futures=True)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work, *args)
        except RuntimeError as error:
            if self.engine.state != "closed":
                raise
            raise ShutdownError from error

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.tokenizer.exists:
            most = self.engine.max_model_len * self.tokenizer.longest_token
            if len(text) > most:
                raise RequestError(
                    f"the prompt has {len(text):,} characters, and the model's length is {self.engine.max_model_len} "
                    f"tokens, prompt and answer together: at most {most:,} characters"
                )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _try_template(self) -> None:
        try:
            self.tokenizer.start_template()
        except LoadmasterError as error:
            if self.engine.state != "closed":
                print(f"warning: /v1/chat/completions: {error.message}", file=sys.stderr, flush=True)
