"""Mistral-Large-3 and -4: names of transformers and of Mistral, legal cuts, and defects of tiny checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.mistral_large import MLA
from loadmaster.architectures.mistral_large4 import FAMILY as LARGE4
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.synth.models.latent import MISTRAL_LARGE_3
from loadmaster.synth.presets import Preset
from loadmaster.testing import compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint

MISTRAL4 = PRESETS["mistral-4"].config_of(tiny=True)
LARGE = PRESETS["mistral-large-4"].config_of(tiny=True)
TEXT = LARGE["text_config"]
PARAMS: dict[str, Any] = {
    "dim": 96,
    "hidden_dim": 160,
    "n_layers": 6,
    "n_heads": 8,
    "n_kv_heads": 8,
    "norm_eps": 1e-6,
    "vocab_size": 320,
    "tied_embeddings": False,
    **{k: MISTRAL4[k] for k in ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")},
    "moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "expert_hidden_dim": 48,
        "first_k_dense_replace": 1,
        "route_every_n": 1,
    },
    "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
}


def test_mistral_4_is_found_inside_the_model_with_vision() -> None:
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": MISTRAL4 | {"architectures": None}}
    family = find_family(config)
    assert family.name == "mistral_large inside Mistral3ForConditionalGeneration"
    compare_with_transformers(family, config | {"vision_config": LARGE["vision_config"]})


def test_large_3_has_the_673_billion_parameters_that_its_card_says_of_the_language_model() -> None:
    assert sum_of(MISTRAL_LARGE_3) == 673


def sum_of(config: dict[str, Any]) -> int:
    """The billions of parameters of a config, which are stored as BF16."""
    return round(sum(e.signature.num_bytes for e in inventory(Preset("x", config, {}, 1), config)) / 2e9)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("mistral") / "large"
    write_checkpoint(LARGE4, LARGE, folder)
    return folder


def test_no_cut_separates_a_layer_from_the_one_whose_kv_cache_it_reads(large: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(large)))
    assert [c.layer for c in listed if c.refused is None] == [1, 3, 5]
    assert listed[3].crosses == (("hidden_states", 96 * 2),)
    assert listed[5].crosses == (("hidden_states", 96 * 2), ("topk_indices", 16 * 8))
    with pytest.raises(LayoutError, match="layer 4 reads the KV cache of layer 3") as error:
        build_plan(open_checkpoint(large), ParallelLayout(2, layer_partition=(4, 2)))
    assert str(error.value.hint).endswith("stages can begin at layers 0-1, 3, 5")
    assert build_plan(open_checkpoint(large), ParallelLayout(4)).stages == ((0, 1), (1, 3), (3, 5), (5, 6))


def found(path: Path, family: str = "family-unchecked") -> list[tuple[str, str | None]]:
    proof = prove(build_plan(open_checkpoint(path)))
    return [(f.code, f.tensor) for f in proof.findings if f.code != family]


def damaged(path: Path, tmp_path: Path) -> DamagedCheckpoint:
    return DamagedCheckpoint(Path(shutil.copytree(path, tmp_path / "damaged")))


SOURCE, READER = "layers.3.attention.wkv_a_with_mqa.weight", "layers.4.attention.wkv_a_with_mqa.weight"


def test_a_source_without_keys_and_a_reader_with_keys_are_findings(large: Path, tmp_path: Path) -> None:
    assert found(large) == []
    broken = damaged(large, tmp_path)
    broken.copy(r"layers\.3\.attention\.wkv_a_with_mqa", "layers.4.attention.wkv_a_with_mqa")
    assert found(broken.path) == [("tensor-unexpected", READER)]
    broken.drop(r"layers\.3\.attention\.wkv_a_with_mqa")
    assert ("tensor-missing", SOURCE) in found(broken.path)


def test_a_latent_with_a_rotary_part_in_a_layer_without_one_is_a_finding(large: Path, tmp_path: Path) -> None:
    broken = damaged(large, tmp_path)
    with_rotary = broken.tensor("layers.1.attention.wkv_a_with_mqa.weight")
    broken.change(r"layers\.3\.attention\.wkv_a_with_mqa", lambda _: with_rotary.clone())
    assert found(broken.path) == [("shape-mismatch", SOURCE)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kv_source_layers": [0, 1, 2, 3, 4, 6]}, "kv_source_layers must give for each of 6 layers"),
        ({"kv_source_layers": [0, 0, 1, 3, 3, 5]}, "kv_source_layers must give for each of 6 layers"),
        ({"no_rope_layers": [1, 1, 1]}, "no_rope_layers must give 0 or 1 for each of 6 layers"),
        ({"indexer_types": ["shared"] * 6}, "indexer_types begins with shared"),
    ],
)
def test_lists_that_do_not_fit_the_layers_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LARGE4.schema(LARGE4.describe(LARGE | {"text_config": TEXT | changes}))


@pytest.fixture(scope="module")
def large3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Mistral publishes it: its names, FP8 with its scales, params.json and no index."""
    folder: Path = tmp_path_factory.mktemp("mistral") / "large3"
    config = MISTRAL4 | {
        "architectures": ["MistralLarge3ForCausalLM"],
        "quantization_config": {"quant_method": "fp8", "ignore": ["output", "gate"]},
    }
    write_checkpoint(MLA, config, folder, spelling=MLA.spellings.index(MLA.variants[-1]))
    renamed = DamagedCheckpoint(folder)
    renamed.rename(r"\.weight_scale$", ".qscale_weight").rename(r"\.input_scale$", ".qscale_act")
    for number, file in enumerate(sorted(folder.glob("model-*.safetensors")), 1):
        file.rename(folder / f"consolidated-{number:05d}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").unlink()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    return folder


