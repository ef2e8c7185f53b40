"""Nemotron-3: published parameters, Mamba-2 divided by heads and by groups, a draft of several blocks, and damage to them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.faults import table_faults
from loadmaster.architectures.nemotron_h import FAMILY
from loadmaster.architectures.schema import Schema
from loadmaster.checkpoint import open_checkpoint
from loadmaster.cli.planning import num_draft_layers
from loadmaster.errors import ConfigError, LayoutError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy

SUPER, TINY = (PRESETS["nemotron-3-super"].config_of(tiny=tiny) for tiny in (False, True))
BY_TYPES = TINY | {
    "hybrid_override_pattern": None,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "mamba", "moe"],
    "mtp_hybrid_override_pattern": None,
    "mtp_layers_block_type": ["attention", "moe"],
}
WIDE = {"block_type": "moe", "moe_intermediate_size": 56, "n_routed_experts": 8, "moe_latent_size": None}
NARROW = {**WIDE, "moe_intermediate_size": 24, "n_routed_experts": 4, "moe_latent_size": 32}
PUZZLE = {
    k: v for k, v in TINY.items() if "pattern" not in k and k not in ("moe_intermediate_size", "n_routed_experts")
} | {
    "architectures": ["NemotronHPuzzleForCausalLM"],
    "model_type": "nemotron_h_puzzle",
    "block_configs": [
        *({"block_type": "mamba"}, WIDE, {"block_type": "attention"}, {"block_type": "mlp", "intermediate_size": 80}),
        *({"block_type": "mamba", "ssm_state_size": 20}, NARROW),
    ],
    "mtp_block_configs": [{"block_type": "attention"}, {**WIDE, "moe_intermediate_size": 48}],
}
LAYER = "backbone.layers."


def schema_of(config: dict[str, Any]) -> Schema:
    return FAMILY.schema(FAMILY.describe(config))


def num_parameters(schema: Schema, kinds: tuple[str, ...]) -> int:
    return sum(prod(t.shape) * (t.experts or 1) for kind in kinds for t in schema.kinds[kind])


def test_super_has_the_published_parameters() -> None:
    schema = schema_of(SUPER)
    body = sum(prod(t.shape) for t in schema.top) + num_parameters(schema, schema.layers)
    assert (body, num_parameters(schema, schema.drafts)) == (120_668_707_840, 2_942_325_248)
    assert body + num_parameters(schema, schema.drafts) == 123_611_033_088
    assert [schema.layers.count(kind) for kind in "M*E"] == [40, 8, 40]


def test_the_tables_agree() -> None:
    for config in (SUPER, TINY, TINY | {"moe_latent_size": None, "num_nextn_predict_layers": 0}):
        check_tables(FAMILY, config)


def test_a_list_of_types_means_the_same_as_a_pattern() -> None:
    assert schema_of(BY_TYPES) == schema_of(TINY)


def test_names_and_shapes_are_those_of_transformers() -> None:
    compare_with_transformers(FAMILY, TINY)
    compare_with_transformers(FAMILY, TINY | {"moe_latent_size": None, "use_conv_bias": False})


def test_blocks_that_are_alike_mean_the_same_as_a_pattern() -> None:
    names = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
    sizes = {"moe_intermediate_size": 40, "n_routed_experts": 8}
    patterns = {"block_configs": "ME*-ME", "mtp_block_configs": "*E"}
    alike = {key: [{"block_type": names[k], **(sizes if k == "E" else {})} for k in p] for key, p in patterns.items()}
    assert schema_of(PUZZLE | alike) == schema_of(TINY)


def test_each_block_of_a_puzzle_has_its_own_sizes() -> None:
    """A size that a block gives as null is the model's: both layers with experts have a latent."""
    schema = schema_of(PUZZLE)
    assert schema.layers == ("M", "E", "*", "-", "M2", "E2")
    sizes = {
        (name, t.name): (*t.shape, *((t.experts,) if t.experts else ()))
        for name, tensors in schema.kinds.items()
        for t in tensors
        if t.name in ("moe.up", "mlp.up", "mamba.b")
    }
    assert sizes == {
        ("M", "mamba.b"): (48, 96),
        ("E", "moe.up"): (56, 64, 8),
        ("-", "mlp.up"): (80, 96),
        ("M2", "mamba.b"): (80, 96),
        ("E2", "moe.up"): (24, 32, 4),
        ("mtp 1 E", "moe.up"): (48, 64, 8),
    }


