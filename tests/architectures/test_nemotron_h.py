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
    ):
        with pytest.raises(error) as refused:
            schema_of(TINY | changes)
        assert says in refused.value.message
