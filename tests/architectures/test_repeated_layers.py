"""Layers that use one stored block, and layers that run several times: Zamba2, HRM-Text, IQuest-LoopCoder, Dory."""

from __future__ import annotations

import re
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing import MemoryOptions
from loadmaster.sizing.auto import costs_of
from loadmaster.sizing.cache import plan_cache
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.sizing.weights import WeightSizes
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, published_shapes, stored_shapes
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.damage import Change, damaged_copy
from tests.architectures.test_text_models import MODELS

ZAMBA: dict[str, Any] = {"architectures": ["Zamba2ForCausalLM"], "dtype": "bfloat16", **MODELS["Zamba2ForCausalLM"]}
DORY: dict[str, Any] = {"architectures": ["DoryForCausalLM"], "dtype": "bfloat16", **MODELS["DoryForCausalLM"]}
ADAPTER = "model.layers.3.shared_transformer.self_attn.linear_k_adapter_list.3."


def schema_of(config: dict[str, Any]) -> Schema:
    family = find_family(config)
    return family.schema(family.describe(config))


def legal(config: dict[str, Any]) -> list[int]:
    """Return the layers at which a stage can begin."""
    schema = schema_of(config)
    return [layer for layer in range(1, len(schema.layers)) if not (schema.joined and schema.joined[layer])]