def test_every_rank_of_a_puzzle_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [
        ParallelLayout(2, 2, num_draft_layers=1),
        ParallelLayout(1, 4, enable_expert_parallel=True),
    ]
    assert check_loading(FAMILY, PUZZLE, tmp_path, layouts=layouts) > 900


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (
            r"layers\.5\.mixer\.experts\.3\.up_proj",
            lambda t: t.repeat(3, 1)[:56],  # as wide as those of layer 1
            "shape-mismatch",
            f"{LAYER}5.mixer.experts.3.up_proj.weight",
        ),
        (
            r"layers\.1\.mixer\.experts\.7\.down_proj",  # an expert that layer 5 does not have
            None,
            "tensor-missing",
            f"{LAYER}1.mixer.experts.7.down_proj.weight",
        ),
    ],
)
def test_a_defect_of_a_puzzle_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, tmp_path: Path
) -> None:
    write_checkpoint(FAMILY, PUZZLE, tmp_path / "sound")
    path = damaged_copy(tmp_path / "sound", tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(2, 2))).findings
    assert [(f.code, f.tensor) for f in found if f.severity == "error"] == [(code, tensor)]


def test_a_plan_of_a_puzzle_says_that_its_table_was_not_checked(tmp_path: Path) -> None:
    write_checkpoint(FAMILY, PUZZLE, tmp_path / "sound")
    proof = prove(build_plan(open_checkpoint(tmp_path / "sound"), ParallelLayout(2)))
    assert proof.proven
    assert [f.code for f in proof.findings] == ["family-unchecked"]


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [
        ParallelLayout(2, 2, num_draft_layers=1),
        ParallelLayout(1, 8),  # a head of Mamba each; two of them share a group
        ParallelLayout(1, 2, enable_expert_parallel=True, num_draft_layers=1),
    ]
    assert check_loading(FAMILY, TINY, tmp_path, layouts=layouts) > 1500


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("nemotron") / "model"
    write_checkpoint(FAMILY, TINY, path)
    return path


def test_two_ranks_of_eight_hold_the_group_that_their_heads_use(sound: Path) -> None:
    """8 heads of 20 rows and 4 groups of 12: rank 5 has head 5, and group 2, as rank 4 has."""
    stored = DamagedCheckpoint(sound).tensor(f"{LAYER}0.mixer.in_proj.weight")
    z, x, b, c, dt = stored.split([160, 160, 48, 48, 8])
    plan = prove(build_plan(open_checkpoint(sound), ParallelLayout(1, 8))).require_proven()
    for rank in (4, 5):
        head, group = slice(rank * 20, rank * 20 + 20), slice(24, 36)
        expected = torch.cat([z[head], x[head], b[group], c[group], dt[rank : rank + 1]])
        assert torch.equal(load_rank(plan, rank).tensors["layers.0.mixer.in_proj.weight"], expected)


