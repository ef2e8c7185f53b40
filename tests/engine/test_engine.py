"""The engine over real processes, most of them forked, with the toy model of `tests.workers.toy`."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest

from loadmaster.engine import Capacity, Engine, RankProgress
from loadmaster.engine.engine import refuse_options
from loadmaster.errors import (
    ArgumentError,
    ConfigError,
    LoadError,
    LoadmasterError,
    RequestError,
    RunError,
    UnsupportedError,
)
from loadmaster.workers import SamplingParams, process
from tests.workers.processes import is_worker, newest_worker
from tests.workers.toy import BUILDER, BYTES_A_STAGE, REFUSED_SLOTS, VOCAB, ToyPlan, continuation

if TYPE_CHECKING:
    from loadmaster.plan import Plan

pytestmark = pytest.mark.usefixtures("forked_workers")
GREEDY = SamplingParams(max_tokens=4, temperature=0)
LIMIT_S = 200
"""Within which everything must be over when a worker is lost: on a busy machine too, and before what hangs ends."""


def start(plan: ToyPlan, **options: Any) -> Engine:
    return Engine(cast("Plan", plan), builder=BUILDER, **options)


@contextmanager
def nothing_left() -> Iterator[None]:
    """See that the block leaves no process behind, running or zombie."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture(scope="module")
def engine(forked_workers: None) -> Iterator[Engine]:
    with nothing_left(), start(ToyPlan(3, eos=50), capacity=Capacity(max_num_batched_tokens=4, block_size=4)) as engine:
        engine.wait_ready()
        yield engine


# What a running engine does ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("started_workers")
def test_one_stage_needs_no_group() -> None:
    with nothing_left(), start(ToyPlan(1)) as engine:
        assert list(engine.generate([3, 4, 5], GREEDY)) == continuation([3, 4, 5], 1, 4) == [6, 7, 8, 9]
        assert newest_worker().is_running()
    assert engine.state == "closed"
    assert engine.wait_ended() is None
    engine.close()  # again
    with pytest.raises(RunError, match="closed"):
        next(engine.generate([1], GREEDY))


def test_stages_in_a_row_answer_as_one_would(engine: Engine) -> None:
    assert engine.state == "ready"
    assert engine.progress() == (3 * BYTES_A_STAGE, 3 * BYTES_A_STAGE)
    assert engine.loading().ranks == tuple(RankProgress(i, i, BYTES_A_STAGE, BYTES_A_STAGE) for i in range(3))
    assert list(engine.generate([3, 4, 5], GREEDY)) == continuation([3, 4, 5], 3, 4) == [11, 17, 23, 29]


@pytest.mark.parametrize("num_prompt_tokens", [1, 4, 5, 12, 13, 40])
def test_a_prompt_may_be_computed_in_chunks_of_four(engine: Engine, num_prompt_tokens: int) -> None:
    prompt = list(range(1, num_prompt_tokens + 1))
    assert list(engine.generate(prompt, GREEDY)) == continuation(prompt, 3, 4)


def test_a_closed_iterator_leaves_the_engine_usable(engine: Engine) -> None:
    for _ in range(3):
        given_up = engine.generate(range(1, 30), SamplingParams(max_tokens=20, temperature=0))
        assert next(given_up) == 35
        given_up.close()
    assert list(engine.generate([3], GREEDY)) == continuation([3], 3, 4)