def test_a_folder_with_params_json_and_consolidated_shards_is_planned(large3: Path) -> None:
    checkpoint = open_checkpoint(large3)
    assert "layers.1.experts.3.w2.qscale_weight" in checkpoint.table.ids
    proof = prove(build_plan(checkpoint, ParallelLayout(2, 2)))
    assert proof.proven and [f.code for f in proof.findings] == ["family-unchecked"]
    scales = {s.shape for s in proof.plan.rank(3).specs if s.name.endswith("experts.w13_qscale_weight")}
    assert scales == {(8, 2)}  # of gate and up, for each expert


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("layers.2.attention.wo.qscale_weight", None, "scale-missing"),
        ("layers.2.attention.wo.qscale_weight", lambda t: t.int(), "dtype-inadmissible"),
        ("layers.3.experts.1.w1.weight", lambda t: t.bfloat16(), "scale-stray"),
    ],
)
def test_a_defect_of_mistrals_scales_is_found_under_its_name(
    name: str, change: Any, expected: str, large3: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(large3, tmp_path / "damaged"))
    for number, file in enumerate(sorted(path.glob("consolidated*")), 1):
        file.rename(path / f"model-{number:05d}-of-00002.safetensors")
    pattern = f"^{name.replace('.', chr(92) + '.')}$"
    broken = DamagedCheckpoint(path)
    if change is None:
        broken.drop(pattern)
    else:
        broken.change(pattern, change)
    ((code, tensor),) = found(broken.path)
    assert (code, str(tensor).rpartition(".")[0]) == (expected, name.rpartition(".")[0])


@pytest.mark.parametrize("moe", [None, {"num_experts": 8}])
def test_other_models_of_mistral_in_its_own_form_are_refused_with_what_is_supported(moe: Any, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"dim": 64, "moe": moe}))
    (tmp_path / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (missing,) = (f for f in open_checkpoint(tmp_path).findings if f.code == "config-missing")
    assert "latent attention and shared experts" in str(missing.hint)


def test_a_params_json_that_is_no_object_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("[]")
    (tmp_path / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert [(f.code, f.file) for f in open_checkpoint(tmp_path).findings if f.severity == "error"] == [
        ("config-invalid", "params.json")
    ]
