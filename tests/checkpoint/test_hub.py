"""A hub id whose files have to be on disk: only what is needed is downloaded, and what is there in part is no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save

from loadmaster.architectures.llama import FAMILY
from loadmaster.checkpoint import resolve_model
from loadmaster.cli.main import build_parser, main
from loadmaster.cli.planning import prove_to_load
from loadmaster.errors import CheckpointError, PlanError
from loadmaster.plan import Proof
from loadmaster.testing import write_checkpoint
from tests.architectures.test_mistral_names import CONFIG as MISTRAL
from tests.architectures.test_mistral_names import PARAMS
from tests.checkpoint.standin import Commit, StandIn, folder_files
from tests.conftest import Tiny

MODEL = "owner/model"
BESIDE = {
    "original/consolidated.00.pth": b"p" * 900,
    "original/params.json": b"{}",
    "consolidated.safetensors": b"c" * 900,
    "adapter_model.safetensors": b"a" * 900,
    "pytorch_model.bin": b"b" * 900,
    "model-Q4.gguf": b"g" * 900,
    "onnx/model.safetensors": b"o" * 900,
    "forgotten.safetensors": b"f" * 900,
    "README.md": b"# model",
    "training_args.json": b"{}",
}
"""What repositories hold beside a model."""
COMMANDS = ("plan", "inspect", "verify")


@pytest.fixture
def published(hub: StandIn, cache: Path, tiny: Tiny) -> Commit:
    """A model of two shards with an index, a tokenizer and a chat template, and what is not needed beside it."""
    return hub.publish(MODEL, {**folder_files(tiny("llama")), "chat_template.jinja": b"{{ messages }}", **BESIDE})


def names(commit: Commit) -> set[str]:
    return {n for n in commit.files if n not in BESIDE}


def cached(cache: Path) -> set[str]:
    return {p.name for p in cache.rglob("snapshots/*/*")}


def asked(hub: StandIn) -> list[tuple[str, str]]:
    """What was asked for of models; the client has questions of its own beside."""
    return [(method, path) for method, path in hub.requests if MODEL in path]


def refusal(model: str = MODEL, *, revision: str | None = None, download: bool = False) -> str:
    with pytest.raises(CheckpointError) as refused:
        resolve_model(model, revision, download=download)
    return str(refused.value)


def every_rank(proof: Proof) -> range:
    return range(proof.plan.num_ranks)


def test_a_model_that_is_not_in_the_cache_is_not_downloaded_unasked(
    hub: StandIn, published: Commit, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", MODEL]) == 1
    said = capsys.readouterr().err
    wanted = names(published) | {"forgotten.safetensors"}  # only the index could tell that it is none of the shards
    size = sum(len(published.files[n]) for n in wanted)
    assert f"up to {len(wanted)} files of {size:,} bytes" in said
    assert published.sha in said
    assert "--download" in said
    assert asked(hub) == [("GET", f"/api/models/{MODEL}")]
    assert not hub.sent
    assert not cached(cache)


def test_what_would_be_downloaded_is_exact_where_the_shards_are_numbered(hub: StandIn, cache: Path, tiny: Tiny) -> None:
    files = folder_files(tiny("llama"))
    hub.publish(MODEL, files)
    assert f"the cache: {len(files)} files of {sum(map(len, files.values())):,} bytes" in refusal()


def test_with_download_only_what_the_model_needs_is_fetched(
    hub: StandIn, published: Commit, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", MODEL, "--download"]) == 0
    assert cached(cache) == names(published)
    assert set(hub.sent) == names(published)
    assert hub.sent == {n: len(published.files[n]) for n in names(published)}
    assert not [p for _, p in asked(hub) if any(p.endswith(f"/{n}") for n in BESIDE)]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loadmaster ")]
    shown = sum(len(published.files[n]) for n in names(published) if n != "model.safetensors.index.json")
    assert lines == [
        f"loadmaster verify: downloading {len(names(published)) - 1} files of {shown:,} bytes "
        f"({shown / 2**20:.1f} MiB) of {MODEL}, commit {published.sha}"
    ]
    hub.requests.clear()
    assert main(["verify", MODEL]) == 0
    assert asked(hub) == [("GET", f"/api/models/{MODEL}")]


def test_a_model_of_one_file_is_that_file(hub: StandIn, cache: Path) -> None:
    hub.publish(
        MODEL, {"config.json": b"{}", "model.safetensors": b"m", "consolidated.safetensors": b"c", "x.py": b"x"}
    )
    resolve_model(MODEL, download=True)
    assert cached(cache) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("command", ["load", "generate", "serve"])
def test_what_runs_a_model_proves_it_from_its_headers_then_downloads_it_and_says_so(
    command: str, published: Commit, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, _ = prove_to_load(build_parser().parse_args([command, MODEL]), every_rank)
    plan = proof.plan
    assert plan.checkpoint.origin.is_local
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loadmaster ")]
    read, downloaded = lines
    assert read.startswith(f"loadmaster {command}: read 2 header(s) of {MODEL}")
    assert downloaded.startswith(f"loadmaster {command}: downloading ")
    assert cached(cache) == names(published)


@pytest.mark.parametrize("command", ["load", "generate", "serve"])
def test_a_model_that_cannot_work_is_refused_before_it_is_downloaded(
    command: str, hub: StandIn, published: Commit, cache: Path
) -> None:
    lacking = json.loads(published.files["config.json"]) | {"num_hidden_layers": 5}
    hub.publish(MODEL, {**published.files, "config.json": json.dumps(lacking).encode()})
    with pytest.raises(PlanError, match="no shard holds any tensor of layer 4"):
        prove_to_load(build_parser().parse_args([command, MODEL]), every_rank)
    assert cached(cache) == {"config.json", "model.safetensors.index.json"}
    assert sum(hub.sent[n] for n in published.files if n.endswith(".safetensors")) < 10_000


def test_the_environment_of_the_hubs_client_holds_and_offline_a_cached_model_works(
    hub: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    hub.publish(MODEL, folder_files(tiny("llama")), revision="v2")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    ours = {**kept, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "theirs"), "HF_TOKEN": "hf_secret"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "loadmaster", "verify", MODEL, "--revision", "v2"]
        command += ["--download"] if not more else []
        return subprocess.run(command, env=ours | more, capture_output=True, text=True, timeout=300)

    done = run()
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path / "theirs")
    before = len(hub.requests)
    done = run(HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(hub.requests) == before


def test_a_snapshot_without_a_shard_that_its_index_names_is_no_model(
    hub: StandIn, published: Commit, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = resolve_model(MODEL, download=True)
    gone = "model-00002-of-00002.safetensors"
    (folder / gone).resolve().unlink()
    hub.sent.clear()
    assert f"only partly in the cache: 1 file of {len(published.files[gone]):,} bytes" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for download in (False, True):
        said = refusal(download=download)
        assert f"only partly in the cache ({gone} missing in {folder})" in said
        assert "HF_HUB_OFFLINE" in said
    assert not hub.sent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve_model(MODEL, download=True) == folder
    assert set(hub.sent) == {gone}


def test_a_tokenizer_in_the_cache_is_no_model(hub: StandIn, published: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    snapshot_download(MODEL, allow_patterns=["config.json", "tokenizer*"])
    assert "only partly in the cache: " in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "only partly in the cache (all shards missing" in refusal()


def test_a_plan_does_without_files_that_only_running_needs(hub: StandIn, published: Commit) -> None:
    folder = resolve_model(MODEL, download=True)
    (folder / "tokenizer.json").unlink()
    hub.sent.clear()
    assert resolve_model(MODEL) == folder
    assert not hub.sent
    assert resolve_model(MODEL, download=True) == folder
    assert (folder / "tokenizer.json").exists()


def test_a_new_commit_counts_what_the_cache_lacks_of_it(hub: StandIn, published: Commit) -> None:
    old = resolve_model(MODEL, download=True)
    moved = hub.publish(MODEL, {**published.files, "README.md": b"# another"})
    hub.sent.clear()
    assert resolve_model(MODEL).name == moved.sha != old.name
    assert not hub.sent, "all of it is in the cache, under the old commit"
    hub.publish(MODEL, {**published.files, "config.json": published.files["config.json"] + b" "})
    said = refusal()
    assert f"1 file of {len(published.files['config.json']) + 1:,} bytes" in said
    assert resolve_model(MODEL, published.sha) == old


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("drop-info", ["the connection to the hub", "failed"]),
        ("private", ["no such model, or it is private", "HF_TOKEN"]),
        ("busy", ["HTTP status 503", "try again later"]),
        ("web-page", ["is not valid", "HF_ENDPOINT"]),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_that_fails_is_one_error_and_exit_1_without_a_cache(
    command: str, fault: str, says: list[str], hub: StandIn, published: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.add(fault)
    assert main([command, MODEL]) == 1
    said = capsys.readouterr().err
    assert f"CheckpointError: {MODEL} is not in the cache, and " in said
    assert all(s in said for s in says), said
    assert hub.url in said
    assert len(said.splitlines()) <= 2


@pytest.mark.parametrize("fault", ["drop-info", "private", "busy", "web-page"])
def test_a_hub_that_fails_beside_a_cached_model_is_a_line_and_the_cached_model(
    fault: str, hub: StandIn, published: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve_model(MODEL, download=True)
    hub.faults.add(fault)
    assert main(["plan", MODEL]) == 0
    assert f"using commit {published.sha} of {MODEL} from the cache" in capsys.readouterr().err


def test_no_hub_at_all_is_one_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for endpoint in ("http://127.0.0.1:1", "http://[", "nonsense"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        said = refusal()
        assert f"is not in the cache, and the connection to the hub ({endpoint}) failed" in said


def test_a_wrong_revision_and_a_wrong_name_are_said(hub: StandIn, published: Commit) -> None:
    resolve_model(MODEL, download=True)
    assert "has no revision v9 of it" in refusal(revision="v9")
    assert "has no such model" in refusal("owner/nobody")
    assert "not a hub id either" in refusal("owner/..nobody--")


def test_a_gated_model_is_listed_and_its_download_refused(hub: StandIn, published: Commit) -> None:
    hub.faults.add("gated")
    assert "--download" in refusal()
    said = refusal(download=True)
    assert "gated" in said
    assert "HF_TOKEN" in said


def test_a_connection_dropped_in_the_middle_leaves_no_model_and_the_next_run_ends_it(
    hub: StandIn, published: Commit, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.add("drop-files")
    assert main(["verify", MODEL, "--download"]) == 1
    said = capsys.readouterr().err
    assert f"could not download {MODEL} from the hub: " in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert "only partly in the cache: 2 files" in refusal()
    hub.faults.clear()
    assert main(["verify", MODEL, "--download"]) == 0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], ["is a LoRA adapter, not a model", "base model"]),
        (["model_index.json", "unet/model.safetensors"], ["a pipeline of diffusers"]),
        (["config.json", "pytorch_model.bin"], ["no .safetensors file", "pickled"]),
        (["model-Q4.gguf"], ["no .safetensors file", "GGUF"]),
        (["config.json", "original/model.safetensors"], ["no .safetensors file"]),
        (["tokenizer.json"], ["a tokenizer, but no weights"]),
        (["params.json", "consolidated.00.pth"], ["its publisher's own layout"]),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_what_is_no_model_is_refused_before_a_byte_of_it_is_downloaded(
    files: list[str], says: list[str], download: bool, hub: StandIn, cache: Path
) -> None:
    hub.publish(MODEL, dict.fromkeys(files, b"x"))
    said = refusal(download=download)
    assert all(s in said for s in says), said
    assert not hub.sent


def test_a_model_in_mistrals_own_form_is_planned_and_downloaded(
    hub: StandIn, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    write_checkpoint(FAMILY, MISTRAL, tmp_path / "m", spelling=1)
    tensors = {n: t for file in sorted((tmp_path / "m").glob("*.safetensors")) for n, t in load_file(file).items()}
    files = {"params.json": json.dumps(PARAMS).encode(), "consolidated.safetensors": save(tensors)}
    hub.publish(MODEL, {**files, "tekken.json": b"{}"})
    assert main(["plan", MODEL, "-pp", "2"]) == 0
    assert cached(cache) == {"params.json"}
    assert main(["verify", MODEL, "--download"]) == 0
    assert cached(cache) == {*files, "tekken.json"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["verify", MODEL]) == 0


def test_an_unasked_download_is_one_object_with_json(published: Commit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", MODEL, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["scope"]["checked"] == []
    assert [f["code"] for f in found["findings"]] == ["checkpoint-missing"]
    assert "--download" in found["error"]["hint"]


def test_a_revision_of_a_folder_is_not_used_and_that_is_said(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny("llama")), "--revision", "v2"]) == 0
    assert "--revision v2 is ignored" in capsys.readouterr().err
