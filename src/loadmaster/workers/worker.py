"""One rank as a process: ``python -m loadmaster.workers.worker FD``, started by `loadmaster.workers.process`.

FD is its end of a pipe to the engine's process; its job is on standard input. The worker checks that all ranks have the
same plan, loads its rank, builds its stage, and then carries out the messages from the pipe, in order. It prints nothing: it
sends an error over the pipe, and the engine's process shows it once. When the pipe ends, so does the worker. It has no other
connections than the pipe and the sockets that it inherits, and listens on none.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadmaster.distributed.lifeline import die_with_parent
from loadmaster.distributed.peer import PeerLostError
from loadmaster.errors import LoadError, LoadmasterError, RunError
from loadmaster.host_memory import free_bytes, is_out_of_memory
from loadmaster.workers.batch import Batch
from loadmaster.workers.encoding import dumps, loads
from loadmaster.workers.messages import (
    Allocate,
    Allocated,
    Drop,
    Failed,
    Job,
    Prepare,
    Prepared,
    Progress,
    Ready,
    Report,
    Reported,
    Vocabulary,
)
from loadmaster.workers.process import JOB_LENGTH_BYTES

if TYPE_CHECKING:
    import torch

    from loadmaster.distributed.group import PipelineGroup
    from loadmaster.distributed.mesh import Mesh
    from loadmaster.distributed.tensor import TensorGroup
    from loadmaster.workers.builder import Stage
    from loadmaster.workers.runner import StageRunner

PROGRESS_EVERY_S = 0.05

USAGE_EVERY_S = 0.5
"""How often a worker that computes reports how it spends its time."""


def main(fd: int) -> None:
    """Run until the pipe ends or an error occurs. Never returns."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or a service manager sends them to all processes
        signal.signal(number, signal.SIG_IGN)  # the engine's process ends the workers, when requests have finished
    os.dup2(sys.stderr.fileno(), 1)  # standard output is for the command's results
    os.set_inheritable(fd, False)
    job = _read_job()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    pipe = Pipe(Connection(fd))
    phase: type[LoadmasterError] = LoadError
    try:
        gc.disable()  # importing torch makes a million objects that stay: looking at them took a tenth of its time
        import torch

        gc.freeze()
        gc.enable()
        torch.set_num_threads(job.num_threads)
        pipeline, mesh = _join(job)
        stage = _load(job, pipeline, mesh, pipe)
        pipe.send(Ready(stage.page_bytes(1), free_on(stage.device, job.num_local_ranks)))
        with torch.inference_mode():
            runner = _allocate(stage, pipeline, mesh, job, pipe)
            phase = RunError
            _serve(runner, pipe)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the engine has ended, and the pipe with it
            pipe.send(failure(error, job, phase))
        sys.stderr.flush()
        os._exit(1)


def _read_job() -> Job:
    """Read the job from standard input. If it ends before it is complete, the engine's process has ended: so does this one."""
    length = sys.stdin.buffer.read(JOB_LENGTH_BYTES)
    num_bytes = int.from_bytes(length, "little")
    data = sys.stdin.buffer.read(num_bytes)
    if len(length) < JOB_LENGTH_BYTES or len(data) < num_bytes:
        os._exit(0)
    job: Job = loads(data)
    return job


class Pipe:
    """The worker's end of the pipe. A separate thread ends the process when the pipe ends, during a step too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        threading.Thread(target=self._end_with, name="pipe", daemon=True).start()

    def next(self) -> Any:
        """Wait for the next message and return it. For one thread."""
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        return loads(data)

    def send(self, message: object) -> None:
        """Send ``message``. May be called from any thread."""
        with self._lock:
            self._connection.send_bytes(dumps(message))

    def _end_with(self) -> None:
        """Wait for the end alone: messages do not wake this thread, which would delay each by the time to change threads."""
        ends = select.poll()
        ends.register(self._connection.fileno(), select.POLLRDHUP)
        while not ends.poll():
            pass
        os._exit(0)


class ProgressReport:
    """Adds up the bytes that reading threads report, and sends the sum every `PROGRESS_EVERY_S`."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._num_bytes = 0
        self._sent = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """Add bytes that were loaded."""
        with self._lock:
            self._num_bytes += num_bytes
            if time.monotonic() - self._sent >= PROGRESS_EVERY_S:
                self._send()

    def finish(self) -> None:
        """Send the rest."""
        with self._lock:
            self._send()

    def _send(self) -> None:
        if self._num_bytes:
            self._pipe.send(Progress(self._num_bytes))
        self._num_bytes, self._sent = 0, time.monotonic()


def _join(job: Job) -> tuple[PipelineGroup, Mesh | None]:
    from loadmaster.distributed.group import PipelineGroup
    from loadmaster.distributed.mesh import Mesh

    at = job.place
    pipeline = PipelineGroup(at.stage, at.num_stages, _inherited(job.previous), _inherited(job.following))
    return pipeline, Mesh(at.slot, [_inherited(fd) for fd in job.peers]) if at.num_slots > 1 else None


def _inherited(fd: int | None) -> socket.socket | None:
    """Return the socket that was inherited as ``fd``. Child processes of this one do not inherit it."""
    if fd is None:
        return None
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


def free_on(device: torch.device, num_local_ranks: int) -> int:
    """Return the memory that is available on a device: on the CPU, this rank's share of the host's."""
    if device.type == "cuda":
        from torch import cuda

        return int(cuda.mem_get_info(device)[0])
    return (free_bytes() or 0) // num_local_ranks


