"""What only a look at other layers and experts shows: copies, outliers, holes, factors and indices that can't be meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from tests.conftest import Tiny
from tests.payload.inject import clear, copy, findings, only, poke, verify

GLM, GPTQ = "glm-5.1-fp8", "qwen3-moe-gptq"
UP = "model.layers.3.mlp.experts.0.up_proj."


def names(path: Path, prefix: str) -> list[str]:
    return [n for n in open_checkpoint(path).table.names if n.startswith(prefix)]


def copy_all(path: Path, source: str, target: str) -> int:
    """Give all tensors below one prefix the values of those below another; return how many."""
    there = {n: target + n.removeprefix(source) for n in names(path, source)}
    pairs = [(a, b) for a, b in there.items() if b in open_checkpoint(path).table.ids]
    for a, b in pairs:
        copy(path, a, b)
    return len(pairs)


@pytest.mark.parametrize(
    "preset", ["mixtral-w8a8", "gpt-oss", "deepseek-v3-modelopt-fp4", "qwen3-moe-nvfp4", GPTQ, "phi-4"]
)
def test_a_good_payload_of_any_format_has_no_warnings(preset: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_tiny(PRESETS[preset], tmp_path / str(seed), seed=seed)
        assert [f for f in findings(tmp_path / str(seed)) if f.severity != "note"] == []


@pytest.mark.parametrize("below", [".", ".mlp.experts."])
def test_a_layer_or_its_experts_that_are_a_copy_of_anothers_are_one_warning(below: str, tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    assert copy_all(path, f"model.layers.4{below}", f"model.layers.3{below}") > 10
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("tensor-copied", "warning", "model.layers.4.*")
    assert "exactly the same bytes as model.layers.3" in found.message


def test_a_tensor_unlike_its_copy_in_one_byte_is_none(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    a, b = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    copy(path, a, b)
    assert only(findings(path)).tensor == b

    def change(values: Any) -> None:
        values.view(np.uint16)[-1, -1] ^= 1

    poke(path, b, change)
    assert findings(path) == []


def test_experts_that_are_all_alike_are_one_warning_that_counts_them(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3-moe")
    own = "model.layers.2.mlp.experts."
    for expert in range(1, 8):
        copy_all(path, f"{own}0.", f"{own}{expert}.")
    found = only(findings(path))
    assert (found.code, found.tensor) == ("tensor-copied", f"{own}1.*")
    assert "and 6 more like it" in found.message


@pytest.mark.parametrize(("factor", "code"), [(100.0, "value-outlier"), (0.01, "value-outlier"), (8.0, None)])
def test_a_scale_a_hundred_times_its_peers_is_an_outlier(factor: float, code: str | None, tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)

    def multiply(values: Any) -> None:
        values *= factor

    poke(path, f"{UP}weight_scale_inv", multiply)
    found = findings(path)
    assert [(f.code, f.severity, f.tensor) for f in found] == ([(code, "warning", f"{UP}weight")] if code else [])
    if code:
        times_median = float(found[0].message.split(" times the median of ")[0].split()[-1])
        assert times_median == pytest.approx(factor, rel=0.2)


def test_plain_weights_a_hundred_times_their_peers_are_an_outlier(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3-moe")
    name = "model.layers.1.self_attn.o_proj.weight"
    poke(path, name, lambda values: values.__imul__(values.dtype.type(100)))
    assert [(f.code, f.tensor) for f in findings(path)] == [("value-outlier", name)]


def test_scales_that_are_all_one_beside_fp8_are_a_warning(tiny_copy: Tiny) -> None:
    path = tiny_copy(GLM)
    poke(path, f"{UP}weight_scale_inv", lambda values: values.fill(1))
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("scale-unset", "warning", f"{UP}weight_scale_inv")
    assert "exactly 1" in found.message and "F8_E4M3" in found.message


def test_exponents_that_are_all_zero_are_an_error_unless_the_codes_are_zero_too(tiny_copy: Tiny) -> None:
    path = tiny_copy("gpt-oss")
    scales = "model.layers.1.mlp.experts.down_proj_scales"
    clear(path, scales)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("scale-unset", "error", scales)
    clear(path, "model.layers.1.mlp.experts.down_proj_blocks")
    assert [f.code for f in findings(path)] == ["value-all-zero"]


def test_half_of_a_weight_that_is_zero_is_a_hole(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    name = "model.layers.1.mlp.up_proj.weight"

    def half(values: Any) -> None:
        values[len(values) // 4 : 3 * len(values) // 4] = 0

    poke(path, name, half)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("value-hole", "warning", name)
    table = open_checkpoint(path).table
    size = int(table.nbytes[table.ids[name]])
    count, first = (int(found.message.split(word)[0].split()[-1].replace(",", "")) for word in (" of its", " (BF16"))
    assert abs(count - size / 2) <= size / 16 and abs(first - size / 4) <= size / 16


def test_rows_that_pad_a_vocabulary_are_no_hole(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    poke(path, "model.embed_tokens.weight", lambda values: values[-len(values) // 20 :].fill(0))
    assert findings(path) == []


def set_group(place: int, group: int) -> Callable[[Any], None]:
    return lambda values: values.__setitem__(place, group)


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        (set_group(3, -1), "error", "names groups -1 to"),
        (set_group(3, 1000), "error", "to 1000"),
        (set_group(3, 1), "warning", "groups have"),
        (lambda values: values.__setitem__(slice(None), values[::-1].copy()), "warning", "not in the order"),
    ],
)
def test_an_index_names_groups_that_are_there_and_each_as_often(
    change: Callable[[Any], None], severity: str, says: str, tiny_copy: Tiny
) -> None:
    path = tiny_copy(GPTQ)
    name = "model.layers.1.self_attn.q_proj.g_idx"
    poke(path, name, change)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("index-implausible", severity, name)
    assert says in found.message


def test_an_index_of_another_layers_tensor_is_a_warning_where_the_order_is_each_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "gptq"
    quantization = {**PRESETS[GPTQ].config_of(tiny=True)["quantization_config"], "desc_act": True}
    write_tiny(PRESETS[GPTQ], path, overrides={"quantization_config": quantization})
    assert findings(path) == []
    a, b = (f"model.layers.{i}.self_attn.q_proj.g_idx" for i in (0, 1))
    copy(path, a, b)
    found = only(findings(path))
    assert (found.code, found.severity, found.tensor) == ("index-implausible", "warning", b)
    assert a in found.message


def test_a_model_of_zeros_alone_is_one_error(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "vocab_size": 512}
    write_full_size(PRESETS["smollm2"], tmp_path / "sparse", overrides=config)
    result = verify(tmp_path / "sparse")
    found = only(list(result.findings))
    assert (found.code, found.severity, found.tensor, result.sound) == ("value-all-zero", "error", None, False)


def test_a_context_of_a_billion_is_a_warning(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10**9}))
    found = only(findings(path))
    assert (found.code, found.severity) == ("config-implausible", "warning")