@pytest.fixture(scope="module")
def zamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 1, 3, 5 and 7 use two blocks in turn: 1 and 5 the first, 3 and 7 the second."""
    path: Path = tmp_path_factory.mktemp("zamba") / "tiny"
    write_checkpoint(find_family(ZAMBA), ZAMBA, path)
    return path


def test_a_zamba_with_one_block_and_no_adapters_in_attention_is_that_of_transformers() -> None:
    config = ZAMBA | {"num_mem_blocks": 1, "use_shared_attention_adapter": False}
    compare_with_transformers(find_family(config), config)
    assert "adapter.0.mlp_a" in {t.name for t in schema_of(config).kinds["hybrid with block 0"]}


def test_a_shared_block_is_held_once_with_the_adapters_of_all_its_layers(zamba: Path) -> None:
    proof = prove(build_plan(open_checkpoint(zamba), ParallelLayout(1, 2)))
    names = [s.name for s in proof.plan.rank(0).specs]
    assert proof.findings == ()
    assert [n for n in names if "shared.self_attn.o_proj" in n] == [
        f"layers.{n}.shared.self_attn.o_proj.weight" for n in (1, 3)
    ]
    adapters = (re.match(r"layers\.(\d)\.shared\.adapters\.(\d)\.", name) for name in names)
    assert {match.groups() for match in adapters if match} == {("1", "0"), ("1", "2"), ("3", "1"), ("3", "3")}


def test_a_rank_gets_its_heads_of_an_adapter_and_all_of_its_narrow_side(zamba: Path) -> None:
    plan = prove(build_plan(open_checkpoint(zamba), ParallelLayout(1, 4))).require_proven()
    held, stored = load_rank(plan, 2).tensors, DamagedCheckpoint(zamba)
    assert torch.equal(held["layers.3.shared.adapters.3.k_a.weight"], stored.tensor(ADAPTER + "0.weight"))
    assert torch.equal(held["layers.3.shared.adapters.3.k_b.weight"], stored.tensor(ADAPTER + "1.weight")[128:192])


def test_a_stage_can_begin_where_no_block_is_used_on_both_sides(zamba: Path) -> None:
    assert legal(ZAMBA) == [1]
    assert legal(ZAMBA | {"num_mem_blocks": 4}) == [1, 2, 3, 4, 5, 6, 7]
    checkpoint = open_checkpoint(zamba)
    with pytest.raises(LayoutError, match="layer 5 reads the shared block of layer 1"):
        build_plan(checkpoint, ParallelLayout(2, layer_partition=(4, 4)))
    proof = prove(build_plan(checkpoint, ParallelLayout(2, layer_partition=(1, 7))))
    assert proof.proven
    boundary = list_boundaries(proof.plan)[1]
    assert boundary.crosses == (("hidden_states", 256), ("original_hidden_states", 256))


def test_a_block_that_is_stored_with_every_layer_is_read_once(zamba: Path, tmp_path: Path) -> None:
    path = Path(copytree(zamba, tmp_path / "again"))
    DamagedCheckpoint(path).copy(
        r"^model\.layers\.1\.shared_transformer\.pre_ff_layernorm\.weight$",
        "model.layers.5.shared_transformer.pre_ff_layernorm.weight",
    )
    proof = prove(build_plan(open_checkpoint(path)))
    assert proof.proven
    assert [(w.reason, w.num_tensors) for w in proof.waivers] == [("it is the shared block of an earlier layer", 1)]


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (re.escape(ADAPTER + "0"), None, "tensor-missing", ADAPTER + "0.weight"),
        (re.escape(ADAPTER + "1"), lambda t: t[:128], "shape-mismatch", ADAPTER + "1.weight"),
        (
            r"layers\.7\.mamba_decoder\.mamba\.in_proj",
            lambda t: t[:-8],
            "shape-mismatch",
            "model.layers.7.mamba_decoder.mamba.in_proj.weight",
        ),
        (
            r"layers\.1\.shared_transformer\.self_attn\.o_proj",
            lambda t: t.T.contiguous(),
            "shape-mismatch",
            "model.layers.1.shared_transformer.self_attn.o_proj.weight",
        ),
        (r"layers\.1\.shared_transformer\.", None, "tensor-missing", "model.layers.1.shared_transformer.*"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, zamba: Path, tmp_path: Path
) -> None:
    path = damaged_copy(zamba, tmp_path / "damaged", pattern, change)
    assert [(f.code, f.tensor) for f in prove(build_plan(open_checkpoint(path))).findings] == [(code, tensor)]


def test_what_a_zamba_may_not_have_is_refused() -> None:
    for changes, says in (
        ({"add_bias_linear": True}, "add_bias_linear"),
        (
            {"num_hidden_layers": 65, "layers_block_type": ["hybrid"] * 65},
            "65 layers use shared blocks; supported: up to 64",
        ),
    ):
        with pytest.raises(UnsupportedError, match=says):
            schema_of(ZAMBA | changes)


def test_no_stage_begins_within_layers_that_run_in_turn() -> None:
    """Of Dory, layers 2 to 5 of 8 run twice: a stage can begin before and after them."""
    configs = {
        name: {"architectures": [name], **MODELS[name]} for name in ("HrmTextForCausalLM", "IQuestLoopCoderForCausalLM")
    }
    assert [legal(config) for config in configs.values()] == [[], []]
    assert legal(DORY) == [1, 2, 6, 7]
    assert legal(DORY | {"n_recurrent_loops": 1}) == [1, 2, 3, 4, 5, 6, 7]
    assert schema_of(DORY).joined[3] == "layers 2 to 5 run 2 times in turn"


def test_layers_that_run_twice_have_two_caches(tmp_path: Path) -> None:
    config = {
        "architectures": ["IQuestLoopCoderForCausalLM"],
        "dtype": "bfloat16",
        **MODELS["IQuestLoopCoderForCausalLM"],
    }
    write_checkpoint(find_family(config), config, tmp_path / "coder")
    cache = plan_cache(build_plan(open_checkpoint(tmp_path / "coder")))
    assert [layer.token_bytes for layer in cache.layers] == [
        2 * 2 * 4 * 16 * 2
    ] * 4  # twice keys and values, 4 heads of 16


def test_layers_that_run_twice_are_computed_twice(tmp_path: Path) -> None:
    """Of a Dory, attention and MLPs alternate, and layers 2 to 5 run twice."""
    write_checkpoint(find_family(DORY), DORY, tmp_path / "dory")
    plan = build_plan(open_checkpoint(tmp_path / "dory"))
    compute = costs_of(plan, WeightSizes(plan).at(plan.layout), "native", MemoryOptions()).compute
    assert [compute[n] / compute[n % 2] for n in range(8)] == [1, 1, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("architecture", ["Zamba2ForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM"])
def test_every_rank_gets_its_bytes(architecture: str, tmp_path: Path) -> None:
    config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
    layouts = [ParallelLayout(1, 2), ParallelLayout(1, 8)]
    assert check_loading(find_family(config), config, tmp_path, layouts=layouts) > 200


def test_every_rank_of_a_dory_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2, layer_partition=(2, 6)), ParallelLayout(1, 4)]
    assert check_loading(find_family(DORY), DORY, tmp_path, layouts=layouts) > 200


def test_a_dory_is_transformers_with_two_layers_for_one() -> None:
    """Its class joins ``layers.2i.mixer`` (attention) and ``layers.2i+1.mixer`` (an MLP), and saves the joined names."""
    family = find_family(DORY)
    check_tables(family, DORY)

    def joined(match: re.Match[str]) -> str:
        number, module = divmod(int(match[1]), 2)
        names = {"mixer": ("self_attn", "mlp")[module], "attn_alpha": "lambda_1", "mlp_alpha": "lambda_2"}
        return f"layers.{number}.{names[match[2]]}"

    ours = {re.sub(r"layers\.(\d+)\.(\w+)", joined, n): shape for n, shape in stored_shapes(family, DORY).items()}
    assert ours == published_shapes(DORY)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_output_layers": 4}, "must add up to 8 layers"),
        ({"n_recurrent_layers": 8}, "must add up to 8 layers"),
        ({"n_recurrent_loops": 0}, "n_recurrent_loops is 0, expected an integer of at least 1"),
    ],
)
def test_layers_and_turns_of_a_dory_that_cannot_be_are_refused(changes: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        schema_of(DORY | changes)


@pytest.mark.parametrize(
    ("architecture", "pattern", "change", "code", "tensor"),
    [
        ("DoryForCausalLM", r"layers\.4\.", None, "layer-missing", "backbone.layers.4.*"),
        (
            "IQuestLoopCoderForCausalLM",
            r"gate_projections\.1\.weight",
            None,
            "tensor-missing",
            "model.gate_projections.1.weight",
        ),
        (
            "IQuestLoopCoderForCausalLM",
            r"gate_projections\.2\.bias",
            lambda t: t[:-1],
            "shape-mismatch",
            "model.gate_projections.2.bias",
        ),
        (
            "HrmTextForCausalLM",
            r"H_module\.layers\.2\.attn\.gqkv_proj",
            lambda t: t[:-1],
            "shape-mismatch",
            "model.H_module.layers.2.attn.gqkv_proj.weight",
        ),
    ],
)
def test_a_defect_of_layers_that_run_in_turn_is_one_finding(
    architecture: str, pattern: str, change: Change | None, code: str, tensor: str, tmp_path: Path
) -> None:
    config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
    write_checkpoint(find_family(config), config, tmp_path / "sound")
    path = damaged_copy(tmp_path / "sound", tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, tensor)]
