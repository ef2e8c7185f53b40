"""Plans of full-size models, the byte law, layouts, JSON and hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import ConfigError, InputError, LayoutError, PlanError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_full_size
from tests.conftest import Tiny

# tensors, payload bytes and shards as published
PUBLISHED = {
    "glm-5.1-fp8": (119_028, 756_162_687_872, 142),
    "glm-5.2-fp8": (118_629, 755_617_140_416, 141),
    "deepseek-v3": (91_991, 688_574_839_360, 163),
    "deepseek-v3.2": (92_425, 689_469_018_240, 163),
    "kimi-k2": (139_583, 1_029_173_249_888, 61),
}
LAYOUTS = [
    ParallelLayout(8),
    ParallelLayout(16),
    ParallelLayout(1, 8),
    ParallelLayout(1, 8, enable_expert_parallel=True),
    ParallelLayout(2, 4),
]


@pytest.fixture(scope="module", params=PUBLISHED)
def full_size(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checkpoint]:
    path = tmp_path_factory.mktemp("full") / request.param
    write_full_size(PRESETS[request.param], path)
    return request.param, open_checkpoint(path)


def test_full_size_checkpoints_are_the_published_ones(full_size: tuple[str, Checkpoint]) -> None:
    name, checkpoint = full_size
    found = (len(checkpoint.table), checkpoint.table.payload_bytes, len(checkpoint.files))
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("mtp", [False, True], ids=["", "mtp"])
def test_full_size_models_are_proven_on_every_layout_and_keep_the_byte_law(
    full_size: tuple[str, Checkpoint], mtp: bool
) -> None:
    name, checkpoint = full_size
    if mtp and name == "kimi-k2":
        pytest.skip("Kimi K2 has no MTP layer")
    for layout in LAYOUTS:
        layout = ParallelLayout(**{**layout.as_json(), "layer_partition": None, "num_draft_layers": int(mtp)})
        proof = prove(build_plan(checkpoint, layout))
        assert proof.findings == ()
        needed, replicas = sum(r.needed_bytes for r in proof.ranks), sum(r.replica_bytes for r in proof.ranks)
        assert needed == PUBLISHED[name][1] - sum(w.num_bytes for w in proof.waivers) + replicas
        assert all(r.fetched_bytes >= r.needed_bytes and r.resident_bytes > 0 for r in proof.ranks)


@pytest.mark.parametrize("full_size", ["glm-5.1-fp8"], indirect=True)
def test_glm_51_with_mtp_over_eight_stages_replicates_one_embedding(full_size: tuple[str, Checkpoint]) -> None:
    _, checkpoint = full_size
    proof = prove(build_plan(checkpoint, ParallelLayout(8, num_draft_layers=1)))
    assert [r.replica_bytes for r in proof.ranks] == [0] * 7 + [154_880 * 6144 * 2]
    assert sum(r.replica_bytes for r in proof.ranks) == 1_903_165_440
    assert proof.ranks[7].draft_layers == (78,)
    without = prove(build_plan(checkpoint, ParallelLayout(8)))
    assert [w.reason for w in without.waivers] == ["mtp not enabled"]
    assert sum(r.replica_bytes for r in without.ranks) == 0


@pytest.mark.parametrize("full_size", ["glm-5.2-fp8"], indirect=True)
def test_a_stage_that_begins_on_a_shared_layer_is_handed_the_top_k(full_size: tuple[str, Checkpoint]) -> None:
    _, checkpoint = full_size
    # full layers are 0, 1, 2, 6, 10, …: 38 selects, 39 reuses what 38 selected
    for first, carries in ((38, ("hidden_states",)), (39, ("hidden_states", "topk_indices"))):
        plan = build_plan(checkpoint, ParallelLayout(2, layer_partition=(first, 78 - first)))
        assert plan.rank(1).carries == carries
        assert plan.rank(0).carries == ()


def test_a_rank_s_plan_never_mentions_a_layer_of_another_stage(tiny: Tiny) -> None:
    """An indexer pair on a layer of another stage, KeyError 'layers.0.self_attn.indexer.wk_weights_proj.weight'."""
    plan = build_plan(open_checkpoint(tiny("glm-5.1-fp8")), ParallelLayout(3, num_draft_layers=1))
    names = plan.checkpoint.table.names
    for rank in range(3):
        derived = plan.rank(rank)
        layers = {*range(*derived.layers), *derived.draft_layers}
        read = {names[i] for b in derived.groups for i in b.tensors.reshape(-1)}
        assert {int(n.split(".")[2]) for n in read if n.startswith("model.layers.")} == layers
        pairs = [s.name for s in derived.specs if s.name.endswith("indexer.wk_weights_proj.weight")]
        assert len(pairs) == len(layers)
    assert [s.name for s in derived.specs if s.name.startswith("mtp.0.self_attn.indexer.wk_weights")]


def test_deepseek_s_draft_has_an_embedding_and_head_of_its_own_and_glm_s_shares_them(tiny: Tiny) -> None:
    def draft(family: str, pp: int) -> dict[str, str | None]:
        plan = build_plan(open_checkpoint(tiny(family)), ParallelLayout(pp, num_draft_layers=1))
        return {s.name: s.alias for s in plan.rank(pp - 1).specs if s.name in (embed, head)}

    embed, head = "mtp.0.embed_tokens.weight", "mtp.0.shared_head.head.weight"
    assert draft("deepseek-v3", 2) == {embed: None, head: None}
    assert draft("glm-5.1-fp8", 2) == {embed: None, head: "lm_head.weight"}  # a copy of the embedding, the head itself
    assert draft("glm-5.1-fp8", 1) == {embed: "embed_tokens.weight", head: "lm_head.weight"}


def test_ragged_parts_are_fused_with_a_grid_each(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("glm-5.1-fp8")))
    spec = next(s for s in plan.rank(0).specs if s.name == "layers.0.self_attn.fused_qkv_a_proj.weight")
    assert spec.shape == (176 + 96, 320)
    assert [(g.rows, g.scale_rows, g.phase) for g in spec.grids] == [
        ((0, 176), (0, 2), (0, 0)),
        ((176, 272), (2, 3), (0, 0)),
    ]


def test_a_cut_inside_a_block_keeps_the_phase(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("glm-5.1-fp8")), ParallelLayout(1, 2))
    spec = next(s for s in plan.rank(1).specs if s.name == "layers.0.self_attn.q_b_proj.weight")
    assert spec.shape == (160, 176)  # 8 heads of 40 rows; this rank's begin at row 160, 32 into the second block
    assert [(g.rows, g.scale_rows, g.phase, g.first) for g in spec.grids] == [((0, 160), (0, 2), (32, 0), (1, 0))]


def test_the_hash_covers_layout_dtype_and_headers(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    hashes = {
        build_plan(checkpoint).hash,
        build_plan(checkpoint, ParallelLayout(2)).hash,
        build_plan(checkpoint, ParallelLayout(1, 2)).hash,
        build_plan(checkpoint, dtype="F32").hash,
        build_plan(open_checkpoint(tiny("llama"))).hash,
    }
    assert len(hashes) == 5
    assert build_plan(checkpoint).hash == build_plan(open_checkpoint(tiny("qwen3"))).hash


def test_a_plan_round_trips_through_json(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("glm-5.2-fp8")), ParallelLayout(2, 2, num_draft_layers=1))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert [again.rank(r).specs for r in range(4)] == [plan.rank(r).specs for r in range(4)]
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(b"{}")
    changed = json.loads(plan.to_json())
    changed["hash"] = "0" * 64
    with pytest.raises(PlanError, match="plans"):
        Plan.from_json(json.dumps(changed).encode())


def test_a_number_of_any_size_that_nobody_reads_is_no_matter(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "seed": 10**30}))
    plan = build_plan(open_checkpoint(path))
    assert Plan.from_json(plan.to_json()) == plan


def test_a_layout_that_cannot_be_names_the_legal_sizes(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("glm-5.1-fp8"))
    with pytest.raises(LayoutError, match=r"8 unit\(s\) of 40 do not divide over 3") as refused:
        build_plan(checkpoint, ParallelLayout(1, 3))
    sizes = "valid tensor-parallel sizes for this model: 1, 2, 4, 8"
    assert refused.value.hint == f"{sizes}, with --enable-expert-parallel or without"
    with pytest.raises(LayoutError, match="8 experts cannot be dealt out evenly to 16 ranks"):
        build_plan(checkpoint, ParallelLayout(1, 16, enable_expert_parallel=True))
    with pytest.raises(LayoutError) as refused:
        build_plan(open_checkpoint(tiny("kimi-k2-int4")), ParallelLayout(1, 8))
    assert refused.value.hint == (
        "valid tensor-parallel sizes for this model: 1, 2, 4; with --enable-expert-parallel: 1, 2, 4, 8"
    )
    with pytest.raises(LayoutError) as refused:
        build_plan(open_checkpoint(tiny("qwen3")), ParallelLayout(1, 7))
    assert "expert" not in str(refused.value.hint)
    with pytest.raises(LayoutError, match="7 pipeline stages for 6 layers"):
        build_plan(checkpoint, ParallelLayout(7))
    with pytest.raises(LayoutError, match="1 MTP layer"):
        build_plan(open_checkpoint(tiny("qwen3")), ParallelLayout(num_draft_layers=1))


def test_a_capacity_that_is_too_small_is_a_finding(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("qwen3")), ParallelLayout(2))
    assert prove(plan, capacity_bytes=2**30).proven
    proof = prove(plan, capacity_bytes=2**10)
    assert [(f.code, f.ranks) for f in proof.findings] == [("memory-capacity", (0, 1))]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"architectures": ["GPT9"]}, ConfigError, "'GPT9' is not known"),
        ({"architectures": [], "model_type": "gpt9"}, ConfigError, "the model_type 'gpt9' is not known"),
        ({"architectures": "LlamaForCausalLM"}, ConfigError, "names no architecture"),
        ({"hidden_size": None}, ConfigError, "no 'hidden_size'"),
        ({"hidden_size": "320"}, ConfigError, "hidden_size is '320'"),
        ({"hidden_size": -1}, ConfigError, "hidden_size is -1"),
        ({"hidden_size": 10**30}, ConfigError, "hidden_size is 1000"),
        ({"num_hidden_layers": True}, ConfigError, "num_hidden_layers is True"),
        ({"tie_word_embeddings": "no"}, ConfigError, "tie_word_embeddings is 'no'"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"q_lora_rank": None}, ConfigError, "has no 'q_lora_rank'"),
        ({"indexer_types": ["shared"] * 6}, ConfigError, "begins with shared"),
        ({"indexer_types": ["full"]}, ConfigError, "each of 6 layers"),
        ({"mlp_layer_types": ["dense"]}, ConfigError, "each of 6 layers"),
        ({"quantization_config": 3}, ConfigError, "quantization_config is not an object"),
        ({"quantization_config": {"quant_method": "exl2"}}, UnsupportedError, "'exl2' is not supported"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, UnsupportedError, "bits is 3"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, UnsupportedError, "was converted to MLX"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": "affine"}}, UnsupportedError, "was converted to MLX"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 1]}}, ConfigError, "two positive"),
    ],
)
def test_an_impossible_config_is_said_by_key(
    change: dict[str, object], error: type[InputError], says: str, tiny_copy: Tiny
) -> None:
    path = tiny_copy("glm-5.1-fp8")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=says):
        build_plan(open_checkpoint(path))


def test_fp8_weights_without_a_quantization_config_are_a_contradiction(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    codes = {f.code for f in prove(build_plan(open_checkpoint(path))).findings}
    assert "format-contradiction" in codes


def test_a_surplus_indexer_and_a_phantom_bias_are_unexpected(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")  # all layers have indexers; a config of GLM-5.2 says that some share
    config = json.loads((path / "config.json").read_text())
    config |= {"index_topk_freq": 4, "index_skip_topk_offset": 3}
    (path / "config.json").write_text(json.dumps(config))
    found = prove(build_plan(open_checkpoint(path))).findings
    assert {f.code for f in found} == {"tensor-unexpected"}
    assert all("indexer" in str(f.tensor) for f in found)
