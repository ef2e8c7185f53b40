"""Text models without a preset: what their layers have that others have not, divided, cut, damaged and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import InputError, LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.testing import write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.test_text_models import MODELS, NAS


def test_a_layer_of_a_nemotron_nas_may_lack_its_attention_or_its_mlp(tmp_path: Path) -> None:
    config = {"architectures": ["DeciLMForCausalLM"], "dtype": "bfloat16", **MODELS["DeciLMForCausalLM"]}
    write_checkpoint(find_family(config), config, tmp_path / "nas")
    plan = build_plan(open_checkpoint(tmp_path / "nas"), ParallelLayout(1, 2))
    shapes = {s.name: s.shape for s in plan.rank(0).specs}
    assert prove(plan).proven
    assert {name.split(".")[1] for name in shapes if "self_attn" in name} == {"0", "2", "3"}
    assert {name: shape[1] for name, shape in shapes.items() if "down_proj" in name} == {
        "layers.0.mlp.down_proj.weight": 128,  # 2 x 1.3 x 128 / 3 = 110, rounded up to 256, on two ranks
        "layers.1.mlp.down_proj.weight": 128,
        "layers.3.mlp.down_proj.weight": 96,
    }
    stored = DamagedCheckpoint(tmp_path / "nas")
    stored.copy(r"layers\.0\.self_attn\.o_proj", "layers.1.self_attn.o_proj")
    stored.change(r"layers\.3\.self_attn\.k_proj", lambda t: t.repeat(2, 1))
    findings = prove(build_plan(open_checkpoint(stored.path))).findings
    assert {(f.code, f.tensor) for f in findings if f.code != "family-unchecked"} == {
        ("tensor-unexpected", "model.layers.1.self_attn.o_proj.weight"),
        ("shape-mismatch", "model.layers.3.self_attn.k_proj.weight"),
    }


@pytest.mark.parametrize(
    ("architecture", "changes", "says"),
    [
        ("DeciLMForCausalLM", {"block_configs": NAS[:3]}, "block_configs must have an object for each of 4 layers"),
        (
            "DeciLMForCausalLM",
            {"block_configs": [*NAS[:3], {"attention": {"replace_with_linear": True}}]},
            r"block_configs\[3\], attention: replace_with_linear is true",
        ),
        ("LagunaForCausalLM", {"num_attention_heads_per_layer": [8, 16]}, "must give the heads of each of 4 layers"),
        ("LagunaForCausalLM", {"gating": "per-group"}, "gating is 'per-group', expected true, false, per-head or"),
        ("MiniMaxText01ForCausalLM", {"shared_intermediate_size": 96}, "shared_intermediate_size"),
        ("PanguProMoEV2ForCausalLM", {"param_sink_number": 128}, "param_sink_number"),
        ("Step3TextForCausalLM", {"moe_layers_enum": "1;2"}, "moe_layers_enum must be a string such as 3,4,5"),
        ("BailingMoeV2_5ForCausalLM", {"group_norm_size": 5}, "group_norm_size 5 does not divide 128"),
        ("OlmoHybridForCausalLM", {"linear_num_value_heads": 12}, "8 key heads do not divide 12 value heads"),
        ("OPTForCausalLM", {"tie_word_embeddings": False}, "an OPT whose head is not tied"),
        ("PanguEmbeddedForCausalLM", {"param_sink_number": 128}, "param_sink_number 128 is not supported"),
    ],
)
def test_what_the_tables_cannot_say_is_refused(architecture: str, changes: dict[str, Any], says: str) -> None:
    config = {"architectures": [architecture], **MODELS[architecture], **changes}
    family = find_family(config)
    with pytest.raises(InputError, match=says):
        family.schema(family.describe(config))


def test_the_layers_of_an_opt_are_wider_than_its_embedding(tmp_path: Path) -> None:
    """As in OPT-350M: 64 elements of a token become 128, which cross a cut."""
    config = {"architectures": ["OPTForCausalLM"], "dtype": "bfloat16", **MODELS["OPTForCausalLM"]}
    write_checkpoint(find_family(config), config, tmp_path / "opt")
    plan = build_plan(open_checkpoint(tmp_path / "opt"), ParallelLayout(2))
    first, last = ({s.name: s.shape for s in plan.rank(rank).specs} for rank in (0, 1))
    assert (first["embed_tokens.weight"], first["project_in.weight"]) == ((320, 64), (128, 64))
    assert (first["positions.weight"], last["project_out.weight"]) == ((66, 128), (64, 128))
    assert list_boundaries(plan)[1].crosses == (("hidden_states", 128 * 2),)
    stored = DamagedCheckpoint(tmp_path / "opt").drop("project_in").change("embed_positions", lambda t: t[:64])
    findings = prove(build_plan(open_checkpoint(stored.path))).findings
    assert {(f.code, f.tensor) for f in findings} == {
        ("tensor-missing", "model.decoder.project_in.weight"),
        ("shape-mismatch", "model.decoder.embed_positions.weight"),
    }


def test_lightning_attention_is_divided_by_heads_and_so_is_its_norm(tmp_path: Path) -> None:
    config = {"architectures": ["MiniMaxText01ForCausalLM"], "dtype": "bfloat16", **MODELS["MiniMaxText01ForCausalLM"]}
    write_checkpoint(find_family(config), config, tmp_path / "m1")
    proof = prove(build_plan(open_checkpoint(tmp_path / "m1"), ParallelLayout(1, 4)))
    shapes = {
        s.name: s.shape for s in proof.plan.rank(1).specs if ".2.self_attn." in s.name or ".3.self_attn." in s.name
    }
    assert proof.proven and shapes == {
        "layers.2.self_attn.qkv_proj.weight": (96, 128),  # two of eight heads, each with q, k and v of 16
        "layers.2.self_attn.output_gate.weight": (32, 128),
        "layers.2.self_attn.norm.weight": (32,),
        "layers.2.self_attn.out_proj.weight": (128, 32),
        "layers.3.self_attn.qkv_proj.weight": (64, 128),  # two heads of q, one of k, one of v
        "layers.3.self_attn.o_proj.weight": (128, 32),
    }
    stored = DamagedCheckpoint(tmp_path / "m1").drop(r"layers\.1\.self_attn\.output_gate")
    stored.change(r"layers\.2\.self_attn\.norm", lambda t: t[:16])
    findings = prove(build_plan(open_checkpoint(stored.path))).findings
    assert {(f.code, f.tensor) for f in findings if f.code != "family-unchecked"} == {
        ("tensor-missing", "model.layers.1.self_attn.output_gate.weight"),
        ("shape-mismatch", "model.layers.2.self_attn.norm.weight"),
    }


def test_heads_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    config = {"architectures": ["LagunaForCausalLM"], "dtype": "bfloat16", **MODELS["LagunaForCausalLM"]}
    write_checkpoint(find_family(config), config, tmp_path / "laguna")
    gates = {
        s.name: s.shape for s in build_plan(open_checkpoint(tmp_path / "laguna")).rank(0).specs if "gate_proj" in s.name
    }
    assert list(gates.values()) == [(8, 128), (16, 128)] * 2
    stored = DamagedCheckpoint(tmp_path / "laguna").change(r"layers\.2\.self_attn\.g_proj", lambda t: t.repeat(2, 1))
    (finding,) = prove(build_plan(open_checkpoint(stored.path))).findings
    assert (finding.code, finding.tensor) == ("shape-mismatch", "model.layers.2.self_attn.g_proj.weight")


def test_a_state_space_layer_is_divided_by_channels_or_by_heads_and_groups(tmp_path: Path) -> None:
    """Jamba has 256 channels; Falcon-H1 8 heads of 8 in 2 groups, of which two of four ranks have the same."""
    for architecture, layer, expected in (
        ("JambaForCausalLM", 0, {"in_proj": (128, 128), "x_proj": (16, 64), "dt_proj": (64, 8)}),
        ("FalconH1ForCausalLM", 0, {"in_proj": (16 + 16 + 12 + 12 + 2, 128), "out_proj": (128, 16)}),
    ):
        config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
        folder = tmp_path / architecture
        write_checkpoint(find_family(config), config, folder)
        proof = prove(build_plan(open_checkpoint(folder), ParallelLayout(1, 4)))
        shapes = {s.name: s.shape for s in proof.plan.rank(1).specs}
        assert proof.proven
        assert {name: shapes[f"layers.{layer}.mamba.{name}.weight"] for name in expected} == expected
        stored = DamagedCheckpoint(folder).drop(r"layers\.1\.mamba\.conv1d\.bias")
        stored.change(r"layers\.3\.mamba\.A_log", lambda t: t[: len(t) // 2])
        findings = prove(build_plan(open_checkpoint(folder))).findings
        assert {(f.code, f.tensor) for f in findings} == {
            ("tensor-missing", "model.layers.1.mamba.conv1d.bias"),
            ("shape-mismatch", "model.layers.3.mamba.A_log"),
        }


def test_keys_of_one_head_are_held_by_all_and_norms_of_groups_are_not_divided(tmp_path: Path) -> None:
    """Step-3 on four ranks: a latent of 48, and 16 keys and values. Ling-2.5: a norm of four groups of 32, a group a rank."""
    for architecture, expected in (
        ("Step3TextForCausalLM", {"self_attn.qkv_proj": (48 + 16 + 16, 128), "self_attn.wq": (32, 48)}),
        ("BailingMoeV2_5ForCausalLM", {"self_attn.query_key_value": (96, 320), "self_attn.g_norm": (32,)}),
    ):
        config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
        write_checkpoint(find_family(config), config, tmp_path / architecture)
        proof = prove(build_plan(open_checkpoint(tmp_path / architecture), ParallelLayout(1, 4)))
        shapes = {s.name: s.shape for s in proof.plan.rank(1).specs}
        assert proof.proven
        assert {name: shapes[f"layers.1.{name}.weight"] for name in expected} == expected
    with pytest.raises(LayoutError, match="4 unit"):
        build_plan(open_checkpoint(tmp_path / "BailingMoeV2_5ForCausalLM"), ParallelLayout(1, 8))
    stored = DamagedCheckpoint(tmp_path / "Step3TextForCausalLM").drop(r"layers\.2\.self_attn\.inter_norm")
    stored.change(r"layers\.3\.moe\.up_proj", lambda t: t[:2])
    findings = prove(build_plan(open_checkpoint(stored.path))).findings
    assert {(f.code, f.tensor) for f in findings if f.code != "family-unchecked"} == {
        ("tensor-missing", "model.layers.2.self_attn.inter_norm.weight"),
        ("shape-mismatch", "model.layers.3.moe.up_proj.weight"),
    }
