"""What is given as a checkpoint and is none: each is refused by what it is, with what to give in its place."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint, resolve_model
from loadmaster.cli.main import main
from loadmaster.errors import CheckpointError
from tests.conftest import Tiny

BASE = {"base_model_name_or_path": "meta-llama/Llama-3.1-8B", "peft_type": "LORA"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAFETENSORS = struct.pack("<Q", 2) + b"{}"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert [f.code for f in refused.value.findings] == ["checkpoint-missing"]
    return str(refused.value)


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_lora_adapter_is_refused_by_the_model_that_it_is_an_adapter_of(weights: str, tmp_path: Path) -> None:
    write(tmp_path, **{"adapter_config.json": json.dumps(BASE).encode(), weights: SAFETENSORS})
    said = refusal(tmp_path)
    assert "a LoRA adapter of meta-llama/Llama-3.1-8B, not a model" in said
    assert "merge_and_unload()" in said


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"base_model_name_or_path": null}', b"[" * 100_000, b"\xff"])
def test_an_adapter_that_names_no_base_model_is_still_an_adapter(config: bytes, tmp_path: Path) -> None:
    write(tmp_path, **{"adapter_config.json": config, "adapter_model.safetensors": SAFETENSORS})
    assert "is a LoRA adapter, not a model" in refusal(tmp_path)


def test_an_adapter_s_file_by_itself_misses_its_config_as_what_it_is(tmp_path: Path, tiny: Tiny) -> None:
    shard = (tiny("llama") / "model-00001-of-00002.safetensors").read_bytes()
    write(tmp_path, **{"adapter_config.json": json.dumps(BASE).encode(), "adapter_model.safetensors": shard})
    (found,) = open_checkpoint(tmp_path / "adapter_model.safetensors").findings
    assert (found.code, "LoRA adapter of meta-llama" in found.message) == ("config-missing", True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["model_index.json", "unet/config.json", "unet/x.safetensors"], "a pipeline of diffusers"),
        (["tokenizer.json", "tokenizer_config.json"], "holds a tokenizer, but no weights"),
        (["config.json", "tokenizer.json"], "holds a config and a tokenizer, but no weights"),
        (["params.json", "consolidated.00.pth"], "publisher's own layout"),
        (["tf_model.h5", "config.json"], "TensorFlow weights"),
        (["flax_model.msgpack", "model.onnx"], "Flax and ONNX weights"),
        (["a/config.json", "a/model.safetensors", "b/readme"], "in its subfolders (a); give it, such as {}/a"),
        (["blobs/0", f"snapshots/{COMMIT}/config.json", "refs/main"], "give owner/model as MODEL, or"),
        (["models--a--b/refs/main", "models--c--d/refs/main"], "the hub cache; give a hub id"),
    ],
)
def test_a_folder_of_another_kind_says_what_it_is(files: list[str], says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "models--owner--model", **dict.fromkeys(files, b""))
    assert says.format(folder) in refusal(folder)


def test_the_hub_s_cache_says_which_folder_to_give(tmp_path: Path) -> None:
    folder = write(tmp_path / "models--owner--model", **{f"snapshots/{COMMIT}/x": b"", "refs/main": COMMIT.encode()})
    for given in (folder, folder / "snapshots"):
        assert f"{folder}/snapshots/{COMMIT}" in refusal(given)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b'{"architectures": []}', ["a JSON file", "give the folder: {}"]),
        ("model.safetensors.index.json", b'\n {"weight_map": {}}', ["a JSON file", "give the folder: {}"]),
        ("model.gguf", b"GGUF\x03\0\0\0" + bytes(40), ["a GGUF file", "safetensors repository"]),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(40), ["a zip archive", "save_pretrained"]),
        ("old.bin", b"\x80\x02}q\0" + bytes(40), ["a pickle", "save_pretrained"]),
        ("README.md", b"# A model of ours, with text", ["another kind of file", "give the folder: {}"]),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused_by_what_it_is(
    name: str, content: bytes, says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, **{"model.safetensors": SAFETENSORS, name: content})
    said = refusal(folder / name)
    assert all(s.format(folder) in said for s in says), said
    for command in ("plan", "inspect", "verify"):
        assert main([command, str(folder / name)]) == 1
        assert "header" not in capsys.readouterr().err


def test_a_shard_under_another_name_is_opened(tmp_path: Path, tiny: Tiny) -> None:
    shard = (tiny("llama") / "model-00001-of-00002.safetensors").read_bytes()
    write(tmp_path, **{"config.json": b"{}", "shard.old": shard})
    assert not open_checkpoint(tmp_path / "shard.old").findings


def test_links_to_nothing_are_said_to_be_that(tmp_path: Path, tiny_copy: Tiny) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="is a link to nowhere, which does not exist"):
        resolve_model(str(link))
    for name, code in (("config.json", "config-invalid"), ("model.safetensors.index.json", "index-invalid")):
        folder = tiny_copy("llama")
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/gone")
        found = next(f for f in open_checkpoint(folder).findings if f.code == code)
        assert "No such file" in found.message
        (folder / name).unlink()
        break_off = tmp_path / f"done-{name}"
        folder.rename(break_off)


def test_a_device_or_a_pipe_is_no_folder_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a FIFO"), (Path("/dev/null"), "a device")):
        assert f"{path} is {what}" in refusal(path)


@pytest.mark.parametrize("model", ["x\0y", "a" * 5000, "~nobody-of-that-name/x", "\udcff"])
def test_a_name_that_no_file_can_have_is_an_error(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", model]) == 1
    assert "CheckpointError" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, [], {}, "LlamaForCausalLM", [None], 7, [10**30], ["\x1b[31m"]])
def test_inspect_shows_a_checkpoint_whose_architectures_are_no_list_of_names(
    value: object, tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": value}))
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    is_names = isinstance(value, list) and bool(value) and isinstance(value[0], str)
    assert ("the config names no architecture" in said) != is_names
    said.encode()
    assert "\x1b" not in said
    assert main(["inspect", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["architectures"]
    assert (shown is not None) == is_names
    if value in (None, []):  # then model_type decides
        assert main(["plan", str(folder)]) == 0
    else:
        assert main(["plan", str(folder)]) == 1
        assert "Error: config.json" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '"x"', "7", "null"])
def test_a_config_that_is_no_object_is_a_finding_of_every_command(
    text: str, tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_copy("llama")
    (folder / "config.json").write_text(text)
    for command in ("plan", "inspect"):
        assert main([command, str(folder)]) == 1
        said = capsys.readouterr()
        assert "config.json is not a JSON object" in said.out + said.err


def test_a_failure_before_a_plan_claims_no_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path / "nowhere"), "--json"]) == 1
    scope = json.loads(capsys.readouterr().out)["scope"]
    assert scope["checked"] == []
    assert "every shard's header, the index and the config" in scope["not_checked"]
