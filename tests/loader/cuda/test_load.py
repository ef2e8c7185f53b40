"""Onto GPUs: the same bytes as `load_rank` gives on the host, in every layout; and what happens when something fails.

Where there is no GPU, the host stands in for two (`tests.loader.cuda.host`): all but the driver is tested there as well.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import Checkpoint, LocalStore, open_checkpoint
from loadmaster.cli.main import main
from loadmaster.errors import LayoutError, LoadError
from loadmaster.loader import load_rank, load_ranks
from loadmaster.loader.cuda import transfer
from loadmaster.loader.cuda.ring import Ring
from loadmaster.loader.cuda.sender import Sender
from loadmaster.loader.memory import DeviceArena
from loadmaster.loader.readers import Task
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import quick
from tests.loader.cuda.host import pretend
from tests.loader.reference import differences

QUICK = (
    *("llama", "llama-nvfp4", "llama-w8a8", "llama-gptq-act-order", "gemma-3", "phi-4", "qwen3.5-moe", "mixtral-awq"),
    *("glm-5.1-fp8", "kimi-k2-int4", "deepseek-v3-modelopt-fp4", "gpt-oss", "llama-4", "granite-moe-shared", "inkling"),
)
"""A preset of each way to store and to divide weights."""

LAYOUTS = [
    ParallelLayout(),
    ParallelLayout(pipeline_parallel_size=2),
    ParallelLayout(tensor_parallel_size=2),
    ParallelLayout(tensor_parallel_size=2, enable_expert_parallel=True),
    ParallelLayout(pipeline_parallel_size=2, tensor_parallel_size=2),
]


REAL = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    if not REAL:
        pretend(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arena is full of 0xA5 before anything is loaded: a byte that is not written shows."""
    made = DeviceArena.__init__

    def init(self: DeviceArena, *args: object) -> None:
        made(self, *args)  # type: ignore[arg-type]
        for tensor in self.tensors.values():
            tensor.view(torch.uint8).fill_(0xA5)
        torch.cuda.synchronize(None)

    monkeypatch.setattr(DeviceArena, "__init__", init)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path, num_shards=2)
    return tmp_path


def assert_same(plan: ProvenPlan, devices: dict[int, str], **options: object) -> None:
    loaded = load_ranks(plan, devices, **options)  # type: ignore[arg-type]
    for rank in devices:
        expected = load_rank(plan, rank).tensors
        assert loaded[rank].tensors.keys() == expected.keys()
        host = {s.name for s in plan.rank(rank).specs if s.host}
        for name, tensor in loaded[rank].tensors.items():
            assert not REAL or str(tensor.device) == ("cpu" if name in host else devices[rank])
            assert torch.equal(tensor.cpu().view(torch.uint8), expected[name].view(torch.uint8)), (rank, name)


def proven(checkpoint: Checkpoint, layout: ParallelLayout | None = None, dtype: str | None = None) -> ProvenPlan:
    return prove(build_plan(checkpoint, layout, dtype=dtype)).require_proven()


def layouts(path: Path) -> Iterator[ProvenPlan]:
    for layout in LAYOUTS:
        try:
            yield proven(open_checkpoint(path), layout)
        except LayoutError:
            continue


def test_memory_that_is_there_already_is_filled(tiny: Path) -> None:
    plan = proven(open_checkpoint(tiny), ParallelLayout(1, 2))
    expected = load_rank(plan, 1).tensors
    own = {name: torch.empty_like(t, device="cuda" if REAL else "cpu") for name, t in expected.items()}
    load_ranks(plan, {1: "cuda:0"}, tensors={1: own})
    assert differences({n: t.cpu() for n, t in own.items()}, expected) == []


