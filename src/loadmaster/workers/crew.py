"""Starts the workers of a run: all of them on this host, or one for each process that a launcher has started."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from loadmaster.distributed.join import connect_neighbours
from loadmaster.distributed.proof import send_json
from loadmaster.distributed.rendezvous import Rendezvous
from loadmaster.distributed.roster import Member, Roster, draw_key, listen
from loadmaster.errors import LoadError
from loadmaster.workers.encoding import dumps
from loadmaster.workers.launch import Launch
from loadmaster.workers.messages import Ended, Job, Place, Ready, Usage
from loadmaster.workers.process import WorkerProcess
from loadmaster.workers.pulse import Pulse
from loadmaster.workers.wiring import Ends, Wiring

DEFAULT_BUILDER = "loadmaster.workers.builder:PlanBuilder"


@dataclass(frozen=True, slots=True)
class Run:
    """What all ranks have in common: the plan as JSON, how stages are built, where they compute, and the layout.

    ``agreed`` are values that must be the same in all processes of a launcher, by name.
    """

    plan: bytes = field(repr=False)
    num_stages: int
    num_slots: int = 1
    builder: str = DEFAULT_BUILDER
    device: str = "cpu"
    agreed: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return self.num_stages * self.num_slots

    def place(self, rank: int) -> Place:
        """Return the place of a rank."""
        return Place.of(rank, self.num_stages, self.num_slots)


class Running(Protocol):
    """What the engine's process can do with a worker: its process, or the link to the process that has started it."""

    def trouble(self, passed_s: float) -> tuple[str, str | None] | None:
        """Return what is wrong with it, and a hint; or None."""

    def end_cause(self) -> tuple[str, str | None]:
        """Return how it has ended, and a hint."""

    def tell_end(self, error: str | None = None) -> None:
        """Tell it that the engine has ended, with ``error`` or because it was closed. Its pipe has ended already."""

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended, or ``timeout_s`` seconds."""

    def kill(self) -> None:
        """End it."""


@dataclass(slots=True)
class Worker:
    """One worker, as the engine's process sees it. ``link`` leads to the process that has started it, if it is another."""

    place: Place
    running: Running
    pipe: Connection
    link: Connection | None = None
    ready: Ready | None = None
    usage: Usage | None = None
    has_failed: bool = False
    reported: threading.Event = field(default_factory=threading.Event)


class RemoteWorker:
    """A worker that another process of the launcher has started, and watches."""

    def __init__(self, place: Place, host: str, link: Connection) -> None:
        self._place, self._host, self._link = place, host, link

    def __str__(self) -> str:
        return f"{self._place} on host {self._host}"

    def trouble(self, passed_s: float) -> None:
        """Return None: the other process looks."""

    def end_cause(self) -> tuple[str, str | None]:
        """Return what is known when a connection has ended: the other process has not said why."""
        return (
            "was lost: the connection has ended",
            "look at the host, its network, and the output of the process there",
        )

    def tell_end(self, error: str | None = None) -> None:
        """Tell the other process that the engine has ended."""
        with suppress(OSError):
            self._link.send_bytes(dumps(Ended(error)))

    def wait(self, timeout_s: float) -> None:
        """Wait until the other process closes the link: its worker has ended."""
        with suppress(OSError, EOFError):
            while self._link.poll(timeout_s):
                self._link.recv_bytes()

    def kill(self) -> None:
        """Close the link."""
        self._link.close()


def start_here(run: Run, add: Callable[[Worker], None], resources: ExitStack) -> None:
    """Start all workers on this host, connected by sockets without names. ``add`` takes each one as soon as it is started.

    ``resources`` are closed when all workers have ended.
    """
    pulse = Pulse.create(run.num_ranks)
    resources.callback(pulse.close)
    folder = ""
    if run.device == "cuda" and run.num_slots > 1:
        folder = tempfile.mkdtemp(prefix="loadmaster-")  # for this user alone
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
    with Wiring(run.num_stages, run.num_slots) as wiring:
        for rank in range(run.num_ranks):
            place = run.place(rank)
            ours, theirs = Pipe()
            with theirs:
                job = job_of(run, place, wiring.of(place), pulse, run.num_ranks, place.stage_ranks, folder)
                process = WorkerProcess(job, theirs.fileno(), pulse)
            add(Worker(place, process, ours))


