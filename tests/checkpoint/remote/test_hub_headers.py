"""A model on the hub is planned from its headers; the hub is asked for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadmaster.checkpoint import Checkpoint, index, open_checkpoint, open_model, resolve_model
from loadmaster.cli.main import main
from loadmaster.errors import CheckpointError
from loadmaster.plan import build_plan
from tests.checkpoint.standin import Commit, StandIn, folder_files
from tests.conftest import Tiny

MODEL = "owner/model"
SMALL = {"config.json", "model.safetensors.index.json"}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def published(hub: StandIn, cache: Path, tiny: Tiny) -> Commit:
    beside = {"forgotten.safetensors": b"f" * 900, "original/model.safetensors": b"o", "consolidated.safetensors": b"c"}
    return hub.publish(MODEL, folder_files(tiny("llama")) | beside)


def asked(hub: StandIn) -> list[tuple[str, str]]:
    """What was asked for of models, files by their names alone; the client has questions of its own beside."""
    resolved = f"/{MODEL}/resolve/"
    return sorted(
        (method, path.rpartition("/")[2] if resolved in path or "/lfs/" in path else path)
        for method, path in hub.requests
        if MODEL in path or "/lfs/" in path
    )


def refusal(model: str = MODEL, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_model(model, revision)
    return str(refused.value)


@pytest.mark.parametrize("command", ["plan", "inspect"])
def test_a_plan_asks_for_the_listing_the_small_files_and_each_header_once(
    command: str, hub: StandIn, published: Commit, cache: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, MODEL]) == 0
    listing = [("GET", f"/api/models/{MODEL}")]
    small = [(method, name) for method in ("GET", "HEAD") for name in SMALL]
    headers = [("GET", FIRST), ("GET", SECOND)] * 2  # to the hub, and to where it redirects
    assert asked(hub) == sorted(listing + small + headers)
    read = sum(f.header_bytes for f in open_checkpoint(tiny("llama")).files)
    assert read <= sum(hub.sent[n] for n in (FIRST, SECOND)) <= 1.3 * read
    assert {p.name for p in cache.rglob("snapshots/*/*")} == SMALL
    said = capsys.readouterr()
    assert f"{MODEL} at commit {published.sha}" in said.out
    assert said.err.splitlines() == [
        f"loadmaster {command}: read 2 header(s) of {MODEL} at commit {published.sha}: "
        f"{sum(hub.sent[n] for n in (FIRST, SECOND)) / 2**10:.1f} KiB in 2 request(s); the shards are not downloaded"
    ]


def test_the_second_plan_asks_for_the_listing_only(
    hub: StandIn, published: Commit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_model(MODEL)
    hub.requests.clear()
    parsed: list[str] = []
    monkeypatch.setattr(index, "check_content", lambda name, *_: parsed.append(name))
    assert main(["plan", MODEL, "--json"]) == 0
    assert asked(hub) == [("GET", f"/api/models/{MODEL}")]
    assert len(parsed) == 1, "the index takes longer to parse than anything else"
    said = capsys.readouterr()
    assert "2 of them from the cache" in said.err
    origin = json.loads(said.out)["checkpoint"]["origin"]
    assert origin == {
        "kind": "hub",
        "name": MODEL,
        "revision": None,
        "commit": published.sha,
        "url": f"{hub.url}/{MODEL}/tree/{published.sha}",
        "local": False,
    }
    assert first.origin.as_json() == origin


def test_a_plan_from_headers_is_the_plan_of_the_downloaded_files(hub: StandIn, published: Commit) -> None:
    there = open_model(MODEL)
    folder = resolve_model(MODEL, download=True)
    here = open_checkpoint(folder)
    assert there.path == folder
    assert (there.digest, there.findings) == (here.digest, here.findings)
    assert there.index is not None
    assert here.index is not None
    assert there.index.weight_map == here.index.weight_map
    assert build_plan(there).hash == build_plan(here).hash
    hub.ranges.clear()
    kept = open_model(MODEL)
    assert (kept.origin.is_local, kept.origin.commit, kept.path) == (True, published.sha, folder)
    assert not hub.ranges, "what is complete in the cache is read there"


def test_the_token_is_sent_to_the_hub_only(hub: StandIn, published: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_model(MODEL)
    assert {t for host, t in hub.tokens if host == "localhost"} == {None}
    assert ("127.0.0.1", "Bearer hf_secret") in hub.tokens


def test_a_revision_is_pinned_to_its_commit(hub: StandIn, published: Commit) -> None:
    old = published.sha
    hub.publish(MODEL, {**published.files, "config.json": published.files["config.json"] + b" "}, "v2")
    assert open_model(MODEL, "v2").origin.revision == "v2"
    assert open_model(MODEL, "v2").origin.commit != old
    assert open_model(MODEL, old).origin.commit == open_model(MODEL).origin.commit == old
    assert "has no revision v9 of it" in refusal(revision="v9")
    assert "has no such model" in refusal("owner/nobody")


def test_a_gated_model_is_refused_with_what_to_do(hub: StandIn, published: Commit) -> None:
    hub.faults.add("gated")
    said = refusal()
    assert f"of {MODEL} from the hub: access to it is gated on the hub" in said
    assert "HF_TOKEN" in said


def test_a_token_that_loses_access_in_between_is_refused_with_what_to_do(hub: StandIn, published: Commit) -> None:
    open_model(MODEL)
    for entry in Path(str(open_model(MODEL).path)).parents[3].rglob("ours/**/*"):
        if entry.is_file():
            entry.unlink()
    hub.faults.add("gated")
    said = refusal()
    assert "HTTP status 403" in said
    assert "HF_TOKEN" in said


def of_shards(checkpoint: Checkpoint) -> list[tuple[str, str | None]]:
    return [(f.code, f.file) for f in checkpoint.findings]


def test_a_shard_that_is_missing_in_the_repository_is_a_finding(hub: StandIn, published: Commit) -> None:
    hub.publish(MODEL, {n: b for n, b in published.files.items() if n != SECOND})
    assert of_shards(open_model(MODEL)) == [("shard-missing", SECOND)]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("grown", "the listing says that it has"),
        ("another", "the hub sends another file than it listed"),
    ],
)
def test_a_shard_that_is_not_the_one_in_the_listing_is_a_finding(
    fault: str, says: str, hub: StandIn, published: Commit
) -> None:
    hub.faults.add(fault)
    checkpoint = open_model(MODEL)
    assert {f.code for f in checkpoint.findings} == {"shard-unreadable"}
    assert says in checkpoint.findings[0].message
    hub.faults.clear()
    assert not open_model(MODEL).findings, "nothing of it was kept"


def test_a_hub_behind_a_proxy_that_ignores_ranges_is_one_error(hub: StandIn, published: Commit) -> None:
    hub.faults.add("whole")
    assert "sends the whole file instead of the requested range" in refusal()


def test_a_redirect_that_has_expired_is_asked_for_again(hub: StandIn, cache: Path) -> None:
    header = {f"layer.{i}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(200)}
    text = json.dumps(header).encode()
    shard = len(text).to_bytes(8, "little") + text + bytes(200)
    hub.publish(MODEL, {"config.json": b"{}", "model.safetensors": shard})
    hub.faults.add("expired")
    assert len(open_model(MODEL).table) == 200
    assert len(hub.ranges) == 2
    assert len([p for _, p in hub.requests if p.endswith("model.safetensors")]) == 2 * 2 + 1