def _load(job: Job, pipeline: PipelineGroup, mesh: Mesh | None, pipe: Pipe) -> Stage:
    from loadmaster.distributed.agreement import agree

    module, _, name = job.builder.partition(":")
    builder = getattr(importlib.import_module(module), name)(job.plan)
    agree(builder.hash, pipeline, mesh)
    progress = ProgressReport(pipe)
    gpus = _gpus(job)
    device = f"cuda:{gpus[job.place.slot]}" if gpus else job.device
    stage: Stage = builder.build(job.place.rank, device, progress.add, _tensor_group(job, mesh, gpus))
    progress.finish()
    return stage


def _gpus(job: Job) -> list[int]:
    """Return the GPU of each rank of the stage: rank ``r`` of a host uses GPU ``r`` modulo the number of GPUs there."""
    if job.device != "cuda":
        return []
    from loadmaster.loader import num_devices

    return [rank % max(num_devices(), 1) for rank in job.local_ranks]


def _tensor_group(job: Job, mesh: Mesh | None, gpus: list[int]) -> TensorGroup | None:
    """Return the group of the stage's ranks: NCCL where no two of them share a GPU, the sockets elsewhere."""
    if mesh is None:
        return None
    if len(set(gpus)) < mesh.size:
        from loadmaster.distributed.tensor import HostGroup

        return HostGroup(mesh)
    import torch

    from loadmaster.distributed.nccl import NcclGroup

    return NcclGroup(mesh.slot, mesh.size, job.meeting, torch.device("cuda", gpus[mesh.slot]))


def _allocate(stage: Stage, pipeline: PipelineGroup, mesh: Mesh | None, job: Job, pipe: Pipe) -> StageRunner:
    """Allocate the KV cache that the engine asks for.

    Raises:
        LoadError: there is not enough memory.
    """
    from loadmaster.workers.pulse import Phase, Pulse
    from loadmaster.workers.runner import StageRunner

    pulse = None if job.pulse is None else Pulse(job.pulse, job.place.num_ranks)
    if mesh is not None and pulse is not None:
        tell = partial(pulse.set_phase, job.place.rank)
        mesh.on_wait = lambda waits: tell(Phase.RECEIVING if waits else Phase.COMPUTING)
    vocabulary: Vocabulary | None = None
    if isinstance(message := pipe.next(), Vocabulary):
        vocabulary, message = message, pipe.next()
    allocate: Allocate = message
    try:
        runner = StageRunner(stage, pipeline, allocate, job.place, pulse)
    except (MemoryError, RuntimeError) as error:
        if not (is_out_of_memory(error) or "out of memory" in str(error)):
            raise
        num_bytes = allocate.num_pages * stage.page_bytes(allocate.page_size)
        raise LoadError(
            f"there is not enough memory for a KV cache of {num_bytes:,} bytes: {str(error).partition(chr(10))[0]}",
            hint="pass a smaller --kv-cache-memory-bytes",
        ) from error
    if vocabulary is not None:
        runner.learn(vocabulary)
    pipe.send(Allocated())
    return runner


def _serve(runner: StageRunner, pipe: Pipe) -> None:
    """Run the engine's batches until the pipe ends, which ends the process."""
    reported = time.monotonic()
    while True:
        begin = time.perf_counter()
        while not isinstance(batch := pipe.next(), Batch):
            if isinstance(batch, Vocabulary):
                runner.learn(batch)
            elif isinstance(batch, Prepare):
                runner.prepare(batch, partial(_answer, pipe))
            elif isinstance(batch, Drop):
                runner.drop(batch)
            else:
                assert isinstance(batch, Report)
                pipe.send(Reported(runner.usage()))
        done = runner.run(batch, time.perf_counter() - begin)
        if done is not None:
            pipe.send(done)
        if time.monotonic() - reported >= USAGE_EVERY_S:
            pipe.send(runner.usage())
            reported = time.monotonic()


def _answer(pipe: Pipe, prepared: Prepared) -> None:
    with contextlib.suppress(OSError):  # the engine has ended, and the pipe with it
        pipe.send(prepared)


def failure(error: BaseException, job: Job, phase: type[LoadmasterError]) -> Failed:
    """Return the message that reports ``error``: a LoadmasterError unchanged, any other wrapped in a ``phase`` error.

    The traceback is added as a note.
    """
    where = str(job.place)
    if isinstance(error, PeerLostError):
        return Failed(phase(f"{where}: {error}"), is_cause=False)
    if isinstance(error, LoadmasterError) and _survives_pickling(error):
        shown: LoadmasterError = error
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        location = f" ({Path(frame[0].filename).name}:{frame[0].lineno})" if frame else ""
        cause = "out of host memory: " if is_out_of_memory(error) else ""
        shown = phase(f"{where}: {cause}{type(error).__name__}: {error}{location}")
    shown.add_note(f"in the process of {where}:\n{''.join(traceback.format_exception(error))}")
    return Failed(shown, is_cause=True)


def _survives_pickling(error: LoadmasterError) -> bool:
    try:
        copy = loads(dumps(error))
    except Exception:
        return False
    return type(copy) is type(error) and str(copy) == str(error)


if __name__ == "__main__":
    main(int(sys.argv[1]))
