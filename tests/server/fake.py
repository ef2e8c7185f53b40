"""An engine in this process that answers every prompt with the bytes it was told to, and a live server over it.

Tokens are those of the tiny checkpoints' tokenizer: a byte is its own token.
"""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import cast

import openai
import uvicorn

from loadmaster.engine import Capacity, Engine, Limits, Loading, Output, RankProgress, Statistics, Stream, Tokenizer
from loadmaster.engine.renderer_pool import RendererPool
from loadmaster.engine.request import Event, FinishReason
from loadmaster.engine.scheduler import Counters
from loadmaster.errors import LoadmasterError, RequestError
from loadmaster.server.address import listen
from loadmaster.server.serve import http_config
from loadmaster.server.service import Service
from loadmaster.server.settings import Settings
from loadmaster.workers import SamplingParams
from loadmaster.workers.batch import PositionLogprobs, TokenLogprob
from loadmaster.workers.messages import Usage, Vocabulary
from loadmaster.workers.sampling_params import check_vocabulary

RENDERERS = RendererPool()
"""Of all servers in this process: to start the one of each takes seconds of CPU."""
atexit.register(RENDERERS.close)

EOS = 257  # <|end|> of the tiny tokenizer


@dataclass
class FakeEngine:
    """``answer`` is given byte by byte, a token each, then the end token; ``delay_s`` lies between tokens.

    ``endless``: an answer goes on until it is given up. A token's log probability is its number, negative.
    """

    answer: bytes = b"Hello, world!"
    delay_s: float = 0.0
    endless: bool = False
    limits: Limits = field(default_factory=lambda: Limits(64, 262, (EOS,), {"temperature": 0.5}))
    capacity: Capacity = field(default_factory=lambda: Capacity(max_num_seqs=8))
    state: str = "ready"
    failed: LoadmasterError | None = None
    fails_after: int | None = None
    error: LoadmasterError | None = None
    loaded: tuple[int, int] = (1000, 1000)
    ready: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    given_up: int = 0
    vocabulary: Vocabulary | None = None

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    def progress(self) -> tuple[int, int]:
        return self.loaded

    def loading(self) -> Loading:
        return Loading(self._ranks(), seconds=2.0)

    def _ranks(self) -> tuple[RankProgress, ...]:
        done, total = self.loaded
        return tuple(RankProgress(rank, rank, done // 2, total // 2) for rank in range(2))

    def statistics(self, *, within_s: float = 0.0) -> Statistics:
        assert within_s == 0, "asking the workers would hold the caller up"
        counters = Counters(prompt_tokens=9, cached_tokens=4, preemptions=3, drafted_tokens=8, accepted_tokens=5)
        counters.drafted_spans, counters.accepted_at = 4, [3, 2]
        stages = tuple(Usage(rank, rank, busy_s=3.0 + rank, input_s=2.0, engine_s=1.0) for rank in range(2))
        return Statistics(self.running, 2, 100, 25, 30, counters, stages)

    def num_queued(self) -> int:
        return max(0, self.running - self.capacity.max_num_seqs)

    def wait_ready(self) -> None:
        self.ready.wait()
        if self.failed:
            raise self.failed
        self.state = "ready"

    def wait_ended(self) -> LoadmasterError | None:
        self.ended.wait()
        return self.failed

    def fail(self, error: LoadmasterError) -> None:
        self.failed, self.state = error, "failed"
        self.ready.set()
        self.ended.set()

    def close(self) -> None:
        self.state = self.state if self.failed else "closed"
        self.ready.set()
        self.ended.set()

    def stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        return frozenset(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        assert self.limits.vocab_size is not None
        check_vocabulary(params, self.limits.vocab_size)
        if len(prompt) >= self.max_model_len:
            raise RequestError(f"the prompt has {len(prompt)} tokens, and the model allows {self.max_model_len}")

    def learn(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def compiled(self, params: SamplingParams) -> SamplingParams:
        if params.structured_outputs is not None and self.vocabulary is None:
            raise RequestError("structured_outputs need a tokenizer, and the model has none")
        return params

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, on_event: Callable[[Event], None] | None = None
    ) -> Stream:
        self.check(prompt, params)
        self.seen.append((list(prompt), params))
        cancelled = threading.Event()
        stream = Stream(cancelled.set, on_event)
        threading.Thread(target=self._answer, args=(prompt, params, stream, cancelled), daemon=True).start()
        return stream

    def _answer(
        self, prompt: Sequence[int], params: SamplingParams, stream: Stream, cancelled: threading.Event
    ) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        answer = [*self.answer, EOS][: params.max_tokens]
        for i, token in enumerate(cycle(self.answer) if self.endless else answer):
            if i == self.fails_after:
                assert self.error is not None
                self.fail(self.error)
                stream.put(self.error)
                break
            time.sleep(0.01 if self.endless else self.delay_s)
            if cancelled.is_set():
                self.given_up += 1
                break
            is_end = token in self.stop_token_ids(params)
            is_last = is_end or (not self.endless and i == len(answer) - 1)
            reason: FinishReason | None = ("stop" if is_end else "length") if is_last else None
            logprobs = _logprobs([token], params.logprobs)
            scored = _logprobs(prompt[1:], params.prompt_logprobs) if i == 0 else ()
            stream.put(Output((token,), logprobs, scored, reason))
            if is_last:
                break
        self.running -= 1


def _logprobs(tokens: Sequence[int], num_top: int | None) -> tuple[PositionLogprobs, ...]:
    if num_top is None:
        return ()
    top = tuple(TokenLogprob(97 + i, -(97.0 + i), i + 1) for i in range(num_top))  # "a", "b" …
    return tuple(PositionLogprobs(TokenLogprob(token, -float(token), 9), top) for token in tokens)


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=200)


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def serving(
    engine: FakeEngine | Engine, model_path: Path, settings: Settings | None = None, *, ready: bool = True, **more: int
) -> Iterator[str]:
    """Serve in a thread; yield the base address. ``more`` is for `serving_app`."""
    tokenizer = Tokenizer(model_path, renderers=RENDERERS)
    service = Service(cast(Engine, engine), tokenizer, ["toy", "alias"], settings)
    if ready:
        if isinstance(engine, FakeEngine):
            engine.ready.set()
        service.load()
    with serving_app(service, **more) as url:
        yield url


@contextmanager
def serving_app(service: Service, *, send_buffer: int | None = None) -> Iterator[str]:
    """Serve a service in a thread; yield the base address. Closes the service. The kernel buffers ``send_buffer`` bytes."""
    bound: socket.socket = listen("127.0.0.1", 0)
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    config = http_config(service)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        service.close()
