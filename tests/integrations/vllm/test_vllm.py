"""The load format inside vLLM, rank by rank, against vLLM's own loader: the same bytes, fewer read, no garbage let through."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.targets import newest_target
from loadmaster.audit.pretended import is_pretended
from loadmaster.audit.ranks import Built, Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import CheckpointError, LoadError, PlanError, UnsupportedError, UsageError
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.synth import PRESETS, write_tiny
from tests.failures.damaged import DamagedCheckpoint
from tests.integrations.vllm.golden import DRAFT, SINCE, goldens, held, preset_of, ranks_of, told, write
from tests.integrations.vllm.models import ACCEPTED, OTHERS, arguments_of
from tools.vllm_goldens import parameters_of

pytestmark = pytest.mark.vllm

GLM = "glm-5.1-fp8"
INSTALLED = find_vllm()
TARGET = (INSTALLED and INSTALLED.target) or newest_target("vllm")
DESCRIBED = ranks_of(TARGET)
MOE = ("qwen3-moe", "deepseek-v3", GLM)

DIRECT, STREAMED = ({"model_loader_extra_config": {"direct": way}} for way in (True, False))

LAYOUTS = [Rank(pp, tp) for pp in ((0, 1), (0, 2), (1, 2)) for tp in ((0, 1), (1, 2))]
LAYOUTS += [Rank((i, 4)) for i in (1, 3)]
SPREAD = [Rank(pp, tp, ep=True) for pp in ((0, 1), (1, 2)) for tp in ((0, 2), (1, 2))]
CASES = [(p, r) for p in ACCEPTED for r in LAYOUTS if p != "smollm2" or r.tp[1] == 1]  # it has three heads of keys
CASES += [(p, r) for p in MOE for r in SPREAD]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def path(preset: str) -> Path:
        if preset not in paths:
            paths[preset] = write(preset, tmp_path_factory.mktemp(preset))
        return paths[preset]

    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[str], DamagedCheckpoint]:
    def copy(preset: str) -> DamagedCheckpoint:
        write_tiny(PRESETS[preset], tmp_path / preset, overrides=ACCEPTED[preset])
        return DamagedCheckpoint(tmp_path / preset)

    return copy


def differences(one: Built, other: Built) -> list[str]:
    """Return the parameters that differ in any byte."""
    assert one.params.keys() == other.params.keys()

    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return [n for n in one.params if not torch.equal(raw(one.params[n]), raw(other.params[n]))]


def offered(loaded: Built) -> set[str]:
    (selection,) = loaded.loader.offered
    return {selection.checkpoint.table.names[i] for i in selection.ids}


@pytest.mark.parametrize(("preset", "rank"), CASES, ids=lambda v: str(v))
def test_every_parameter_is_that_of_vllms_own_loader(preset: str, rank: Rank, made: Callable[[str], Path]) -> None:
    path = made(preset)
    own = load(path, rank, load_format="auto")
    assert differences(load(path, rank, **DIRECT), own) == []
    assert differences(load(path, rank, **STREAMED), own) == []


@pytest.mark.parametrize("preset", OTHERS)
def test_other_families_and_formats_are_proven_too(preset: str, made: Callable[[str], Path]) -> None:
    # vLLM does not pass on the selections of GLM-5.2's indexers: its even cut is refused
    ranks = (Rank(),) if preset == "glm-5.2-fp8" else (Rank((0, 2)), Rank((1, 2)))
    for rank in ranks:
        assert differences(load(made(preset), rank), load(made(preset), rank, load_format="auto")) == []


@pytest.mark.parametrize("preset", DESCRIBED)
def test_the_digests_that_are_kept_are_those_of_vllms_own_loader(preset: str) -> None:
    assert parameters_of(preset, TARGET) == goldens(TARGET)[preset]


@pytest.mark.parametrize(
    ("preset", "rank"),
    [(p, r) for p, ranks in SINCE.get(TARGET, {}).items() for r in ranks if not p.endswith(DRAFT)],
    ids=str,
)
def test_what_is_written_directly_or_streamed_has_the_digests(
    preset: str, rank: Rank, made: Callable[[str], Path]
) -> None:
    for way in (DIRECT, STREAMED):
        loaded = load(made(preset), rank, **way, **arguments_of(preset_of(preset)))
        assert told(held(loaded)) == goldens(TARGET)[preset][str(rank)]


@pytest.mark.parametrize("rank", [Rank(), Rank((1, 2)), Rank(tp=(1, 2), ep=True)], ids=str)
@pytest.mark.parametrize("preset", ["deepseek-v3", GLM, "glm-4.5-air"])
def test_a_draft_is_that_of_vllms_own_loader_and_reads_no_layer_but_its_own(
    preset: str, rank: Rank, made: Callable[[str], Path]
) -> None:
    path = made(preset)
    own = load(path, rank, draft="mtp", load_format="auto")
    draft = load(path, rank, draft="mtp", **STREAMED)
    # what the draft shares with the target is written by neither, if it is not stored
    assert differences(draft, own) == []
    assert {n.split(".")[2] for n in offered(draft) if ".layers." in n} == {"4" if preset == "glm-4.5-air" else "6"}
    # on one stage vLLM puts the target's embedding there: it is not read for that
    embedding = {"model.embed_tokens.weight"} if rank.pp[1] == 1 else set()
    assert set(differences(load(path, rank, draft="mtp", **DIRECT), own)) <= embedding


@pytest.mark.skipif("deepseek-v4-flash" not in ranks_of(TARGET), reason="it is not described for this version")
def test_a_draft_of_deepseek_v4_is_written_directly_and_lacks_an_embedding_over_stages(
    made: Callable[[str], Path],
) -> None:
    path = made("deepseek-v4-flash")
    for rank in (Rank(), Rank(tp=(1, 2), ep=True)):
        own = load(path, rank, draft="mtp", load_format="auto")
        assert differences(load(path, rank, draft="mtp", **DIRECT), own) == []
        draft = load(path, rank, draft="mtp", **STREAMED)
        assert differences(draft, own) == []
        assert {n.partition(".")[0] for n in offered(draft)} == {"mtp"}
    # vLLM shares the embedding on one stage alone, and the checkpoint has none for the draft
    with pytest.raises(LoadError, match=r"1 parameter was not written(.|\n)*  model\.embed_tokens\.weight"):
        load(path, Rank((1, 2)), draft="mtp")


@pytest.mark.parametrize("preset", ["qwen3", GLM])
def test_stages_share_out_the_tensors_and_the_drafts_layer_is_read_by_none(
    preset: str, made: Callable[[str], Path]
) -> None:
    path = made(preset)
    whole, first, last = (offered(load(path, Rank(pp), **STREAMED)) for pp in ((0, 1), (0, 2), (1, 2)))
    assert not first & last
    assert first | last == whole
    stored = open_checkpoint(path).table.names
    assert whole == {n for n in stored if not n.startswith("model.layers.6.")}


@pytest.mark.parametrize("preset", MOE)
def test_each_expert_is_read_by_the_rank_that_holds_it(preset: str, made: Callable[[str], Path]) -> None:
    one, other = (offered(load(made(preset), Rank(tp=(i, 2), ep=True), **STREAMED)) for i in (0, 1))
    both = one & other
    assert not any(".experts." in n for n in both)
    assert {int(n.split(".experts.")[1].split(".")[0]) for n in one - both} == {0, 1, 2, 3}
    assert {int(n.split(".experts.")[1].split(".")[0]) for n in other - both} == {4, 5, 6, 7}


def test_a_tied_head_is_filled_on_the_last_stage_and_the_embedding_is_not_read_between(
    made: Callable[[str], Path],
) -> None:
    embedding = "model.embed_tokens.weight"
    stages = [offered(load(made("smollm2"), Rank((i, 3)), **STREAMED)) for i in range(3)]
    assert [embedding in stage for stage in stages] == [True, False, True]


@pytest.mark.skipif(not is_pretended(), reason="vLLM for CPUs does not take GPTQ experts")
def test_biases_that_gptq_makes_for_experts_without_any_need_not_be_written(tmp_path: Path) -> None:
    write_tiny(PRESETS["qwen2-moe-gptq"], tmp_path / "gptq")
    loaded = load(tmp_path / "gptq")
    assert any(name.endswith(".w13_bias") for name in loaded.params)
    assert differences(loaded, load(tmp_path / "gptq", load_format="auto")) == []


def test_a_loader_that_forgot_its_guards_loads(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM-5.1-FP8 over stages, as it failed in the field: the indexer's helper met a layer of another stage."""
    path, stage = made(GLM), Rank((1, 2))
    sound = load(path, stage, load_format="auto")
    inner = type(sound.model.model)  # another class on CUDA
    source = textwrap.dedent(inspect.getsource(inner.load_weights))
    source = source.replace("continue  # this layer has no indexer; drop its checkpoint weights", "pass")
    source, num_guards = re.subn(r"loaded_params,\s+pp_missing_layer_names,", "loaded_params, [],", source)
    assert num_guards == 1
    copied: dict[str, Any] = {}
    exec(source, vars(sys.modules[inner.__module__]), copied)
    monkeypatch.setattr(inner, "load_weights", copied["load_weights"])
    with pytest.raises(KeyError, match=r"layers\.0\.self_attn\.indexer\.wk_weights_proj\.weight"):
        load(path, stage, load_format="auto")
    assert differences(load(path, stage, **STREAMED), sound) == []
    assert differences(load(path, stage, **DIRECT), sound) == []