def test_many_requests_are_answered_together(engine: Engine) -> None:
    prompts = [[i + 1] * (i % 7 + 1) for i in range(40)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    streams = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        outputs = list(stream)
        assert [t for o in outputs for t in o.token_ids] == continuation(prompt, 3, 12)
        assert [o.finish_reason for o in outputs] == [None] * 11 + ["length"]
        timing = stream.timing
        assert timing.first_token is not None
        assert timing.ended is not None
        assert timing.arrived <= timing.first_token <= timing.ended
    assert engine.statistics().num_running == engine.statistics().num_used_pages == 0


@pytest.mark.slow
def test_ten_thousand_requests_leave_no_page_in_use() -> None:
    """Of which one in five is cancelled, over a cache so small that requests are preempted."""
    random = Random(0)
    capacity = Capacity(max_num_seqs=64, block_size=4, num_gpu_blocks_override=100)
    with nothing_left(), start(ToyPlan(2), capacity=capacity) as engine:
        for _ in range(100):
            streams = []
            for _ in range(100):
                prompt = [random.randrange(VOCAB) for _ in range(random.randint(1, 20))]
                params = SamplingParams(max_tokens=random.randint(1, 12), temperature=0, ignore_eos=True)
                streams.append((prompt, params, engine.submit(prompt, params)))
            for prompt, params, stream in streams:
                if random.random() < 0.2:
                    stream.cancel()
                    continue
                assert params.max_tokens is not None
                expected = continuation(prompt, 2, params.max_tokens)
                assert [t for o in stream for t in o.token_ids] == expected
        assert list(engine.generate([3], GREEDY)) == continuation([3], 2, 4)
        statistics = engine.statistics()
    assert statistics.num_used_pages == statistics.num_running == statistics.num_waiting == 0
    assert statistics.counters.preemptions > 0


def test_a_cancelled_request_frees_its_pages_and_the_others_go_on(engine: Engine) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    given_up, kept = engine.submit([1], params), engine.submit([2], params)
    next(iter(given_up))
    given_up.cancel()
    assert len(list(kept)) == 40
    assert list(engine.generate([3], GREEDY)) == continuation([3], 3, 4)
    assert engine.statistics().num_used_pages == 0


def test_the_end_token_is_the_last_unless_it_is_ignored(engine: Engine) -> None:
    greedy = SamplingParams(max_tokens=10, temperature=0)
    assert list(engine.generate([38], greedy)) == [44, 50]
    ignoring = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, stop_token_ids=(62,))
    assert list(engine.generate([38], ignoring)) == [44, 50, 56, 62]
    also = SamplingParams(max_tokens=10, temperature=0, stop_token_ids=(44,))
    assert list(engine.generate([38], also)) == [44]


def test_an_answer_ends_where_the_model_does(engine: Engine) -> None:
    unbounded = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    assert len(list(engine.generate(list(range(1, 24)), unbounded))) == 64 - 23
    assert len(list(engine.generate([5] * 63, GREEDY))) == 1


def test_statistics_count_what_was_done_up_to_now(engine: Engine) -> None:
    before = engine.statistics(within_s=LIMIT_S)
    stream = engine.submit([7, 8, 9], GREEDY)
    assert len(list(stream)) == 4
    now = engine.statistics(within_s=LIMIT_S)
    for old, new in zip(before.stages, now.stages, strict=True):
        assert new.num_tokens - old.num_tokens == 3 + 4 - 1, "the last token is not computed"
        assert new.busy_s > old.busy_s
    assert now.counters.output_tokens - before.counters.output_tokens == 4
    assert 1 <= now.most_used_pages <= now.num_pages
    timing = stream.timing
    assert timing.scheduled is not None and timing.first_token is not None
    assert timing.arrived <= timing.scheduled <= timing.first_token


@pytest.mark.parametrize("settings", [{"stop_token_ids": (VOCAB,)}, {"logit_bias": {VOCAB: 1}}])
def test_params_that_name_unknown_tokens_are_refused_at_once(engine: Engine, settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(settings))} has token id {VOCAB}"):
        engine.submit([1], SamplingParams(**settings))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1] * 64, "64 tokens, and the model allows 64 tokens"),
        ([1] * 100, "100 tokens, and the model allows 64 tokens"),
        ([1, None], "the prompt has None among its token ids, expected integers"),
        ([1, VOCAB], f"token id {VOCAB} is not in the model's vocabulary of {VOCAB}"),
        ([-1], "token id -1"),
    ],
)
def test_an_impossible_prompt_is_refused_at_once(engine: Engine, prompt: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate(prompt, GREEDY)
    assert engine.state == "ready"


def test_a_cache_that_does_not_fit_ends_the_start() -> None:
    capacity = Capacity(kv_cache_memory_bytes=8 * REFUSED_SLOTS)
    with start(ToyPlan(), capacity=capacity) as engine:
        with pytest.raises(LoadError, match="not enough memory for a KV cache of 7,808 bytes: DefaultCPUAllocator"):
            engine.wait_ready()
        assert engine.state == "failed"


def test_a_cache_for_less_than_one_request_is_refused_with_what_would_do() -> None:
    with start(ToyPlan(), capacity=Capacity(kv_cache_memory_bytes=8 * 40)) as engine:
        with pytest.raises(ConfigError, match="32 tokens fit, and a request may have 64") as caught:
            engine.wait_ready()
        assert caught.value.hint == "pass at least 512, or --max-model-len 32"
        assert isinstance(engine.failed, ConfigError)


def test_max_model_len_shortens_and_never_lengthens() -> None:
    with pytest.raises(ConfigError, match="65, expected at most 64, the model's max_position_embeddings"):
        start(ToyPlan(), max_model_len=65)
    with start(ToyPlan(), max_model_len=8) as engine, pytest.raises(RequestError, match="the model allows 8 tokens"):
        engine.generate([1] * 9, GREEDY)


def test_what_cannot_be_run_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"speculative-config: method 'ngram' is not supported"):
        refuse_options({"method": "ngram", "num_speculative_tokens": 2})
    with pytest.raises(UnsupportedError, match=r"speculative-config: draft_tensor_parallel_size is not supported"):
        refuse_options({"method": "mtp", "draft_tensor_parallel_size": 1})
    with pytest.raises(ConfigError, match=r"num_speculative_tokens is 0, expected at least 1"):
        refuse_options({"method": "mtp", "num_speculative_tokens": 0})
    refuse_options({"method": "deepseek_mtp"})
    with pytest.raises(UnsupportedError, match=r"data-parallel-size 2.*not supported yet"):
        refuse_options(None, 2)
    refuse_options(None)


