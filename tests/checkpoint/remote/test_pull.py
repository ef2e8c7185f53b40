"""Pulling a part of a checkpoint: only those bytes, at any interruption, and never zeros for what is not there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loadmaster.checkpoint import LocalStore, Origin, open_checkpoint
from loadmaster.checkpoint.index import IndexRead, read_index
from loadmaster.checkpoint.partial import LOCK, MANIFEST, PartialFile, Span, merged, read_coverage
from loadmaster.checkpoint.remote import local_copy
from loadmaster.checkpoint.remote import pull as pulling
from loadmaster.checkpoint.remote.files import Part, RemoteFile
from loadmaster.checkpoint.remote.local_copy import FileRange, LocalCopy
from loadmaster.checkpoint.remote.pull import pull
from loadmaster.cli.main import main
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.limits import Limit
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from tests.checkpoint.standin import Commit, StandIn, folder_files
from tests.conftest import Tiny

MODEL = "owner/model"
LAYOUT = ParallelLayout(pipeline_parallel_size=2)
SIZE = 20_000


@dataclass
class Memory:
    """Files in memory, of which reading fails after ``left`` parts."""

    content: Mapping[str, bytes]
    left: int = 10**9
    only: str | None = None
    origin: Origin = field(default_factory=lambda: Origin("hub", MODEL, commit="0" * 40, is_local=False))
    path: Path = Path("model")

    def listing(self) -> Mapping[str, RemoteFile]:
        return {n: RemoteFile(len(b), hashlib.sha256(b).hexdigest()) for n, b in self.content.items()}

    def sizes(self) -> dict[str, tuple[int, str | None]]:
        return {n: (f.size or 0, f.etag) for n, f in self.listing().items()}

    def read(self, name: str, limit: Limit) -> bytes:
        return self.content[name]

    def part(self, name: str, start: int, length: int) -> Part:
        self.left -= 1
        if self.left < 0:
            raise CheckpointError("the connection broke")
        return Part(self.content[name][start : start + length], len(self.content[name]))

    def index(self) -> IndexRead:
        return read_index(self)

    def running(self) -> Sequence[str]:
        return ()

    def etag(self, name: str) -> str | None:
        return self.listing()[name].etag

    def cache_key(self, name: str, size: int, etag: str | None) -> str | None:
        return None


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(local_copy, "PIECE_BYTES", 700)
    monkeypatch.setattr(local_copy, "GAP_BYTES", 10)
    monkeypatch.setattr(pulling, "SYNC_S", 0.0)
    return Memory({n: random.Random(n).randbytes(SIZE) for n in ("a.safetensors", "b.safetensors")})


def pulled(memory: Memory, folder: Path, wanted: Mapping[str, tuple[Span, ...]]) -> int:
    """Pull, and return how many pieces that took."""
    with LocalCopy(folder, memory.origin, memory.sizes()) as copy:
        pieces = copy.lacking(wanted)
        pull(memory, copy, pieces, lambda num_bytes: None)
        copy.name_whole()
    return len(pieces)


def test_only_the_ranges_are_there_and_the_rest_is_not_read_as_zeros(memory: Memory, tmp_path: Path) -> None:
    pulled(memory, tmp_path, {"a.safetensors": ((100, 2000), (5000, 5001))})
    with LocalStore(tmp_path) as store:
        assert store.read_range("a.safetensors", 100, 1900) == memory.content["a.safetensors"][100:2000]
        assert store.size("a.safetensors") == SIZE
        with pytest.raises(LoadError, match=r"a.safetensors: 1 of the bytes 99 to 101 are not on disk"):
            store.read_range("a.safetensors", 99, 2)
        assert store.coverage is not None
        assert store.coverage.files["a.safetensors"].spans == ((100, 2000), (5000, 5001))
    assert [p.name for p in tmp_path.glob("*safetensors*")] == ["a.safetensors.partial"]


def test_a_pull_that_is_interrupted_anywhere_ends_byte_for_byte(memory: Memory, tmp_path: Path) -> None:
    chance = random.Random(0)
    whole: dict[str, tuple[Span, ...]] = dict.fromkeys(memory.content, ((0, SIZE),))
    manifest = tmp_path / MANIFEST
    for _ in range(100):
        memory.left = chance.randrange(2)
        try:
            pulled(memory, tmp_path, whole)
        except CheckpointError as error:
            assert str(error) == "the connection broke"
        if chance.random() < 0.3:  # the machine stopped while a line was written
            text = manifest.read_bytes()
            manifest.write_bytes(text[: max(text.index(b"}\n{") + 2, len(text) - chance.randrange(150))])
        coverage = read_coverage(tmp_path)
        assert coverage is not None
        for name, file in coverage.files.items():
            at = tmp_path / (name if (tmp_path / name).exists() else f"{name}.partial")
            for start, end in file.spans:
                assert at.read_bytes()[start:end] == memory.content[name][start:end]
    memory.left = 10**9
    pulled(memory, tmp_path, whole)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors*")} == memory.content
    assert pulled(memory, tmp_path, whole) == 0


def test_a_file_that_was_removed_is_pulled_again(memory: Memory, tmp_path: Path) -> None:
    wanted: dict[str, tuple[Span, ...]] = {"a.safetensors": ((0, 1400),)}
    assert pulled(memory, tmp_path, wanted) == 2
    assert pulled(memory, tmp_path, wanted) == 0
    (tmp_path / "a.safetensors.partial").unlink()
    assert pulled(memory, tmp_path, wanted) == 2


def test_a_whole_file_with_another_hash_is_removed(memory: Memory, tmp_path: Path) -> None:
    listed = memory.sizes()
    memory.content = {n: bytes(SIZE) for n in memory.content}
    with LocalCopy(tmp_path, memory.origin, listed) as copy:
        pull(memory, copy, [FileRange("a.safetensors", 0, SIZE)], lambda num_bytes: None)
        with pytest.raises(LoadError, match=r"a.safetensors: its SHA-256 is .* the file was removed"):
            copy.name_whole()
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda m: setattr(m, "origin", Origin("hub", MODEL, commit="1" * 40)),
            "holds part of owner/model at commit 000",
        ),
        (lambda m: setattr(m, "content", {n: b + b"+" for n, b in m.content.items()}), "changed at its origin"),
    ],
)
def test_another_checkpoint_is_not_pulled_into_the_same_folder(
    change: object, says: str, memory: Memory, tmp_path: Path
) -> None:
    pulled(memory, tmp_path, {"a.safetensors": ((0, 10),)})
    change(memory)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says):
        pulled(memory, tmp_path, {"a.safetensors": ((0, 10),)})


def test_a_folder_with_other_shards_is_left_alone(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="holds shards that were not pulled"):
        pulled(memory, tmp_path, {})


@pytest.mark.parametrize(
    "text", [b"{}\n", b'{"loadmaster partial": 9}\n', b"\n", b"[]\n", b'{"loadmaster partial": 1}\nx\n']
)
def test_a_manifest_that_cannot_be_read_is_an_error(text: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(CheckpointError, match="it is not known which bytes are on disk"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("start", "end", "lacking"),
    [(0, 10, []), (5, 40, [(10, 20), (30, 40)]), (10, 20, [(10, 20)]), (25, 30, []), (30, 31, [(30, 31)]), (5, 5, [])],
)
def test_what_is_lacking_of_a_range(start: int, end: int, lacking: list[Span]) -> None:
    assert PartialFile(100, None, merged([(20, 30), (0, 4), (4, 10)])).lacking(start, end) == lacking


# From the hub, with a model ---------------------------------------------------------------------------------------------


@pytest.fixture
def published(hub: StandIn, cache: Path, tiny: Tiny) -> Commit:
    return hub.publish(MODEL, folder_files(tiny("llama")) | {"README.md": b"#"})


@pytest.fixture
def stage(hub: StandIn, published: Commit, tmp_path: Path) -> Iterator[Path]:
    """A copy of stage 1 of 2."""
    assert main(["pull", MODEL, "--stage", "1/2", "--local-dir", str(tmp_path / "copy")]) == 0
    return tmp_path / "copy"


def plan_of(folder: Path) -> Plan:
    return prove(build_plan(open_checkpoint(folder), LAYOUT)).require_proven()


def test_a_stage_plans_like_the_whole_loads_on_its_rank_and_is_refused_on_another(
    hub: StandIn, stage: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part = plan_of(tiny("llama")), plan_of(stage)
    assert part.hash == whole.hash
    assert [f.code for f in part.findings] == ["checkpoint-partial"]
    assert part.checkpoint.origin.name == MODEL
    expected, loaded = load_rank(whole, 1), load_rank(part, 1)
    assert loaded.digest() == expected.digest()
    with pytest.raises(LoadError) as refused:
        load_rank(part, 0)
    assert "rank 0 (pp 0 of 2): " in str(refused.value)
    assert "are not on disk; the folder is a partial copy of owner/model at commit" in str(refused.value)
    assert "--rank 0" in str(refused.value)
    shards = sum(n for name, n in hub.sent.items() if name.endswith(".safetensors"))
    assert shards < sum(f.size for f in whole.checkpoint.files)


def test_a_copy_without_its_manifest_is_no_checkpoint(stage: Path) -> None:
    (stage / MANIFEST).unlink()
    (finding,) = {f.code: f for f in open_checkpoint(stage).findings if f.code == "shard-missing"}.values()
    assert "a download is unfinished" in (finding.hint or "")
    assert not open_checkpoint(stage).files


def test_a_partial_copy_is_not_verified(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(stage)]) == 1
    assert "every byte is read, and this is a partial copy" in capsys.readouterr().err


def test_the_rest_completes_a_copy_to_the_files_themselves(
    hub: StandIn, published: Commit, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = hub.sent.copy()
    assert main(["pull", MODEL, "--local-dir", str(stage)]) == 0
    copied = {p.name: p.read_bytes() for p in stage.iterdir() if p.name not in (MANIFEST, LOCK)}
    assert copied == {n: b for n, b in published.files.items() if n != "README.md"}
    shards = [n for n in copied if n.endswith(".safetensors")]
    twice = sum((hub.sent - sent)[n] + sent[n] for n in shards) - sum(len(copied[n]) for n in shards)
    assert twice < 20_000, "headers are read for each plan; nothing else is fetched twice"
    assert not open_checkpoint(stage).findings
    assert main(["verify", str(stage)]) == 0


def test_ranks_can_be_named_and_what_is_not_there_is_refused(
    published: Commit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copy, "GAP_BYTES", 0)
    folder = str(tmp_path / "copy")
    assert main(["pull", MODEL, "-tp", "2", "--rank", "1", "--local-dir", folder, "--json"]) == 0
    assert main(["load", folder, "-tp", "2", "--rank", "1"]) == 0
    assert main(["load", folder, "-tp", "2", "--rank", "0"]) == 3
    assert main(["pull", MODEL, "-tp", "2", "--rank", "2", "--local-dir", folder]) == 2
    assert main(["pull", folder, "--local-dir", folder]) == 1
    assert "is on disk already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["pull", MODEL, "--stage", "8/8", "--local-dir", folder])
    assert main(["pull", MODEL, "-pp", "3", "--stage", "1/2", "--local-dir", folder]) == 2