@pytest.mark.usefixtures("poisoned")
class TestBytes:
    @pytest.mark.parametrize("preset", quick(PRESETS, *QUICK))
    def test_every_family_in_every_layout(self, preset: str, tmp_path: Path) -> None:
        write_tiny(PRESETS[preset], tmp_path, num_shards=2)
        with Ring(8, 2**16) as ring:
            for plan in layouts(tmp_path):
                assert_same(plan, dict.fromkeys(range(plan.num_ranks), "cuda:0"), ring=ring)

    def test_blocks_that_do_not_divide(self, tmp_path: Path) -> None:
        write_tiny(PRESETS["gpt-oss"], tmp_path, num_shards=2, overrides={"intermediate_size": 160})
        plan = proven(open_checkpoint(tmp_path), ParallelLayout(tensor_parallel_size=4))
        assert_same(plan, dict.fromkeys(range(4), "cuda:0"))

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    def test_cast_and_dequantised(self, dtype: str, tiny: Path) -> None:
        plan = proven(open_checkpoint(tiny), dtype=dtype)
        assert_same(plan, {0: "cuda:0"})

    def test_past_the_page_cache(self, tiny: Path) -> None:
        plan = proven(open_checkpoint(tiny), ParallelLayout(tensor_parallel_size=2))
        assert_same(plan, {0: "cuda:0", 1: "cuda:0"}, io="direct")

    def test_with_little_staging_and_one_reader(self, tiny: Path) -> None:
        assert_same(proven(open_checkpoint(tiny)), {0: "cuda:0"}, num_readers=1, staging_bytes=1)

    def test_one_copy_at_a_time_where_the_driver_has_no_batches(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer.Driver, "has_batches", property(lambda self: False))
        assert_same(proven(open_checkpoint(tiny)), {0: "cuda:0"})

    def test_progress_adds_up(self, tiny: Path) -> None:
        plan = proven(open_checkpoint(tiny), ParallelLayout(tensor_parallel_size=2))
        done: list[int] = []
        loaded = load_ranks(plan, {0: "cuda:0", 1: "cuda:0"}, on_progress=done.append)
        assert sum(done) == sum(r.report.needed_bytes for r in loaded.values())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.skipif(REAL and torch.cuda.device_count() < 2, reason="there is one GPU")
class TestTwoDevices:
    @pytest.mark.parametrize("preset", ["glm-5.1-fp8", "qwen3-moe", "gpt-oss", "llama", "kimi-k2-int4", "gemma-3"])
    def test_what_both_need_reaches_both(self, preset: str, tmp_path: Path) -> None:
        write_tiny(PRESETS[preset], tmp_path, num_shards=2)
        for plan in layouts(tmp_path):
            if plan.num_ranks == 2:
                assert_same(plan, {0: "cuda:0", 1: "cuda:1"})
                assert_same(plan, {0: "cuda:1", 1: "cuda:0"}, io="direct")


class Failing(LocalStore):
    """A store that fails at the read ``number``."""

    def __init__(self, folder: Path, number: int, error: BaseException) -> None:
        super().__init__(folder)
        self.number, self.error = number, error

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        self.number -= 1
        if self.number == 0:
            raise self.error
        super().readinto(name, start, buffers)