@pytest.mark.parametrize(
    ("preset", "dropped", "param", "told"),
    [
        ("qwen3", "1.self_attn.o_proj.weight", "self_attn.o_proj.weight", "no byte of"),
        ("qwen3", "1.self_attn.k_proj.weight", "self_attn.qkv_proj.weight", "k_proj.weight: not in the checkpoint"),
        ("qwen3", "1.mlp.down_proj.weight", "mlp.down_proj.weight", "down_proj.weight: not in the checkpoint"),
        (GLM, "4.self_attn.o_proj.weight_scale_inv", "self_attn.o_proj.weight_scale_inv", "no byte of"),
        (GLM, "4.input_layernorm.weight", "input_layernorm.weight", "no byte of"),
        (
            GLM,
            "4.self_attn.indexer.wk.weight_scale_inv",
            "self_attn.indexer.wk_weights_proj.weight",
            "indexer.wk.weight",
        ),
        (
            GLM,
            "4.mlp.experts.5.up_proj.weight",
            "mlp.experts.routed_experts.w13_weight",
            "4.mlp.experts.5.up_proj.weight: not in",
        ),
    ],
)
def test_what_vllm_serves_as_garbage_is_refused_by_name(
    preset: str, dropped: str, param: str, told: str, damaged: Callable[[str], DamagedCheckpoint]
) -> None:
    checkpoint = damaged(preset)
    checkpoint.drop(rf"layers\.{re.escape(dropped)}$")
    load(checkpoint.path, load_format="auto")  # which says nothing
    with pytest.raises(LoadError, match=r"rank pp 0 of 1, tp 0 of 1: 1 parameter was not written") as refused:
        load(checkpoint.path, **STREAMED)
    assert f"\n  model.layers.{dropped[0]}.{param}  " in str(refused.value)
    assert told in str(refused.value)


