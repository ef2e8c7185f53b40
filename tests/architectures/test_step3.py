"""Step-3.7: published parameters, heads by the type of layer, experts in three stacks, and damage to them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.architectures.step3 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy

TYPES = ["full_attention", *["sliding_attention"] * 3]
FLASH, TINY = (
    {
        **PRESETS["step-3.7-flash"].config_of(tiny=tiny)["text_config"],
        "architectures": ["Step3p5ForCausalLM"],
        "torch_dtype": "bfloat16",
    }
    for tiny in (False, True)
)
BY_TRANSFORMERS = {
    key: value for key, value in TINY.items() if key not in ("moe_layers_enum", "attention_other_setting")
} | {
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "num_sliding_attention_heads": 16,
    "layer_types": TYPES,
    "mtp_layer_types": TYPES[1:3],
    "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
    "mtp_mlp_layer_types": ["dense", "dense"],
}
LAYER = "model.layers."


def schema_of(config: dict[str, Any]) -> Schema:
    return FAMILY.schema(FAMILY.describe(config))


def test_step_3_7_flash_has_the_published_parameters() -> None:
    """Beside the language model: 47 blocks of vision of 1536 with an MLP of 8960, what is around them, and the projector."""
    schema = schema_of(FLASH)
    kinds = (schema.top, *(schema.kinds[kind] for kind in (*schema.layers, *schema.drafts)))
    of_language = sum(prod(t.shape) * (t.experts or 1) for tensors in kinds for t in tensors)
    block = 4 * 1536 * 1537 + 2 * 1536 * 8960 + 8960 + 1536 + 6 * 1536  # attention, MLP, two norms, two scales
    down = 9 * 1536 * 3072 + 3072 + 9 * 3072 * 6144 + 6144
    of_vision = 47 * block + 3 * 14 * 14 * 1536 + 52 * 52 * 1536 + 2 * 1536 + down + 6144 * 4096
    assert (of_language, of_vision) == (199_384_301_376, 1_981_014_784)
    assert of_language + of_vision == 201_365_316_160
    assert schema.layers[:5] == (
        *("dense, full_attention", "dense, sliding_attention", "dense, sliding_attention"),
        *("sparse, sliding_attention", "sparse, full_attention"),
    )
    assert schema.drafts == ("dense, sliding_attention, mtp",) * 3


def test_the_tables_agree() -> None:
    for config in (FLASH, TINY, TINY | {"num_nextn_predict_layers": 0, "use_head_wise_attn_gate": False}):
        check_tables(FAMILY, config)


def test_the_keys_of_transformers_and_of_the_authors_mean_the_same() -> None:
    assert schema_of(BY_TRANSFORMERS) == schema_of(TINY)
    assert schema_of(TINY | {"moe_layers_enum": [2, 3]}) == schema_of(TINY)


def whole(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the model with vision."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "model_type": "step3p7",
        "text_config": {key: value for key, value in config.items() if key != "architectures"},
        "vision_config": vision,
    }


def test_names_and_shapes_are_those_of_transformers() -> None:
    """transformers builds no MTP layers."""
    config = whole(TINY | {"num_nextn_predict_layers": 0, "layer_types": TYPES})
    compare_with_transformers(find_family(config), config)


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [
        ParallelLayout(2, 2, num_draft_layers=2),
        ParallelLayout(
            1, 4
        ),  # a head of queries each in full layers, two in sliding ones; two ranks share a head of keys
        ParallelLayout(1, 2, enable_expert_parallel=True, num_draft_layers=1),
    ]
    assert check_loading(FAMILY, TINY, tmp_path / "text", layouts=layouts) > 500
    assert check_loading(find_family(whole(TINY)), whole(TINY), tmp_path / "whole", layouts=layouts[:1]) > 500


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("step") / "model"
    write_checkpoint(FAMILY, TINY, path)
    return path


def test_gate_and_up_of_an_expert_come_from_two_stacks(sound: Path) -> None:
    stored = DamagedCheckpoint(sound)
    gate, up = (stored.tensor(f"{LAYER}2.moe.{part}_proj.weight") for part in ("gate", "up"))
    assert gate.shape == (8, 40, 96)
    plan = prove(build_plan(open_checkpoint(sound), ParallelLayout(1, 2))).require_proven()
    w13 = load_rank(plan, 1).tensors["layers.2.mlp.experts.w13_weight"]
    assert torch.equal(w13, torch.cat([gate[:, 20:], up[:, 20:]], 1))


def test_each_mtp_layer_has_a_head_of_its_own_and_the_models_embedding(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    proof = prove(build_plan(checkpoint, ParallelLayout(2, num_draft_layers=2)))
    assert proof.proven and proof.waivers == ()
    aliases = {s.name: s.alias for s in proof.plan.rank(1).specs if s.name.startswith("mtp.")}
    assert [aliases[f"mtp.{n}.shared_head.head.weight"] for n in range(2)] == [None, None]
    assert aliases["mtp.1.embed_tokens.weight"] == "mtp.0.embed_tokens.weight"  # the last stage has one copy
    half = prove(build_plan(checkpoint, ParallelLayout(num_draft_layers=1)))
    assert half.proven and [w.reason for w in half.waivers] == ["mtp not enabled"]


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (r"layers\.2\.moe\.up_proj", None, "tensor-missing", f"{LAYER}2.moe.up_proj.weight"),
        (r"layers\.3\.moe\.gate_proj", lambda t: t[:7], "shape-mismatch", f"{LAYER}3.moe.gate_proj.weight"),
        (r"layers\.3\.moe\.down_proj", lambda t: t.mT, "shape-mismatch", f"{LAYER}3.moe.down_proj.weight"),
        (
            r"layers\.1\.self_attn\.g_proj",
            lambda t: t[:8],  # a gate for each head of a full layer
            "shape-mismatch",
            f"{LAYER}1.self_attn.g_proj.weight",
        ),
        (r"layers\.3\.moe\.router_bias", None, "tensor-missing", f"{LAYER}3.moe.router_bias"),
        (
            r"layers\.5\.transformer\.shared_head\.output",
            None,
            "tensor-missing",
            f"{LAYER}5.transformer.shared_head.output.weight",
        ),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, sound: Path, tmp_path: Path
) -> None:
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=2))).findings
    assert [(f.code, f.tensor) for f in found] == [(code, tensor)]


def test_what_is_not_described_is_refused_by_name() -> None:
    other = TINY["attention_other_setting"]
    for changes, error, says in (
        ({"use_moe_router_bias": False}, UnsupportedError, "use_moe_router_bias False"),
        ({"attention_other_setting": other | {"num_attention_groups": 4}}, UnsupportedError, "num_attention_groups 4"),
        ({"layer_types": TYPES}, ConfigError, "for each of 6 layers, MTP included"),
        ({"moe_layers_enum": None}, ConfigError, "mlp_layer_types or moe_layers_enum must say"),
        ({"moe_layers_enum": "2,x"}, ConfigError, "mlp_layer_types or moe_layers_enum must say"),
    ):
        with pytest.raises(error) as refused:
            schema_of(TINY | changes)
        assert says in refused.value.message
