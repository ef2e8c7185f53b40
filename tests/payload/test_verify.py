"""Each defect of a payload is found at its tensor, and a good payload has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadError
from loadmaster.payload import survey_payload, verify_payload
from loadmaster.payload.survey import FileTask
from loadmaster.synth.write import write_shard
from tests.conftest import Tiny
from tests.payload.inject import clear, copy, findings, only, poke, put, values_of, verify

GLM, DEEPSEEK, SMOLLM = "glm-5.1-fp8", "deepseek-v3", "smollm2"
Q_A = "model.layers.0.self_attn.q_a_proj."


def with_copies(path: Path) -> Path:
    """Have the draft's own embedding and head agree with the model's, as published checkpoints have them."""
    draft = "model.layers.6."
    copy(path, "model.embed_tokens.weight", f"{draft}embed_tokens.weight")
    copy(path, "lm_head.weight", f"{draft}shared_head.head.weight")
    return path


@pytest.mark.parametrize("family", [GLM, SMOLLM, "glm-5.2-fp8", "qwen3"])
def test_a_good_payload_has_no_findings_and_every_byte_is_read_once(family: str, tiny: Tiny) -> None:
    result = verify(tiny(family))
    assert result.findings == ()
    assert result.read_bytes == sum(f.stat().st_size for f in tiny(family).glob("*.safetensors"))


def test_a_draft_whose_own_copies_agree_has_no_findings(tiny_copy: Tiny) -> None:
    assert findings(with_copies(tiny_copy(DEEPSEEK))) == []


@pytest.mark.parametrize(
    ("family", "tensor", "value", "says"),
    [
        (SMOLLM, "model.layers.1.mlp.up_proj.weight", np.nan, "1 NaN, first at [3, 5]"),
        (SMOLLM, "model.embed_tokens.weight", -np.inf, "1 infinite, first at [3, 5]"),
        (GLM, "model.layers.5.mlp.experts.7.down_proj.weight", np.nan, "1 NaN, first at [3, 5]"),
        (GLM, "lm_head.weight", np.inf, "1 infinite, first at [3, 5]"),
    ],
)
def test_one_value_that_is_not_finite_is_found_where_it_is(
    family: str, tensor: str, value: float, says: str, tiny_copy: Tiny
) -> None:
    path = tiny_copy(family)
    put(path, tensor, (3, 5), value)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("value-not-finite", "error", tensor)
    assert says in found.message


def test_nan_in_a_scale_is_reported_as_that_and_not_as_a_size(tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    put(path, f"{Q_A}weight_scale_inv", (0, 0), np.nan)
    assert only(findings(path)).code == "value-not-finite"


def test_a_weight_or_norm_of_zeros_is_a_warning_and_a_bias_is_not(tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    clear(path, "model.norm.weight")
    clear(path, "model.layers.0.self_attn.indexer.k_norm.bias")
    clear(path, "model.layers.4.mlp.gate.e_score_correction_bias")
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("value-all-zero", "warning", "model.norm.weight")
    assert verify(path).sound


def test_negative_zeros_are_zeros(tiny_copy: Tiny) -> None:
    path = tiny_copy(SMOLLM)
    poke(path, "model.norm.weight", lambda values: values.fill(-0.0))
    assert only(findings(path)).code == "value-all-zero"


@pytest.mark.parametrize(
    ("value", "severity", "says"),
    [
        (0.0, "error", "1 zero, first at [0, 1]"),
        (-0.5, "error", "1 negative, first at [0, 1]"),
        (1e-16, "warning", "1 implausibly small"),
        (1e5, "warning", "1 implausibly large"),
    ],
)
def test_a_scale_is_positive_and_of_a_plausible_size(value: float, severity: str, says: str, tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    tensor = "model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv"
    put(path, tensor, (0, 1), value)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("scale-implausible", severity, tensor)
    assert says in found.message


def test_a_scale_of_the_draft_is_one_too(tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    put(path, "model.layers.6.self_attn.o_proj.weight_scale_inv", (0, 0), -1.0)
    assert only(findings(path)).code == "scale-implausible"


def configure(path: Path, **changes: Any) -> Path:
    """Change values of config.json; None removes one."""
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "code", "planned"),
    [
        ({"quantization_config": None}, "format-contradiction", True),
        ({"hidden_size": 384}, "shape-mismatch", True),
        ({"architectures": ["NobodyForCausalLM"]}, "architecture-unknown", False),
        ({"quantization_config": {"quant_method": "exl2"}}, "unsupported", False),
    ],
)
def test_scales_that_no_plan_tells_are_checked_by_their_names_and_the_plan_stands_in_the_way(
    changes: dict[str, Any], code: str, planned: bool, tiny_copy: Tiny
) -> None:
    path = configure(tiny_copy(GLM), **changes)
    scale = "model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv"
    result = verify(path)
    errors = {f.code for f in result.findings if f.severity == "error"}
    assert code in errors and "scale-implausible" not in errors and not result.sound
    assert (result.survey.roles.proof is not None, result.survey.roles.unplanned is None) == (planned, planned)
    put(path, scale, (0, 1), -1e9)
    [found] = [f for f in findings(path) if f.code == "scale-implausible"]
    assert (found.severity, found.tensor) == ("error", scale)
    roles = survey_payload(open_checkpoint(path)).roles
    assert {i for i, n in enumerate(open_checkpoint(path).table.names) if n.endswith("_scale_inv")} >= set(roles.named)
    assert len(roles.named) > 100


def test_a_plan_that_is_proven_tells_every_scale_itself(tiny: Tiny) -> None:
    roles = survey_payload(open_checkpoint(tiny(GLM))).roles
    assert roles.proof is not None and roles.proof.proven
    assert (roles.named, roles.scales, roles.encoded) == ((), (), ())


def test_encoded_tensors_without_scales_are_counted_and_named(tmp_path: Path) -> None:
    tensors = [("layers.0.up.weight", "F8_E4M3", (4, 4)), ("layers.0.up.dynamic_scale_of_rows", "F32", (4,))]
    write_shard(tmp_path / "model.safetensors", tensors, [bytes(range(16)), np.ones(4, "<f4").tobytes()])
    (tmp_path / "config.json").write_text('{"architectures": ["NobodyForCausalLM"]}')
    result = verify(tmp_path)
    names = open_checkpoint(tmp_path).table.names
    assert [names[i] for i in result.survey.roles.encoded] == ["layers.0.up.weight"]
    assert [names[i] for i in result.survey.roles.scales] == ["layers.0.up.dynamic_scale_of_rows"]
    found = [f for f in result.findings if f.code == "scale-unchecked"]
    assert [(f.severity, f.tensor) for f in found] == [
        ("error", "layers.0.up.dynamic_scale_of_rows"),
        ("error", "layers.0.up.weight"),
    ]


def test_without_a_plan_values_are_checked_and_nothing_is_called_sound(tiny_copy: Tiny) -> None:
    path = configure(tiny_copy(SMOLLM), architectures=["NobodyForCausalLM"])
    assert [(f.code, f.severity) for f in findings(path)] == [("architecture-unknown", "error")]
    put(path, "model.norm.weight", (0,), np.nan)
    assert {f.code for f in findings(path)} == {"architecture-unknown", "value-not-finite"}
    (path / "config.json").unlink()
    assert {f.code for f in findings(path)} == {"config-missing", "value-not-finite"}


def test_a_plan_that_is_not_proven_is_not_called_sound(tiny_copy: Tiny) -> None:
    path = configure(tiny_copy("qwen3-moe"), num_experts_per_tok=4096)
    result = verify(path)
    assert [f.code for f in result.findings] == ["config-invalid"]
    assert "num_experts_per_tok is 4,096" in result.findings[0].message and not result.sound


def test_a_draft_embedding_unlike_the_model_says_where_it_differs(tiny_copy: Tiny) -> None:
    path = with_copies(tiny_copy(DEEPSEEK))
    tensor = "model.layers.6.embed_tokens.weight"
    put(path, tensor, (2, 3), 9.0)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("copy-differs", "warning", tensor)
    assert "model.embed_tokens.weight, first at [2, 3]" in found.message


def tied_with_head(path: Path, dtype: str = "BF16") -> None:
    """Store a head beside a tied embedding: the embedding itself in another number format, or as it is."""
    table = open_checkpoint(path).table
    shape = table.signatures[table.signature[table.ids["model.embed_tokens.weight"]]].shape
    tensors, bodies = [("lm_head.weight", dtype, shape)], []
    values = values_of(path, "model.embed_tokens.weight")
    bodies.append((values if dtype == "BF16" else values.astype(np.float32)).tobytes())
    write_shard(path / "model-head.safetensors", tensors, bodies)


def test_a_stored_head_beside_a_tied_embedding_must_agree(tiny_copy: Tiny) -> None:
    path = tiny_copy(SMOLLM)
    tied_with_head(path)
    assert findings(path) == []
    put(path, "lm_head.weight", (1, 2), 9.0)
    found = only(findings(path))
    assert (found.code, found.tensor) == ("copy-differs", "lm_head.weight")
    assert "tied to the embedding" in found.message


def test_copies_in_different_formats_are_said_to_be(tiny_copy: Tiny) -> None:
    path = tiny_copy(SMOLLM)
    tied_with_head(path, "F32")
    found = only(findings(path))
    assert found.code == "copy-differs"
    assert "is F32" in found.message and "is BF16" in found.message


def test_a_truncated_shard_is_the_headers_finding_and_the_rest_is_read(tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    put(path, "model.norm.weight", (0,), np.nan)
    names = open_checkpoint(path)
    last = path / names.files[names.table.file[names.table.ids["model.norm.weight"]]].name
    first = next(f for f in sorted(path.glob("*.safetensors")) if f != last)
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 1)
    assert {f.code for f in findings(path)} == {"file-truncated", "value-not-finite"}
    assert not verify(path).sound


def test_a_file_that_changes_while_it_is_read_is_a_failure(tiny_copy: Tiny) -> None:
    path = tiny_copy(SMOLLM)
    survey = survey_payload(open_checkpoint(path))
    put(path, "model.norm.weight", (0,), 1.0)
    with pytest.raises(LoadError, match=r"model.safetensors changed"):
        verify_payload(survey)
    (path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(LoadError, match=r"model.safetensors ends"):
        verify_payload(survey)


def task(**columns: list[int]) -> FileTask:
    made: dict[str, Any] = {k: np.array(v, dtype=np.int64) for k, v in columns.items()}
    return FileTask("f", int(made.pop("size")[0]), 0, np.arange(len(made["start"])), **made)


def test_a_chunk_ends_between_elements_and_chunks_tile_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadmaster.payload.survey.CHUNK", 16)
    made = task(size=[64], start=[10, 34], stop=[34, 64], units=[4, 3])
    assert list(made.chunks()) == [(0, 14), (14, 30), (30, 46), (46, 61), (61, 64)]
    assert [list(made.parts(*c)) for c in made.chunks()][2] == [(0, 30, 34), (1, 34, 46)]


def test_chunks_of_any_size_find_the_same(tiny_copy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_copy(GLM)
    put(path, "model.layers.5.mlp.experts.7.down_proj.weight", (31, 90), np.nan)
    put(path, f"{Q_A}weight_scale_inv", (0, 1), 0.0)
    whole = findings(path)
    assert [f.code for f in whole] == ["value-not-finite", "scale-implausible"]
    for chunk in (2**16, 100_000):
        monkeypatch.setattr("loadmaster.payload.survey.CHUNK", chunk)
        monkeypatch.setattr("loadmaster.payload.verify.CHUNK", chunk)
        assert findings(path) == whole