class TestFaults:
    @pytest.mark.parametrize("number", [1, 2, 7])
    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), LoadError("it ends at byte 7")])
    def test_a_read_that_fails_is_named_and_nothing_stays_pinned(
        self, tiny: Path, number: int, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed: list[Ring] = []
        close = Ring.close
        monkeypatch.setattr(Ring, "close", lambda self: (closed.append(self), close(self))[1])
        plan = proven(open_checkpoint(tiny))
        before = torch.cuda.memory_allocated() if REAL else 0
        with Failing(tiny, number, error) as store, pytest.raises(LoadError) as failed:
            load_ranks(plan, {0: "cuda:0"}, store=store, io="buffered", staging_bytes=1)
        message = str(failed.value)
        assert "rank 0" in message
        assert ".safetensors" in message
        assert "model." in message
        assert str(error) in message
        assert len(closed) == 1
        error.__traceback__ = None  # its frames hold what was loaded
        del failed
        gc.collect()
        assert not REAL or torch.cuda.memory_allocated() == before

    def test_a_reader_that_raises_something_else_ends_the_load(self, tiny: Path) -> None:
        plan = proven(open_checkpoint(tiny))
        with Failing(tiny, 3, ZeroDivisionError("a bug")) as store, pytest.raises(ZeroDivisionError):
            load_ranks(plan, {0: "cuda:0"}, store=store, io="buffered", staging_bytes=1)

    @pytest.mark.parametrize("failing", ["_operation", "send"])
    def test_windows_and_what_is_computed_beside_them_end_each_other(
        self, tiny: Path, failing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = proven(open_checkpoint(tiny))
        classes = {"_operation": transfer.Transfer, "send": Sender}
        calls = dict.fromkeys(classes, 0)
        noticed: list[list[BaseException]] = []  # the failures that both sides look at
        run_tasks = transfer.run_tasks

        def tell(tasks: Iterator[Task], readers: int, failures: list[BaseException]) -> None:
            noticed.append(failures)
            run_tasks(tasks, readers, failures)

        monkeypatch.setattr(transfer, "run_tasks", tell)

        def patched(name: str) -> Callable[..., None]:
            original = getattr(classes[name], name)

            def call(*args: object) -> None:
                calls[name] += 1
                if name == failing:
                    raise LoadError("it broke")
                until = time.monotonic() + 300
                while not (noticed and noticed[0]):
                    assert time.monotonic() < until
                    time.sleep(0.001)
                original(*args)

            return call

        for name, owner in classes.items():
            monkeypatch.setattr(owner, name, patched(name))
        with pytest.raises(LoadError, match="it broke"):
            load_ranks(plan, {0: "cuda:0"}, io="buffered", staging_bytes=1, num_readers=3)
        assert sum(calls.values()) < 20  # of 108 windows and 6 operations: those under way

    @pytest.mark.parametrize("io", ["buffered", "direct"])
    def test_a_file_that_shrinks_while_it_is_read(self, tiny: Path, io: str) -> None:
        plan = proven(open_checkpoint(tiny))
        file = tiny / plan.checkpoint.files[0].name

        class Blind(LocalStore):
            def stamp(self, name: str) -> tuple[int, int]:
                planned = next(f for f in plan.checkpoint.files if f.name == name)
                return planned.size, planned.mtime_ns

        os.truncate(file, file.stat().st_size - 1000)
        with Blind(tiny) as store, pytest.raises(LoadError, match=r"rank 0.*ends at byte"):
            load_ranks(plan, {0: "cuda:0"}, store=store, io=io)  # type: ignore[arg-type]

    def test_a_file_that_changed_is_refused(self, tiny: Path) -> None:
        plan = proven(open_checkpoint(tiny))
        os.utime(tiny / plan.checkpoint.files[0].name, (1, 1))
        with pytest.raises(LoadError, match="changed since it was planned"):
            load_ranks(plan, {0: "cuda:0"})

    @pytest.mark.gpu
    def test_too_little_device_memory_is_said_before_anything_is_read(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = proven(open_checkpoint(tiny))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        with pytest.raises(LoadError, match=r"rank 0: its parameters take [\d,]+ bytes, and cuda:0 has 1,000 free"):
            load_ranks(plan, {0: "cuda:0"})

    @pytest.mark.gpu
    def test_ctrl_c_ends_it_and_what_is_not_read_yet_stays_unread(self, tiny: Path) -> None:
        code = f"""
import signal, time, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from loadmaster.checkpoint import Checkpoint, LocalStore, open_checkpoint
from loadmaster.loader import load_ranks
from loadmaster.plan import build_plan, prove
class Slow(LocalStore):
    def readinto(self, *args):
        print("reading", flush=True)
        time.sleep(5)
        super().readinto(*args)
path = {str(tiny)!r}
plan = prove(build_plan(open_checkpoint(path))).require_proven()
load_ranks(plan, {{0: "cuda:0"}}, store=Slow(path), io="buffered", staging_bytes=1, num_readers=2)
"""
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        process.wait(timeout=600)
        assert time.monotonic() - begin < 120  # of the five minutes that the reads would take
        assert process.returncode != 0


class TestCommand:
    @pytest.mark.parametrize("num_devices", [1, 2])
    def test_load_reports_every_rank_with_the_digests_of_the_host(
        self, num_devices: int, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not REAL:
            monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
        command = ["load", str(tiny), "-tp", "2", "--json", "--digest"]
        assert main(command) == 0
        on_host = json.loads(capsys.readouterr().out)
        assert main([*command, "--device", "cuda", "--io", "buffered", "--num-readers", "3"]) == 0
        on_device = json.loads(capsys.readouterr().out)
        assert [r["params"] for r in on_device["ranks"]] == [r["params"] for r in on_host["ranks"]]
        assert {r["io"] for r in on_device["ranks"]} == {"buffered: asked for"}
        for r in on_device["ranks"]:
            assert r["phases"]["load"] <= r["seconds"]
            assert r["staging_bytes"] < 2**26

    @pytest.mark.parametrize("layout", ["1", "3"])
    def test_memory_is_given_back_whatever_happens(
        self, layout: str, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not REAL:
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        closed: list[Ring] = []
        close = Ring.close
        monkeypatch.setattr(Ring, "close", lambda self: (closed.append(self), close(self))[1])
        assert (main(["load", str(tiny), "-tp", layout, "--device", "cuda", "--io", "buffered"]) == 0) == (
            layout == "1"
        )
        assert len(closed) == 1

    def test_and_says_how_in_words(
        self, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not REAL:
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert main(["load", str(tiny), "--device", "cuda"]) == 0
        said = capsys.readouterr().out
        assert "rank 0 on cuda:0" in said
        assert "seconds: allocate" in said.replace("\n", " ")
        assert "peak:" in said