def test_without_the_proof_it_is_loaded_as_vllm_does(damaged: Callable[[str], DamagedCheckpoint]) -> None:
    checkpoint = damaged("qwen3").drop(r"layers\.1\.self_attn\.o_proj\.weight$")
    load(checkpoint.path, model_loader_extra_config={"verify": False, "direct": False})
    with pytest.raises(UsageError, match="no option verfiy"):
        load(checkpoint.path, model_loader_extra_config={"verfiy": False})


@pytest.mark.parametrize(
    ("preset", "dropped", "told"),
    [
        ("qwen3", r"layers\.1\.self_attn\.o_proj\.weight$", "tensor-missing  model.layers.1.self_attn.o_proj.weight"),
        (
            GLM,
            r"layers\.4\.self_attn\.indexer\.wk\.weight_scale_inv$",
            "scale-missing  model.layers.4.self_attn.indexer",
        ),
        (GLM, r"layers\.4\.mlp\.experts\.5\.", "expert-incomplete  model.layers.4.mlp.experts.5"),
    ],
)
def test_a_defective_checkpoint_is_refused_before_the_model_is_built(
    preset: str, dropped: str, told: str, damaged: Callable[[str], DamagedCheckpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    monkeypatch.setattr(BaseModelLoader, "create_model", lambda *_, **__: pytest.fail("it was built"))
    path = damaged(preset).drop(dropped).path
    with pytest.raises(PlanError, match="the plan is not proven; nothing was allocated") as refused:
        load(path, Rank((0, 2)))
    assert told in str(refused.value)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the loader logs."""
    from loadmaster.integrations.vllm import loader

    lines: list[str] = []
    monkeypatch.setattr(loader.logger, "info", lambda text, *more: lines.append(text % more))
    return lines


UNDESCRIBED = ("gpt-oss-bf16", "GptOss") if TARGET == "vllm-0.32" else ("mimo-v2.5-pro", "MiMoV2")


@pytest.mark.parametrize(
    ("preset", "engine", "reason"),
    [
        (UNDESCRIBED[0], {}, f"{UNDESCRIBED[1]}ForCausalLM is not described for {TARGET}"),
        ("llama-fp8-static", {}, "model.layers.*.self_attn.qkv_proj.weight: fp8_tensor with weight_scale, input_scale"),
        ("qwen3", {"enable_lora": True}, "LoRA"),
        ("qwen3", {"hf_overrides": {"rope_theta": 1e4}}, "hf_overrides"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_not_described_is_streamed_and_the_reason_is_said_once(
    preset: str, engine: dict[str, Any], reason: str, made: Callable[[str], Path], said: list[str]
) -> None:
    path = made(preset)
    load(path, **engine)
    first, second = said
    assert first.startswith(f"rank pp 0 of 1, tp 0 of 1: streamed through vLLM's own loader: {reason}")
    assert "read in" in second
    with pytest.raises(UnsupportedError, match=re.escape(f"cannot be written directly: {reason}")):
        load(path, **engine, **DIRECT)


def test_experts_that_vllm_deals_out_in_another_way_are_streamed(made: Callable[[str], Path], said: list[str]) -> None:
    """vLLM takes turns only where experts are in groups: only the model that it built knows."""
    path, rank, turns = made("qwen3-moe"), Rank(tp=(1, 2), ep=True), {"expert_placement_strategy": "round_robin"}
    assert differences(load(path, rank, **turns), load(path, rank, load_format="auto", **turns)) == []
    assert "routed_experts holds the experts 4, 5, 6, 7 in the model and 1, 3, 5, 7 in the plan" in said[0]


def test_it_is_said_that_parameters_were_written_directly(made: Callable[[str], Path], said: list[str]) -> None:
    load(made("qwen3"), Rank((1, 2)))
    assert len(said) == 1
    assert re.fullmatch(
        r"rank pp 1 of 2, tp 0 of 1: written directly: \S+ KiB of \S+ MiB read in .* s; plan \w{16}", said[0]
    )


def test_weights_that_are_loaded_again_are_streamed(made: Callable[[str], Path], said: list[str]) -> None:
    """By then vLLM may have given them another form."""
    from vllm.config import set_current_vllm_config

    loaded = load(made("qwen3"))
    before = {n: p.clone() for n, p in loaded.params.items()}
    with set_current_vllm_config(loaded.config):
        loaded.loader.load_weights(loaded.model, loaded.config.model_config)
    assert "written directly" in said[0]
    assert "written directly" not in said[1]
    assert all(torch.equal(p, before[n]) for n, p in loaded.params.items())


def test_a_partition_of_layers_that_vllm_was_given_is_followed(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,3")
    path = made("qwen3")
    for rank, layers in ((Rank((0, 2)), {0}), (Rank((1, 2)), {1, 2, 3})):
        direct = load(path, rank, **DIRECT)
        assert {int(n.split(".")[2]) for n in direct.params if ".layers." in n} == layers
        assert differences(direct, load(path, rank, load_format="auto")) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_are_cast_as_vllm_casts_them(dtype: str, made: Callable[[str], Path]) -> None:
    path = made("qwen3")
    assert differences(load(path, dtype=dtype, **DIRECT), load(path, dtype=dtype, load_format="auto")) == []


@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(0, 2)), Rank(tp=(1, 2))], ids=str)
def test_a_vocabulary_is_padded_as_vllm_pads_it(rank: Rank, tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path, overrides={**ACCEPTED["llama"], "vocab_size": 330})
    assert differences(load(tmp_path, rank, **DIRECT), load(tmp_path, rank, load_format="auto")) == []


def test_a_tensor_that_vllm_does_not_know_is_named_with_its_rank(damaged: Callable[[str], DamagedCheckpoint]) -> None:
    checkpoint = damaged("qwen3").copy(r"layers\.1\.self_attn\.o_proj\.weight$", "layers.1.self_attn.z_proj.weight")
    with pytest.raises(LoadError, match=r"rank pp 0 of 1.* failed at model\.layers\.1\.self_attn\.z_proj\.weight"):
        load(checkpoint.path)


def test_a_checkpoint_with_errors_is_refused_before_anything_is_read(
    damaged: Callable[[str], DamagedCheckpoint],
) -> None:
    path = damaged("qwen3").path
    first, second = sorted(path.glob("*.safetensors"))
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=f"nothing was read(.|\n)*{first.name}"):
        load(path)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"shard-missing  {second.name}"):
        load(path)


def test_vllm_finds_the_format_by_the_entry_point_and_may_register_it_again() -> None:
    from importlib.metadata import entry_points

    from vllm.model_executor import model_loader

    (entry,) = entry_points(group="vllm.general_plugins", name="loadmaster")
    for _ in range(2):
        entry.load()()
    assert model_loader._LOAD_FORMAT_TO_MODEL_LOADER["loadmaster"].__module__ == "loadmaster.integrations.vllm.loader"


@pytest.mark.parametrize("rank", [Rank(), Rank((1, 2)), Rank(tp=(1, 2), ep=True)], ids=str)
def test_tensors_that_are_pushed_make_what_vllm_makes_when_it_loads_their_checkpoint_again(
    rank: Rank, made: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from vllm.model_executor.model_loader.reload.inplace import reload_weights
    from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading

    from loadmaster.integrations.vllm.reload import received

    write_tiny(PRESETS["qwen3-moe"], tmp_path, seed=7)
    new = {n: t for shard in tmp_path.glob("*.safetensors") for n, t in load_file(shard).items()}

    def running(load_format: str) -> Built:
        built = load(made("qwen3-moe"), rank, load_format=load_format)
        record_metadata_for_reloading(built.model)
        built.process()
        return built

    def params(built: Built) -> dict[str, torch.Tensor]:
        return {n: p.data.clone() for n, p in built.model.named_parameters()}

    def push(built: Built, tensors: dict[str, torch.Tensor]) -> None:
        with built.current():
            reload_weights(built.config, built.model, received(built.model, reversed(tensors.items())), None, True)

    own = running("auto")
    old = params(own)
    with own.current():
        reload_weights(own.config, own.model, None, str(tmp_path), True)
    built = running("loadmaster")
    push(built, new)
    wanted, found = params(own), params(built)
    assert [n for n in wanted if not torch.equal(wanted[n], found[n])] == []
    assert [n for n in wanted if "proj" in n and wanted[n].numel() and torch.equal(wanted[n], old[n])] == []
    lacking = next(n for n in new if "k_proj" in n and n.startswith("model.layers.3."))
    with pytest.raises(LoadError, match=f"1 of [0-9]+ tensors did not arrive:\n\n  {re.escape(lacking)}"):
        push(built, {n: t for n, t in new.items() if n != lacking})


def test_the_same_loader_reads_the_folder_that_is_named_when_it_loads_again(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    write_tiny(PRESETS["qwen3"], tmp_path, seed=7, overrides=ACCEPTED["qwen3"])
    built = load(made("qwen3"))
    built.model_config.model = str(tmp_path)
    with built.current():
        built.loader.get_all_weights(built.model_config, built.model)
    (selection,) = built.loader.offered
    assert selection.checkpoint.path == tmp_path
