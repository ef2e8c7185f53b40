"""A model being served: its engine, its tokenizer, its names, and one request after another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from loadmaster.errors import LoadmasterError, RunError
from loadmaster.runtime import Engine, Piece, SamplingParams, Tokenizer, complete

QUEUE_PIECES = 64
"""Pieces that a slow client may lie behind before the engine waits for it."""


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
            self.engine.wait_ready()
        except LoadmasterError as error:
            if self.engine.state != "closed":
                self._failed = error
            raise
        self._is_ready = True

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
            raise RunError("the server is shutting down") from error
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
        self._thread.shutdown()
