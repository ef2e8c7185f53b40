"""A model straight from where it is: only what this host's ranks read, each byte once, and never zeros or a mixture."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from loadmaster.checkpoint import Checkpoint, fetch_model, open_checkpoint
from loadmaster.checkpoint.partial import MANIFEST, Span, merged
from loadmaster.checkpoint.remote import http, local_copy
from loadmaster.checkpoint.remote.object_store import ObjectFiles
from loadmaster.checkpoint.remote.retry import Retry
from loadmaster.cli.main import build_parser, main
from loadmaster.cli.planning import run_plan
from loadmaster.engine.launched import require_runnable
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove, shard_ranges
from tests.checkpoint.bucket import Bucket
from tests.checkpoint.remote.site import Site
from tests.checkpoint.standin import StandIn, folder_files

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LAYOUT = ParallelLayout(pipeline_parallel_size=2, tensor_parallel_size=2)
PIECE_BYTES = 2**16
Part = tuple[str, int, int]


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are only joined where they touch, and nothing waits between attempts."""
    monkeypatch.setattr(local_copy, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(local_copy, "GAP_BYTES", 0)
    monkeypatch.setattr(http, "Retry", functools.partial(Retry, sleep=lambda seconds: None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def planned(checkpoint: Checkpoint, layout: ParallelLayout = LAYOUT) -> ProvenPlan:
    return prove(build_plan(checkpoint, layout)).require_proven()


def of_ranks(*ranks: int, layout: ParallelLayout = LAYOUT) -> Callable[[Checkpoint], dict[str, tuple[Span, ...]]]:
    return lambda checkpoint: shard_ranges(planned(checkpoint, layout), ranks)


def spans(parts: Iterable[Part], name: str) -> list[Span]:
    return [(start, end) for file, start, end in parts if file == name]


def payload(parts: Iterable[Part], name: str) -> list[Span]:
    """Return what was sent of a shard, without what was sent with its header, which is read for each plan."""
    return [(start, end) for start, end in spans(parts, name) if start]


def num_bytes(parts: Iterable[Span]) -> int:
    return sum(end - start for start, end in parts)


def is_once(parts: list[Span]) -> bool:
    return num_bytes(parts) == num_bytes(merged(parts)) > 0


@dataclass
class Place:
    """A URL with the model, and the parts of it that were sent."""

    url: str
    sent: list[Part]
    replace: Callable[[str, bytes], None]
    remove: Callable[[str], object]


@pytest.fixture(params=["https", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "https":
        site: Site = request.getfixturevalue("site")
        return Place(site.url, site.sent, site.files.__setitem__, site.files.pop)
    bucket: Bucket = request.getfixturevalue("bucket")
    sent: list[Part] = []
    read = ObjectFiles.part

    def recorded(files: ObjectFiles, name: str, start: int, length: int) -> Any:
        part = read(files, name, start, length)
        sent.append((name, start, start + len(part.data)))
        return part

    monkeypatch.setattr(ObjectFiles, "part", recorded)
    return Place(bucket.url, sent, bucket.put, bucket.delete)


def test_all_ranks_load_as_from_the_folder_each_byte_is_sent_once_and_ranges_are_joined(
    place: Place, folder: Path
) -> None:
    plan = planned(fetch_model(place.url, wanted=of_ranks(*range(LAYOUT.num_ranks))))
    here = planned(open_checkpoint(folder))
    assert plan.hash == here.hash
    assert (plan.checkpoint.origin.name, plan.checkpoint.origin.is_local) == (place.url, True)
    for rank in range(LAYOUT.num_ranks):
        assert load_rank(plan, rank).digest() == load_rank(here, rank).digest()
    for file in here.checkpoint.files:
        parts = spans(place.sent, file.name)
        assert num_bytes(parts) == num_bytes(merged(parts)) == file.size, "all of it, and nothing twice"
        assert len(parts) <= 1 + -(-file.size // PIECE_BYTES), "one for the header"
    copied = folder_files(plan.model_path)
    assert {n: copied[n] for n in ("config.json", "tokenizer.json")} == {
        n: (folder / n).read_bytes() for n in ("config.json", "tokenizer.json")
    }


def test_a_rank_is_fetched_alone_and_the_copy_grows_with_others_while_it_is_used(place: Place, folder: Path) -> None:
    here = planned(open_checkpoint(folder))
    plan = planned(fetch_model(place.url, wanted=of_ranks(3)))
    for name, needed in shard_ranges(here, [3]).items():
        assert merged([*payload(place.sent, name), *needed]) == needed
    with pytest.raises(LoadError, match=r"rank 0 \(pp 0 of 2\): .* are not on disk"):
        load_rank(plan, 0)
    both = planned(fetch_model(place.url, wanted=of_ranks(0)))
    assert both.model_path == plan.model_path
    for file in here.checkpoint.files:
        assert is_once(payload(place.sent, file.name))
    assert load_rank(plan, 3).digest() == load_rank(here, 3).digest(), "planned before the copy grew"
    assert load_rank(both, 0).digest() == load_rank(here, 0).digest()


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_a_shard_that_changes_between_plan_and_load_is_an_error(change: str, place: Place, folder: Path) -> None:
    def wanted(checkpoint: Checkpoint) -> dict[str, tuple[Span, ...]]:
        if change == "remove":
            place.remove(SECOND)
        else:
            place.replace(SECOND, (folder / SECOND).read_bytes()[:-1] + b"\1")
        return of_ranks(3)(checkpoint)

    with pytest.raises(CheckpointError) as refused:
        fetch_model(place.url, wanted=wanted)
    assert f"{SECOND} of {place.url} changed or was removed while it was downloaded" in str(refused.value)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (["ok", "another"], "changed or was removed while it was downloaded"),
        (["ok", *["short"] * 99], "failed 5 times: "),
    ],
    ids=lambda v: v[1] if isinstance(v, list) else None,
)
def test_a_fault_is_one_error_no_rank_is_reported_and_the_next_run_continues(
    faults: list[str], says: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.faults[SECOND] = list(faults)
    assert main(["load", site.url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    site.faults.clear()
    assert main(["load", site.url]) == 0
    for name in (FIRST, SECOND):
        assert is_once(payload(site.sent, name)), "what the first run got is not sent again"


def test_a_server_that_does_not_tell_a_change_is_reported(site: Site) -> None:
    said: list[str] = []
    fetch_model(site.url, on_notice=said.append)
    assert not [line for line in said if "ETag" in line]
    site.has_etags = False
    fetch_model(site.url, on_notice=said.append)
    assert "neither ETags nor modification times" in said[-1]


def test_of_two_processes_one_downloads_and_the_other_waits(site: Site) -> None:
    site.faults[FIRST] = ["slow"] * 4
    said: list[str] = []

    def fetch() -> None:
        fetch_model(site.url, wanted=of_ranks(*range(4)), on_notice=said.append)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([line for line in said if line.startswith("downloading ")]) == 1
    assert all(is_once(payload(site.sent, name)) for name in (FIRST, SECOND))


def test_a_disk_without_room_is_an_error_that_names_the_option(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(LoadError, match=r"the disk has 0\.0 KiB left") as refused:
        fetch_model(site.url)
    assert "--download-dir" in str(refused.value)
    with pytest.raises(LoadError, match=r"the copy in /dev/null/.* cannot be written: Not a directory"):
        fetch_model(site.url, download_dir="/dev/null")


def test_a_url_may_name_one_shard(site: Site, folder: Path) -> None:
    checkpoint = fetch_model(site.url + FIRST)
    assert checkpoint.digest == open_checkpoint(folder / FIRST).digest
    assert (checkpoint.path / FIRST).read_bytes() == (folder / FIRST).read_bytes()


# The command line -------------------------------------------------------------------------------------------------------


def test_of_a_hub_model_one_rank_is_copied_in_part_and_all_go_to_the_hubs_cache(
    hub: StandIn, cache: Path, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("owner/model", folder_files(folder))
    assert main(["load", "owner/model", "-pp", "2", "--rank", "1"]) == 0
    (copy,) = {p.parent for p in tmp_path.rglob(MANIFEST)}
    assert f"to {copy}" in capsys.readouterr().err
    shards = sum((folder / n).stat().st_size for n in (FIRST, SECOND))
    assert sum(hub.sent[n] for n in (FIRST, SECOND)) < 0.8 * shards
    assert not list(cache.rglob("*.safetensors"))
    assert main(["load", "owner/model", "-pp", "2", "--download-dir", str(tmp_path / "there")]) == 0
    assert {p.name for p in (tmp_path / "there").rglob("*.safetensors")} == {FIRST, SECOND}


def test_under_a_launcher_a_host_downloads_what_its_ranks_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**launcher, "MASTER_PORT": "29500", "LOADMASTER_KEY": "0123456789abcdef"}.items():
        monkeypatch.setenv(name, value)
    args = build_parser().parse_args(["generate", site.url, "-pp", "2", "--prompt", "a"])
    plan = run_plan(args, lambda plan: require_runnable(plan, "cpu")).plan
    assert load_rank(plan, 1).tensors
    with pytest.raises(LoadError, match="rank 0"):
        load_rank(plan, 0)


def test_the_password_of_a_url_is_not_shown(site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url = site.url.replace("http://", "http://me:secret@") + "?sig=hidden"
    assert main(["load", url, "--rank", "5"]) == 2
    assert main(["load", url, "--json"]) == 0
    assert main(["load", url]) == 0
    said = capsys.readouterr()
    written = "".join(str(p) for p in tmp_path.rglob("*")) + next(tmp_path.rglob(MANIFEST)).read_text()
    assert not {"secret", "hidden"} & {w for w in ("secret", "hidden") if w in said.out + said.err + written}


@pytest.mark.slow
def test_generate_and_serve_answer_from_a_url_as_from_the_folder(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for model in (site.url, str(folder)):
        args = ["--prompt", "Hello", "--max-tokens", "3", "--max-model-len", "32", "--json"]
        assert main(["generate", model, "-pp", "2", *args]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    sent = len(site.sent)
    command = [sys.executable, "-m", "loadmaster", "serve", site.url, "-pp", "2", "--engine", "native", "--port", "0"]
    with subprocess.Popen([*command, "--max-model-len", "32"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            at = next(re.findall(r"http://127.0.0.1:\d+", line)[-1] for line in server.stderr if "/v1" in line)
            asked = {"prompt": "Hello", "max_tokens": 3, "temperature": 0}
            end = time.monotonic() + 200
            while (answer := httpx.post(f"{at}/v1/completions", json=asked, timeout=200)).status_code == 503:
                assert time.monotonic() < end
                time.sleep(0.2)
        finally:
            server.terminate()
            server.stderr.close()
    assert answer.json()["choices"][0]["text"] == answers[1]["text"]
    assert answer.json()["model"] == site.url
    assert all(start == 0 for _, start, _ in site.sent[sent:]), "headers only: the rest was there"
