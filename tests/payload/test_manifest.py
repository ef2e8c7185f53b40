"""A manifest holds a tensor to what a known-good copy has, however it is divided into files."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UsageError
from loadmaster.payload import Manifest, read_manifest, survey_payload, verify_payload, write_manifest
from loadmaster.payload.manifest import Stored, check_writable
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.payload.inject import findings, verify


def test_what_is_written_is_read_and_holds_for_another_division_into_files(tiny: Tiny, tmp_path: Path) -> None:
    write_tiny(PRESETS["smollm2"], tmp_path / "divided", num_shards=3)
    manifest = verify(tiny("smollm2"), digesting=True).manifest
    write_manifest(tmp_path / "good.json", manifest)
    read = read_manifest(tmp_path / "good.json")
    assert (read.tensors, read.sound) == (manifest.tensors, True)
    assert len(read.tensors) == len(open_checkpoint(tiny("smollm2")).table)
    assert findings(tmp_path / "divided", against=read) == []
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_each_way_to_differ_is_named(tiny: Tiny) -> None:
    path = tiny("smollm2")
    good = dict(verify(path, digesting=True).manifest.tensors)
    norm = good["model.norm.weight"]
    changed = {
        **{n: t for n, t in good.items() if n != "model.layers.0.input_layernorm.weight"},
        "model.norm.weight": norm._replace(sha256="0" * 64),
        "model.layers.1.input_layernorm.weight": Stored("F32", (7,), norm.sha256),
        "lm_head.weight": norm,
    }
    result = verify(path, against=Manifest(changed, "good.json"))
    assert {(f.tensor, f.code, f.severity) for f in result.findings} == {
        (name, "manifest-differs", "error")
        for name in (
            "model.norm.weight",
            "model.layers.1.input_layernorm.weight",
            "model.layers.0.input_layernorm.weight",
            "lm_head.weight",
        )
    }
    says = {f.tensor: f.message for f in result.findings}
    assert "F32 [7]" in says["model.layers.1.input_layernorm.weight"]
    assert "does not have it" in says["model.layers.0.input_layernorm.weight"]
    assert "was not read here" in says["lm_head.weight"]


def test_a_copy_that_was_not_sound_itself_is_a_warning(tiny: Tiny) -> None:
    path = tiny("smollm2")
    good = verify(path, digesting=True).manifest
    result = verify(path, against=Manifest(good.tensors, "good.json", sound=False))
    assert [(f.code, f.severity) for f in result.findings] == [("manifest-differs", "warning")]
    assert result.sound


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"manifest_of": "loadmaster verify", "version": 1, "tensors": {"a": 1}}']
)
def test_what_is_no_manifest_is_refused_and_not_overwritten(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a manifest"):
        read_manifest(path)
    with pytest.raises(UsageError, match="not a manifest"):
        check_writable(path)


def test_digests_are_the_same_for_any_number_of_threads(tiny: Tiny) -> None:
    survey = survey_payload(open_checkpoint(tiny("qwen3-moe")), digesting=True)
    assert verify_payload(survey, num_threads=1).digests == verify_payload(survey, num_threads=4).digests
