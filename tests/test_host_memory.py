"""What a host has left, from faked files; and that nothing is read where it is too little."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from loadmaster import host_memory
from loadmaster.checkpoint import LocalStore, open_checkpoint
from loadmaster.cli.main import main
from loadmaster.errors import LoadError
from loadmaster.host_memory import Room, no_memory_is_a_load_error, require_memory, rooms
from loadmaster.loader import Receiver
from loadmaster.plan import build_plan, prove
from tests.conftest import Tiny

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The process's own limits by number; none to begin with."""
    made: dict[int, int] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (made.get(number, resource.RLIM_INFINITY), -1))
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    return tmp_path


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def free(root: Path) -> list[int]:
    return [room.free_bytes for room in rooms(root)]


def test_available_memory_of_the_host(root: Path) -> None:
    assert list(rooms(root)) == [Room(4 * MIB, "on this host (MemAvailable in /proc/meminfo)")]


def test_every_control_group_around_the_process_counts_and_its_cached_files_are_free(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/a/b")
    for path, most, used in (("a/b", "max", 1), ("a", 3 * MIB, 2 * MIB), ("", 9 * MIB, 2 * MIB)):
        put(root / "sys/fs/cgroup" / path / "memory.max", most)
        put(root / "sys/fs/cgroup" / path / "memory.current", used)
    put(root / "sys/fs/cgroup/a/memory.stat", f"anon 7\nfile 99999\ninactive_file {MIB // 2}\nactive_file {MIB // 4}")
    assert free(root) == [4 * MIB, MIB + MIB * 3 // 4, 7 * MIB]
    assert [r.limit for r in rooms(root)][1] == "of the 3.0 MiB of its control group /a (memory.max)"


def test_a_container_sees_its_own_group_at_the_top(root: Path) -> None:
    put(root / "proc/self/cgroup", "0::/docker/123")
    put(root / "sys/fs/cgroup/memory.max", 2 * MIB)
    put(root / "sys/fs/cgroup/memory.current", MIB)
    assert free(root) == [4 * MIB, MIB]


def test_control_groups_of_the_first_version(root: Path) -> None:
    put(root / "proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n0::/")
    for path, most in (("x", 2 * MIB), ("", UNLIMITED_V1)):
        put(root / "sys/fs/cgroup/memory" / path / "memory.limit_in_bytes", most)
        put(root / "sys/fs/cgroup/memory" / path / "memory.usage_in_bytes", 3 * MIB)
    put(root / "sys/fs/cgroup/memory/x/memory.stat", f"total_inactive_file {MIB // 2}")
    assert free(root) == [4 * MIB, 0, UNLIMITED_V1 - 3 * MIB]  # over its limit: nothing is left


@pytest.mark.parametrize(("number", "field"), [(resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")])
def test_limits_of_the_process(number: int, field: str, root: Path, limits: dict[int, int]) -> None:
    put(root / "proc/self/status", f"Name:\tpython\n{field}:\t 1024 kB")
    limits[number] = 3 * MIB
    assert free(root) == [4 * MIB, 2 * MIB]


def test_the_least_is_named_with_what_is_needed(root: Path, limits: dict[int, int]) -> None:
    require_memory(4 * MIB, "it takes", hint="less", root=root)
    with pytest.raises(LoadError, match=r"it takes 5\.0 MiB of host memory, and 4\.0 MiB are free on this host") as no:
        require_memory(5 * MIB, "it takes", hint="take less", root=root)
    assert no.value.hint == "take less; nothing was read"
    limits[resource.RLIMIT_AS] = MIB
    with pytest.raises(LoadError, match=r"1\.0 MiB are free of this process's limit of 1\.0 MiB \(`ulimit -v`"):
        require_memory(2 * MIB, "it takes", hint="less", root=root)


def test_where_nothing_is_told_nothing_is_refused(tmp_path: Path) -> None:
    assert free(tmp_path) == []
    require_memory(2**60, "it takes", hint="less", root=tmp_path)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_an_allocation_that_fails_all_the_same_is_a_load_error(error: Exception) -> None:
    with pytest.raises(LoadError, match="host memory ran out while loading"), no_memory_is_a_load_error():
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(OSError, match="Input/output"), no_memory_is_a_load_error():
        raise OSError(5, "Input/output error")


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "rooms", lambda root=None: iter([Room(1000, "on this host")]))


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("args", "takes"),
    [
        (["load", "-pp", "2"], "its parameters and staging take"),
        (["generate", "-pp", "2", "--prompt-token-ids", "3"], "the 2 rank(s) of the model take"),
    ],
)
def test_a_command_that_would_not_fit_reads_nothing(
    args: list[str], takes: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalStore, "readinto", None)
    assert main([args[0], str(tiny("smollm2")), *args[1:]]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert takes in err and "1.0 KiB are free on this host" in err and "nothing was read" in err


@pytest.mark.usefixtures("little")
def test_a_receiver_is_refused_too(tiny: Tiny) -> None:
    with pytest.raises(LoadError, match="rank 0: its parameters and staging take"):
        Receiver(prove(build_plan(open_checkpoint(tiny("smollm2")))).require_proven(), 0)