def start_launched(
    run: Run, launch: Launch, add: Callable[[Worker], None], resources: ExitStack, is_stopped: Callable[[], bool]
) -> None:
    """Start the worker of rank 0, and wait until those of all other processes of the launcher are connected.

    Raises:
        ConfigError: this process cannot listen where the launcher says.
        LoadError: a rank did not come, or differs from this one.
    """
    rendezvous = Rendezvous(launch.address, launch.port, launch.num_ranks, launch.key, dict(run.agreed))
    try:
        joined = rendezvous.gather(launch.join_within_s, is_stopped)
        listener = listen(rendezvous.own_address, 0)
    finally:
        rendezvous.close()
    with listener:
        address, port = listener.getsockname()[:2]
        own = Member(socket.gethostname(), address, port, launch.local_rank)
        roster = Roster((own, *(joined[rank].member for rank in sorted(joined))), draw_key())
        divided = _divided_stage(run, roster)
        for rank in sorted(joined):
            _send(joined[rank].link, {"error": divided} if divided else roster.as_json())
            link, pipe = Connection(joined[rank].link.detach()), Connection(joined[rank].pipe.detach())
            place = run.place(rank)
            add(Worker(place, RemoteWorker(place, joined[rank].member.host, link), pipe, link))
        if divided:
            raise LoadError(divided)
        ours, theirs = Pipe()
        with theirs:
            process = start_member(run, launch, listener, roster, theirs.fileno(), resources, is_stopped)
        add(Worker(run.place(launch.rank), process, ours))


def start_member(
    run: Run,
    launch: Launch,
    listener: socket.socket,
    roster: Roster,
    pipe: int,
    resources: ExitStack,
    is_stopped: Callable[[], bool] = lambda: False,
) -> WorkerProcess:
    """Connect this process's rank to its neighbours, and start its worker, whose pipe has the file descriptor ``pipe``.

    Raises:
        LoadError: a neighbour does not connect.
    """
    place = run.place(launch.rank)
    sockets = connect_neighbours(place.rank, place.neighbours, listener, roster, is_stopped)
    pulse = Pulse.create(run.num_ranks)
    resources.callback(pulse.close)
    folder = ""
    if run.device == "cuda" and run.num_slots > 1:
        folder = _common_folder(roster.key)
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        local_ranks = [roster.members[rank].local_rank for rank in place.stage_ranks]
        job = job_of(run, place, Ends.of(place, sockets), pulse, launch.num_local_ranks, local_ranks, folder)
        return WorkerProcess(job, pipe, pulse)
    finally:
        for connection in sockets.values():
            connection.close()


def job_of(
    run: Run,
    place: Place,
    ends: Ends,
    pulse: Pulse,
    num_local_ranks: int,
    local_ranks: Sequence[int],
    folder: str,
) -> Job:
    """Return the job of a worker on this host, which shares the cores with the other ranks here.

    ``local_ranks``: the numbers on their host of the stage's ranks. ``folder`` is where ranks that use NCCL meet.
    """
    return Job(
        place,
        num_threads(num_local_ranks),
        run.builder,
        run.plan,
        run.device,
        ends.previous,
        ends.following,
        ends.peers,
        str(Path(folder) / f"stage-{place.stage}") if folder else "",
        pulse.fd,
        num_local_ranks,
        tuple(local_ranks),
    )


def num_threads(num_local_ranks: int) -> int:
    """Return the threads of one of ``num_local_ranks`` ranks: an equal share of the cores, or OMP_NUM_THREADS if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // num_local_ranks)
    asked = os.environ.get("OMP_NUM_THREADS", "")  # OpenMP takes a list too: one number for each level of nesting
    first = asked.partition(",")[0].strip()
    return min(share, int(first)) if first.isascii() and first.isdecimal() and int(first) > 0 else share


def _divided_stage(run: Run, roster: Roster) -> str | None:
    """Return why NCCL cannot connect the ranks of a stage, or None."""
    if run.device != "cuda":
        return None
    for stage in range(run.num_stages):
        members = [roster.members[rank] for rank in run.place(stage * run.num_slots).stage_ranks]
        hosts = {f"{member.host} at {member.address}" for member in members}
        if len(hosts) > 1:
            return (
                f"the {run.num_slots} tensor-parallel ranks of stage {stage} are on {len(hosts)} hosts "
                f"({', '.join(sorted(hosts))}), which is not supported on GPUs: the ranks of a stage must be on one host. "
                "Start a multiple of --tensor-parallel-size on each host (torchrun --nproc-per-node)"
            )
    return None


def _common_folder(key: bytes) -> str:
    """Return the folder where the ranks on this host meet: for this user alone, its name from the run's secret."""
    path = Path(tempfile.gettempdir()) / f"loadmaster-{hashlib.sha256(key).hexdigest()[:32]}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LoadError(f"{path} belongs to another user")
    return str(path)


def _send(link: socket.socket, value: dict[str, object]) -> None:
    try:
        send_json(link, value)
    except OSError as error:
        raise LoadError(f"a rank was lost before all had joined: {error}") from error