def test_a_draft_of_two_blocks_is_one(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    proof = prove(build_plan(checkpoint, ParallelLayout(3, num_draft_layers=1)))
    assert proof.proven and proof.waivers == ()
    assert [proof.plan.rank(rank).draft_layers for rank in range(3)] == [(), (), (6, 7)]
    names = {s.name: s.alias for s in proof.plan.rank(2).specs if s.name.startswith("mtp.")}
    assert {"mtp.0.eh_proj.weight", "mtp.0.mixer.o_proj.weight", "mtp.1.mixer.experts.w1_weight"} <= names.keys()
    assert names["mtp.1.shared_head.norm.weight"] is None and names["mtp.0.shared_head.head.weight"] == "lm_head.weight"
    assert not {"mtp.1.eh_proj.weight", "mtp.0.shared_head.norm.weight", "mtp.1.embed_tokens.weight"} & names.keys()
    left = prove(build_plan(checkpoint))
    assert [(w.reason, w.num_tensors) for w in left.waivers] == [("mtp not enabled", 8 + 24)]
    with pytest.raises(LayoutError, match=r"2 MTP layer\(s\) asked for, and the model has 1"):
        build_plan(checkpoint, ParallelLayout(num_draft_layers=2))


def test_the_command_line_asks_for_all_drafts_or_for_as_many_as_tokens(sound: Path, tmp_path: Path) -> None:
    write_checkpoint(FAMILY, TINY | {"num_nextn_predict_layers": 2}, tmp_path / "two")
    two = open_checkpoint(tmp_path / "two")
    assert num_draft_layers({"method": "mtp"}, open_checkpoint(sound)) == 1
    assert num_draft_layers({"method": "mtp"}, two) == 2
    assert num_draft_layers({"method": "mtp", "num_speculative_tokens": 1}, two) == 1
    proof = prove(build_plan(two, ParallelLayout(num_draft_layers=1)))
    assert proof.proven and proof.plan.rank(0).draft_layers == (6, 7)


def test_blocks_that_make_no_whole_draft_are_a_fault() -> None:
    schema = schema_of(TINY)
    odd = Schema(schema.top, schema.kinds, schema.layers, drafts=schema.drafts[:1], blocks_a_draft=2)
    assert table_faults(FAMILY, odd) == ("schema: a draft has 2 blocks, and there are 1 blocks of drafts",)


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (r"layers\.0\.mixer\.in_proj", lambda t: t[:-8], "shape-mismatch", f"{LAYER}0.mixer.in_proj.weight"),
        (r"layers\.4\.mixer\.conv1d\.weight", lambda t: t[:, 0], "shape-mismatch", f"{LAYER}4.mixer.conv1d.weight"),
        (r"backbone.*4\.mixer\.dt_bias", None, "tensor-missing", f"{LAYER}4.mixer.dt_bias"),
        (r"backbone.*1\.mixer\.fc2_latent", None, "tensor-missing", f"{LAYER}1.mixer.fc2_latent_proj.weight"),
        (
            r"backbone.*5\.mixer\.experts\.3\.up_proj",
            lambda t: t.repeat(1, 2)[:, :96],  # of the hidden size, as if there were no latent
            "shape-mismatch",
            f"{LAYER}5.mixer.experts.3.up_proj.weight",
        ),
        (r"mtp\.layers\.1\.final_layernorm", None, "tensor-missing", "mtp.layers.1.final_layernorm.weight"),
        (r"mtp\.layers\.0\.eh_proj", lambda t: t[:, 96:], "shape-mismatch", "mtp.layers.0.eh_proj.weight"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, sound: Path, tmp_path: Path
) -> None:
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=1))).findings
    assert [(f.code, f.tensor) for f in found] == [(code, tensor)]


def test_what_is_not_described_is_refused_by_name() -> None:
    for changes, error, says in (
        ({"use_bias": True}, UnsupportedError, "use_bias"),
        (
            {"hybrid_override_pattern": "MEX"},
            ConfigError,
            "hybrid_override_pattern must give M, *, E or - for each layer",
        ),
        ({"num_hidden_layers": 7}, ConfigError, "num_hidden_layers is 7, and the pattern gives 6 layers"),
        (
            {"mtp_hybrid_override_pattern": "ME"},
            UnsupportedError,
            "mtp_hybrid_override_pattern is supported with * and E",
        ),
        ({"n_routed_experts": None}, ConfigError, "n_routed_experts"),
        (
            {"block_configs": [{"block_type": "moe"}, "mlp"]},
            ConfigError,
            "block_configs is [{'block_type': 'moe'}, 'mlp']",
        ),
        ({"block_configs": [{"block_type": "conv"}]}, ConfigError, "the blocks of block_configs their names"),
        (
            {"block_configs": [*PUZZLE["block_configs"][:5], {"block_type": "moe", "moe_intermediate_size": 0}]},
            ConfigError,
            "config.json, block_configs[5]: moe_intermediate_size is 0",
        ),
    ):
        with pytest.raises(error) as refused:
            schema_of(TINY | changes)
        assert says in refused.value.message
