"""Plans of vLLM's parameters: their names and places, and what is not described. Their bytes: tests/integrations/vllm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.targets import vllm_0_32
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import PlanError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint

VLLM = vllm_0_32.VERSION.name


def plan(path: Path, *sizes: int, dtype: str | None = None, **layout: Any) -> Plan:
    return build_plan(open_checkpoint(path), ParallelLayout(*sizes, **layout), dtype=dtype, target=VLLM)


def names(plan: Plan, rank: int = 0) -> set[str]:
    return {s.name for s in plan.rank(rank).specs}


def test_glm_51_as_published_over_eight_stages(tmp_path: Path) -> None:
    write_full_size(PRESETS["glm-5.1-fp8"], tmp_path)
    made = plan(tmp_path, 8)
    proof = prove(made)
    assert proof.findings == ()
    assert len(proof.ranks) == 8
    specs = {s.name: (s.dtype, s.shape) for s in made.rank(1).specs}
    layer = "model.layers.9."
    assert specs[f"{layer}self_attn.fused_qkv_a_proj.weight_scale_inv"] == ("F32", (21, 48))
    assert specs[f"{layer}self_attn.indexer.wk_weights_proj.weight"] == ("BF16", (160, 6144))
    assert specs[f"{layer}self_attn.indexer.k_norm.weight"] == ("F32", (128,))
    assert specs[f"{layer}mlp.experts.routed_experts.w13_weight"] == ("F8_E4M3", (256, 4096, 6144))
    assert specs[f"{layer}mlp.gate.e_score_correction_bias"] == ("F32", (256,))
    assert not any("mtp" in name for name in names(made, 7))


def test_a_plan_says_whose_parameters_it_is_of_and_json_keeps_it(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    native, engine = build_plan(checkpoint), build_plan(checkpoint, target=VLLM)
    assert (native.target.name, engine.target.name) == ("native", VLLM)
    assert native.hash != engine.hash
    again = Plan.from_json(engine.to_json())
    assert (again, again.target.name, names(again)) == (engine, VLLM, names(engine))


def test_a_plan_kept_before_there_were_targets_is_native(tiny: Tiny) -> None:
    made = build_plan(open_checkpoint(tiny("qwen3")))
    assert Plan.from_json(made.to_json().replace(b'"target":"native",', b"")) == made
    with pytest.raises(PlanError, match="hash"):
        Plan.from_json(made.to_json().replace(b'"target":"native"', b'"target":"vllm-0.32"'))


@pytest.mark.parametrize(("preset", "on"), [("qwen3", [1, 0, 1]), ("qwen3-moe", [2, 2, 2]), ("mixtral", [2, 2, 2])])
def test_stages_hold_embedding_and_head_where_vllm_does(preset: str, on: list[int], tiny: Tiny) -> None:
    made = plan(tiny(preset), 3)
    assert prove(made).findings == ()
    own = {"model.embed_tokens.weight", "lm_head.weight"}
    assert [len(names(made, rank) & own) for rank in range(3)] == on


def test_what_every_stage_lacks_touches_every_rank(tiny_copy: Tiny) -> None:
    path = DamagedCheckpoint(tiny_copy("mixtral")).drop("embed_tokens").path
    (finding,) = prove(plan(path, 2, 2)).findings
    assert (finding.code, finding.ranks) == ("tensor-missing", (0, 1, 2, 3))
    (finding,) = prove(build_plan(open_checkpoint(path), ParallelLayout(2, 2))).findings
    assert finding.ranks == (0, 1)


def test_a_tied_head_shares_the_embedding_on_every_stage(tmp_path: Path) -> None:
    write_tiny(PRESETS["qwen3-moe"], tmp_path, overrides={"tie_word_embeddings": True})
    made = plan(tmp_path, 2)
    assert prove(made).findings == ()
    for rank in (0, 1):
        aliases = {s.name: s.alias for s in made.rank(rank).specs}
        assert aliases["lm_head.weight"] == "model.embed_tokens.weight"
        assert aliases["model.embed_tokens.weight"] is None


@pytest.mark.parametrize(("vocab", "rows"), [(320, [160, 160]), (330, [192, 192]), (65, [64, 64])])
def test_vocabularies_are_padded_to_64_whether_they_divide_or_not(vocab: int, rows: list[int], tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path, overrides={"vocab_size": vocab})
    made = plan(tmp_path, 1, 2)
    assert prove(made).findings == ()
    shapes = [{s.name: s.shape for s in made.rank(rank).specs}["model.embed_tokens.weight"] for rank in (0, 1)]
    assert shapes == [(n, 128) for n in rows]


def test_plain_parameters_are_in_the_model_s_dtype_whatever_is_stored(tmp_path: Path) -> None:
    write_tiny(PRESETS["qwen3"], tmp_path, overrides={"dtype": "float32"})
    for dtype, expected in ((None, "BF16"), ("F32", "F32"), ("F16", "F16")):
        made = plan(tmp_path, dtype=dtype)
        assert prove(made).proven
        assert {s.dtype for s in made.rank(0).specs} == {expected}


WHOLE_BLOCKS = {"hidden_size": 384, "moe_intermediate_size": 256, "intermediate_size": 512, "q_lora_rank": 256}


@pytest.mark.parametrize(("preset", "own"), [("deepseek-v3", None), ("glm-5.1-fp8", "lm_head.weight")])
def test_mtp_layers_are_on_the_last_stage_under_the_names_of_vllms_draft(
    preset: str, own: str | None, tmp_path: Path
) -> None:
    write_tiny(PRESETS[preset], tmp_path, overrides=WHOLE_BLOCKS)
    made = plan(tmp_path, 2, num_draft_layers=1)
    assert prove(made).findings == ()
    layer = "model.layers.6."
    first, last = ({s.name: s for s in made.rank(r).specs if s.name.startswith(layer)} for r in (0, 1))
    assert not first
    weight = last[f"{layer}mtp_block.mlp.experts.routed_experts.w2_weight"]
    assert (weight.scale, weight.components) == (weight.name + "_scale_inv", (weight.name + "_scale_inv",))
    outside = ("eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens")
    assert {n for n in last if "mtp_block" not in n} == {f"{layer}{n}.weight" for n in outside}
    assert last[f"{layer}shared_head.head.weight"].alias == own
    assert last[f"{layer}embed_tokens.weight"].alias is None  # the first stage has the model's


@pytest.mark.parametrize(
    ("preset", "overrides", "options", "said"),
    [
        ("gpt-oss-bf16", {}, {}, "GptOssForCausalLM is not described for vllm-0.32"),
        ("minimax-m2", {}, {}, "use_routing_bias is not true"),
        ("qwen3-next", {}, {}, "Qwen3NextForCausalLM is not described"),
        ("llama", {"qkv_bias": True}, {}, "LlamaForCausalLM is not described for vllm-0.32: config.json has qkv_bias"),
        ("deepseek-v3", {"topk_method": "greedy"}, {}, "topk_method is 'greedy'"),
        ("deepseek-v3", {"n_shared_experts": None}, {}, "n_shared_experts is not given"),
        ("deepseek-v3", {"tie_word_embeddings": True}, {}, "the head is tied to the embedding"),
        (
            "llama-fp8-static",
            {},
            {},
            r"model.layers.\*.self_attn.qkv_proj.weight: fp8_tensor with weight_scale, input_scale",
        ),
        ("deepseek-v3", {}, {}, "a part that ends inside a block of scales"),
        ("deepseek-v3", WHOLE_BLOCKS, {"tensor_parallel_size": 2}, "a cut over the ranks inside a block of scales"),
        ("glm-5.1-fp8", WHOLE_BLOCKS, {"dtype": "F16"}, "wk_weights_proj.weight: values decoded into F16"),
    ],
)
def test_what_is_not_described_is_refused_by_name(
    preset: str, overrides: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_tiny(PRESETS[preset], tmp_path, overrides=overrides)
    with pytest.raises(UnsupportedError, match=said):
        plan(tmp_path, **options)


def test_an_unknown_target_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match=r"unknown target 'vllm-0\.1'"):
        build_plan(open_checkpoint(tiny("qwen3")), target="vllm-0.1")
