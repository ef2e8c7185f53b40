"""The config, and ModelOpt's file beside it that tells how the weights are quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.config import read_config
from loadmaster.checkpoint.source import LocalFolder
from loadmaster.errors import UnsupportedError
from loadmaster.plan import build_plan, prove
from tests.conftest import Tiny

NVFP4: dict[str, Any] = {
    "quant_algo": "NVFP4",
    "kv_cache_quant_algo": "FP8",
    "group_size": 16,
    "exclude_modules": ["lm_head"],
}


def written(folder: Path, quantisation: object, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    whole = {"producer": {"name": "modelopt", "version": "0.23.0"}, "quantization": quantisation}
    (folder / "hf_quant_config.json").write_text(json.dumps(whole))
    return folder


def moved(folder: Path) -> dict[str, Any]:
    """Move a checkpoint's quantization_config to a file of its own; return what is in that file."""
    config = json.loads((folder / "config.json").read_text())
    quantisation: dict[str, Any] = config.pop("quantization_config")
    del quantisation["quant_method"]
    written(folder, quantisation, **config)
    return quantisation


@pytest.mark.parametrize("preset", ["llama-modelopt-fp4", "llama-modelopt-fp8"])
def test_a_quantisation_told_in_modelopts_own_file_is_planned_as_one_told_in_the_config(
    preset: str, tiny_copy: Tiny
) -> None:
    path = tiny_copy(preset)
    told = build_plan(open_checkpoint(path))
    moved(path)
    plan = build_plan(open_checkpoint(path))
    assert prove(plan).findings == ()
    assert plan.rank(0).specs == told.rank(0).specs


def test_it_is_the_configs_where_that_has_none(tmp_path: Path) -> None:
    config, findings = read_config(LocalFolder(written(tmp_path, NVFP4, hidden_size=8)))
    assert config == {"hidden_size": 8, "quantization_config": {"quant_method": "modelopt", **NVFP4}}
    assert findings == ()


def test_a_quantised_cache_alone_leaves_the_weights_plain(tmp_path: Path) -> None:
    cache = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    assert read_config(LocalFolder(written(tmp_path, cache, hidden_size=8))) == ({"hidden_size": 8}, ())


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"quant_method": "modelopt", "quant_algo": "nvfp4"}, None),
        ({"quant_method": "modelopt"}, None),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "as NVFP4, config.json says FP8; using config.json"),
        ({"quant_method": "fp8"}, "as NVFP4, config.json says fp8; using config.json"),
    ],
)
@pytest.mark.parametrize("section", [False, True])
def test_the_config_is_followed_and_a_contradiction_is_a_warning(
    own: dict[str, Any], says: str | None, section: bool, tmp_path: Path
) -> None:
    whole: dict[str, Any] = {"quantization_config": own}
    whole = {"text_config": whole} if section else whole
    config, findings = read_config(LocalFolder(written(tmp_path, NVFP4, **whole)))
    assert config == whole
    assert [(f.code, f.severity) for f in findings] == ([("quantization-disagrees", "warning")] if says else [])
    assert all(str(says) in f.message for f in findings)


@pytest.mark.parametrize(
    ("quantisation", "says"),
    [
        ([], "quantization is not an object"),
        ({}, "quantization has no quant_algo"),
        ({"quant_algo": 4}, "quant_algo is 4"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "exclude_modules is not a list of strings"),
    ],
)
def test_what_is_wrong_in_it_is_a_finding_and_an_error_where_it_is_needed(
    quantisation: object, says: str, tmp_path: Path
) -> None:
    (found,) = read_config(LocalFolder(written(tmp_path, quantisation)))[1]
    assert (found.code, found.severity, found.file) == ("config-invalid", "error", "hf_quant_config.json")
    assert says in found.message
    (found,) = read_config(LocalFolder(written(tmp_path, quantisation, quantization_config={"quant_method": "fp8"})))[1]
    assert found.severity == "warning"


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "file-empty"), (b"{", "config-invalid"), (b"[]", "config-invalid"), (b'{"a": 1, "a": 2}', "config-invalid")],
)
def test_a_file_that_cannot_be_read_is_a_finding_with_its_name(content: bytes, code: str, tmp_path: Path) -> None:
    written(tmp_path, NVFP4)
    (tmp_path / "hf_quant_config.json").write_bytes(content)
    config, (found,) = read_config(LocalFolder(tmp_path))
    assert config == {}
    assert (found.code, found.severity, found.file) == (code, "error", "hf_quant_config.json")


def test_an_algorithm_that_is_not_supported_is_refused_by_name(tiny_copy: Tiny) -> None:
    path = tiny_copy("llama-modelopt-fp8")
    quantisation = moved(path)
    config = json.loads((path / "config.json").read_text())
    written(path, {**quantisation, "quant_algo": "W4A8_AWQ"}, **config)
    with pytest.raises(UnsupportedError, match="'W4A8_AWQ' is not supported"):
        build_plan(open_checkpoint(path))