def test_the_processes_of_a_launcher_are_as_many_as_ranks_and_the_engine_is_on_rank_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "LOADMASTER_KEY": "k" * 16,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with (
        nothing_left(),
        pytest.raises(ConfigError, match=r"started 4 processes .* the layout has 2 ranks: 2 stages of 1"),
    ):
        start(ToyPlan(2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with nothing_left(), pytest.raises(ArgumentError, match="rank 1 of 2, and the engine is on rank 0"):
        start(ToyPlan(2))
    monkeypatch.delenv("LOADMASTER_KEY")
    with nothing_left(), pytest.raises(ConfigError, match=r"rank 1 of 2, and LOADMASTER_KEY is not set"):
        start(ToyPlan(2))
    monkeypatch.setenv("WORLD_SIZE", "1")
    start(ToyPlan(2)).close()


# How it ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_stages", "faults", "kind", "message"),
    [
        (1, {0: "load_raises"}, LoadError, r"stage 0 of 1: OSError: the disk is on fire \(toy.py:\d+\)"),
        pytest.param(
            *(2, {1: "load_refuses"}, ConfigError, "^no such thing\n\nhint: plan again$"), marks=pytest.mark.slow
        ),
        (2, {0: "load_hangs", 1: "load_killed"}, LoadError, r"stage 1 of 2 \(process \d+\) was killed by SIGKILL"),
    ],
)
def test_a_worker_lost_while_loading_ends_the_run(
    num_stages: int, faults: dict[int, str], kind: type[LoadmasterError], message: str
) -> None:
    began = time.monotonic()
    with nothing_left(), start(ToyPlan(num_stages, faults=faults)) as engine:
        with pytest.raises(kind) as caught:
            engine.wait_ready()
        assert type(caught.value) is kind
        assert re.search(message, str(caught.value))
        assert engine.wait_ended() is caught.value is engine.failed
        assert engine.state == "failed"
    assert time.monotonic() - began < LIMIT_S


@pytest.mark.parametrize(
    ("num_stages", "faults", "message"),
    [
        (2, {1: "step_raises"}, r"^stage 1 of 2: ValueError: a bug \(toy.py:\d+\)$"),
        (2, {0: "step_exits"}, r"^stage 0 of 2 \(process \d+\) ended unexpectedly, with exit status 1$"),
        pytest.param(
            *(3, {1: "step_killed", 2: "step_hangs"}, r"^stage 1 of 3 \(process \d+\) was killed by SIGKILL"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_worker_lost_in_a_step_ends_the_run(num_stages: int, faults: dict[int, str], message: str) -> None:
    with nothing_left(), start(ToyPlan(num_stages, faults=faults)) as engine:
        engine.wait_ready()
        began = time.monotonic()
        with pytest.raises(RunError) as caught:
            list(engine.generate([1, 2], GREEDY))
        assert re.search(message, str(caught.value))
        assert engine.wait_ended() is engine.failed is caught.value
        with pytest.raises(RunError):
            next(engine.generate([1, 2], GREEDY))
        engine.close()
        assert time.monotonic() - began < LIMIT_S


def test_a_request_whose_logits_are_nan_fails_alone() -> None:
    with start(ToyPlan(1, faults={0: "nan"})) as engine:
        for _ in range(2):
            with pytest.raises(RequestError, match="the model's logits contain NaN"):
                list(engine.generate([1], GREEDY))
        assert engine.state == "ready"


def test_a_worker_lost_between_requests_ends_the_run() -> None:
    with nothing_left(), start(ToyPlan(2)) as engine:
        engine.wait_ready()
        began = time.monotonic()
        newest_worker().kill()
        error = engine.wait_ended()
        assert isinstance(error, RunError)
        assert "killed by SIGKILL" in str(error)
        assert time.monotonic() - began < LIMIT_S


def test_a_stopped_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(process, "STOPPED_FOR_S", 0.5)
    with nothing_left(), start(ToyPlan(1)) as engine, ThreadPoolExecutor(1) as thread:
        engine.wait_ready()
        worker = newest_worker()
        worker.suspend()
        ended = thread.submit(engine.wait_ended)
        try:
            error = ended.result(LIMIT_S)
        finally:
            with suppress(psutil.NoSuchProcess):  # as it is to be; else nothing else would end it
                worker.kill()
        assert isinstance(error, RunError)
        assert re.search(rf"\(process {worker.pid}\) was stopped by a signal and not continued", str(error))
        assert engine.state == "failed"


def test_a_worker_that_hangs_in_a_step_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(process, "HUNG_FOR_S", 0.5)
    with nothing_left(), start(ToyPlan(2, faults={1: "step_hangs"})) as engine:
        streams = [engine.submit([n], GREEDY) for n in range(1, 4)]
        for stream in streams:
            with pytest.raises(RunError, match=r"^stage 1 of 2 \(process \d+\) has hung in a step"):
                list(stream)
        assert engine.state == "failed"


def test_a_worker_that_is_stopped_for_a_moment_goes_on(engine: Engine) -> None:
    worker = newest_worker()
    worker.suspend()
    time.sleep(0.1)
    worker.resume()
    assert list(engine.generate([3], GREEDY)) == continuation([3], 3, 4)


@pytest.mark.usefixtures("started_workers")
def test_close_does_not_wait_for_a_worker_that_never_reads_its_job() -> None:
    plan = ToyPlan(1, disagree="x" * 10**7)  # more than a pipe holds
    with ThreadPoolExecutor(1) as thread:
        before = set(psutil.Process().children())
        engine = start(plan)
        until = time.monotonic() + LIMIT_S
        while not (workers := {p for p in set(psutil.Process().children()) - before if is_worker(p)}):
            assert time.monotonic() < until
            time.sleep(0.001)
        (worker,) = workers
        worker.suspend()
        closed = thread.submit(engine.close)
        try:
            closed.result(LIMIT_S)
        finally:
            with suppress(psutil.NoSuchProcess):
                worker.kill()


def test_ranks_that_planned_differently_read_nothing(tmp_path: Path) -> None:
    plan = ToyPlan(2, disagree=str(tmp_path / "mark"))
    with (
        nothing_left(),
        start(plan) as engine,
        pytest.raises(LoadError, match=r"have different plans: [ab]{16} on rank 0, [ab]{16} on rank 1"),
    ):
        engine.wait_ready()
    assert engine.progress()[0] == 0


def test_close_ends_a_worker_that_hangs_and_the_request_with_it() -> None:
    with nothing_left(), ThreadPoolExecutor(1) as thread, start(ToyPlan(1, faults={0: "step_hangs"})) as engine:
        tokens = engine.generate([1], GREEDY)
        next(tokens)
        answer = thread.submit(next, tokens)
        assert not wait([answer], timeout=0.5).done
        began = time.monotonic()
        engine.close()
        with pytest.raises(RunError, match="closed"):
            answer.result(LIMIT_S)
        assert time.monotonic() - began < LIMIT_S


# The engine's process ends --------------------------------------------------------------------------------------------

SCRIPT = """
import json, signal, sys
from pathlib import Path
from loadmaster.architectures import llama
from loadmaster.parallel import ParallelLayout
from loadmaster.engine import Capacity, Engine
from loadmaster.workers import SamplingParams

assert "torch" not in sys.modules
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored

class Plan:  # as tests.workers.toy.ToyPlan, which imports torch
    family = llama.FAMILY
    layout = ParallelLayout(2)
    config = {"max_position_embeddings": 1_000_000}
    model_path = Path("/nowhere")
    def rank(self, rank):
        return type("Rank", (), {"needed_bytes": 1000})
    def to_json(self):
        return json.dumps({"num_stages": 2, "num_slots": 1, "faults": {}, "disagree": None}).encode()

engine = Engine(Plan(), builder="tests.workers.toy:ToyBuilder")
engine.wait_ready()
print("ready", flush=True)
for token in engine.generate([1], SamplingParams(max_tokens=None, temperature=0)):
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_workers_end_with_the_engine_however_it_ends(end: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        os.killpg(process.pid, end) if end == signal.SIGINT else process.send_signal(end)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert psutil.wait_procs(workers, timeout=LIMIT_S)[1] == []
    finally:
        process.kill()
    if end == signal.SIGINT:
        assert errors.count("Traceback") == 1, errors
        assert errors.rstrip().endswith("KeyboardInterrupt")
    else:
        assert errors == ""
