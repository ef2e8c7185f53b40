"""Direct writing, as far as it needs no vLLM: what is asked before, and what a built model must be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError, PlanError
from loadmaster.integrations.vllm.built_model import expert_sizes
from loadmaster.integrations.vllm.direct import Planned, Unfit, check_fit, layout_of, misfits, write
from loadmaster.integrations.vllm.options import Options
from loadmaster.integrations.vllm.proving import prove_layout, with_room
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.torch_dtypes import TORCH
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint
from tests.integrations.vllm.models import ACCEPTED


class Qwen3ForCausalLM(torch.nn.Module):
    """Stands for vLLM's."""


Qwen3ForCausalLM.__module__ = "vllm.model_executor.models.qwen3"


def configs(**changes: Any) -> tuple[Any, Any]:
    """Return vLLM's config and that of the model, as far as they are read; ``changes`` by name, wherever it stands."""
    parallel = {
        "enable_eplb": False,
        "eplb_config": None,
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "enable_expert_parallel": False,
        "expert_placement_strategy": "linear",
        "data_parallel_size": 1,
        "data_parallel_rank": 0,
    }
    model = {
        "runner_type": "generate",
        "config_format": "auto",
        "hf_config_path": None,
        "quantization": None,
        "hf_config": SimpleNamespace(architectures=changes.pop("architectures", ["Qwen3ForCausalLM"])),
    }
    for values in (parallel, model):
        values.update({k: changes.pop(k) for k in list(changes) if k in values})
    target = SimpleNamespace(hf_overrides=changes.pop("hf_overrides", {}))
    offload = SimpleNamespace(
        uva=SimpleNamespace(cpu_offload_gb=changes.pop("cpu_offload_gb", 0)),
        prefetch=SimpleNamespace(offload_group_size=0),
    )
    vllm = {
        "parallel_config": SimpleNamespace(**parallel),
        "model_config": target,
        "lora_config": None,
        "offload_config": offload,
        **changes,
    }
    return SimpleNamespace(**vllm), SimpleNamespace(**model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runner_type": "pooling"}, "a model for pooling"),
        ({"runner_type": "draft"}, "a draft of Qwen3ForCausalLM is not described"),
        ({"lora_config": object()}, "LoRA"),
        ({"decode_context_parallel_size": 2}, "decode_context_parallel_size"),
        ({"hf_overrides": {"num_hidden_layers": 1}}, "hf_overrides"),
        ({"hf_config_path": "elsewhere"}, "hf_config_path"),
        ({"cpu_offload_gb": 1.0}, "offloading"),
        ({"config_format": "mistral"}, "a config in the format mistral"),
        ({"quantization": "fp8"}, "quantization is fp8, but None in config.json"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "vLLM uses another architecture"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_vllm_is_asked_for_beyond_what_is_described_is_named(
    changes: dict[str, Any], said: str, tiny: Tiny
) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    check_fit(*configs(), checkpoint, Qwen3ForCausalLM, "0.32.0")
    with pytest.raises(Unfit, match=said):
        check_fit(*configs(**changes), checkpoint, Qwen3ForCausalLM, "0.32.0")


def test_another_version_or_another_class_is_not_described(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    with pytest.raises(Unfit, match=r"this is vLLM 0\.34\.1, which is not described: vllm-0\.32, vllm-0\.33 are"):
        check_fit(*configs(), checkpoint, Qwen3ForCausalLM, "0.34.1")
    with pytest.raises(Unfit, match=r"Qwen3ForCausalLM is built as torch\.nn\.\S+Linear"):
        check_fit(*configs(), checkpoint, torch.nn.Linear, "0.32.0")


def test_ranks_are_numbered_as_vllm_numbers_them() -> None:
    vllm, _ = configs(data_parallel_size=2, data_parallel_rank=1, enable_expert_parallel=True)
    layout, rank = layout_of(vllm, [3, 2], (1, 2), (3, 4))
    assert layout == ParallelLayout(2, 4, True, layer_partition=(3, 2), data_parallel_size=2)
    at = layout.coordinate(rank)
    assert (at.dp_rank, at.pp_rank, at.tp_rank) == (1, 1, 3)


def test_copies_of_experts_are_planned_where_vllm_balances_experts() -> None:
    copies = SimpleNamespace(num_redundant_experts=2)
    for balanced, planned in ((True, 2), (False, 0)):
        vllm, _ = configs(enable_expert_parallel=True, enable_eplb=balanced, eplb_config=copies)
        layout, _ = layout_of(vllm, [4], (0, 1), (0, 2))
        assert layout.num_redundant_experts == planned


def test_a_draft_is_planned_with_its_model_on_the_last_stage_and_has_only_its_own_layer(tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path, overrides=ACCEPTED["glm-5.1-fp8"])
    vllm, _ = configs()
    layout, rank = layout_of(vllm, [3, 3], (1, 2), (0, 1), is_draft=True)
    with pytest.raises(Unfit, match="another stage than the last"):
        layout_of(vllm, [3, 3], (0, 2), (0, 1), is_draft=True)
    draft = Planned(prove_layout(open_checkpoint(tmp_path), layout, torch.bfloat16), rank, is_draft=True)
    called = {name: spec.name for spec, name in draft.params}
    assert called.pop("model.embed_tokens.weight") == "model.layers.6.embed_tokens.weight"
    assert called == {n: n for n in called if n.startswith("model.layers.6.")}
    assert "model.layers.6.shared_head.head.weight" not in called  # the model's, which vLLM puts there
    model = torch.nn.Module()
    for spec, name in draft.params:
        put(model, name, torch.nn.Parameter(torch.zeros(spec.shape, dtype=TORCH[spec.dtype]), requires_grad=False))
    assert reasons(draft, model) == []
    write(draft, model, Options())
    expected = load_rank(draft.plan, rank).tensors
    assert all(
        torch.equal(find(model, n).view(torch.uint8), expected[s.name].view(torch.uint8)) for s, n in draft.params
    )


def test_what_every_model_lacks_is_refused_with_the_findings(tiny_copy: Tiny) -> None:
    path = DamagedCheckpoint(tiny_copy("qwen3")).drop(r"layers\.1\.self_attn\.o_proj").path
    with pytest.raises(PlanError) as refused:
        prove_layout(open_checkpoint(path), ParallelLayout(2), torch.bfloat16)
    assert "nothing was allocated" in str(refused.value)
    assert "tensor-missing  model.layers.1.self_attn.o_proj.weight: expected BF16" in str(refused.value)
    assert [f.code for f in refused.value.findings] == ["tensor-missing"]


def test_a_stage_that_vllm_would_begin_without_its_selection_is_refused_and_not_streamed(tiny: Tiny) -> None:
    layout = ParallelLayout(2, layer_partition=(4, 4))
    with pytest.raises(LayoutError, match="no stage can begin at layer 4") as refused:
        prove_layout(open_checkpoint(tiny("glm-5.2-fp8")), layout, torch.bfloat16)
    assert refused.value.code == "layout-cut"
    assert str(refused.value.hint).startswith("nearest: VLLM_PP_LAYER_PARTITION=6,2;")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: m.rename(r"self_attn\.o_proj", "self_attn.out_proj"), "and no parameter needs 4 stored tensors"),
        (lambda m: m.copy(r"0\.self_attn\.o_proj", "0.self_attn.z_proj"), "tensor-unexpected"),
        (lambda m: m.config(attention_bias=True), r"tensor-missing: \S+bias"),
        (lambda m: m.config(num_attention_heads=None), "num_attention_heads"),
    ],
)
def test_what_vllm_may_see_otherwise_is_left_to_it(
    damage: Callable[[DamagedCheckpoint], DamagedCheckpoint], said: str, tiny_copy: Tiny
) -> None:
    path = damage(DamagedCheckpoint(tiny_copy("qwen3"))).path
    with pytest.raises(Unfit, match=said):
        prove_layout(open_checkpoint(path), ParallelLayout(), torch.bfloat16)


def test_a_checkpoint_of_which_nothing_is_needed_is_refused_with_what_it_lacks(tiny: Tiny, tmp_path: Path) -> None:
    """Rotary frequencies are waived: no layer has a tensor."""
    shutil.copy(tiny("qwen3") / "config.json", tmp_path)
    save_file({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, tmp_path / "model.safetensors")
    with pytest.raises(PlanError, match="layer-missing"):
        prove_layout(open_checkpoint(tmp_path), ParallelLayout(), torch.bfloat16)


def test_what_a_draft_s_checkpoint_lacks_is_left_to_vllm(tmp_path: Path) -> None:
    """It may be the draft's alone."""
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path, overrides=ACCEPTED["glm-5.1-fp8"])
    checkpoint = open_checkpoint(DamagedCheckpoint(tmp_path).drop(r"model\.layers\.[0-4]\.").path)
    with pytest.raises(Unfit, match="layer-missing"):
        prove_layout(checkpoint, ParallelLayout(num_draft_layers=1), torch.bfloat16)
    with pytest.raises(PlanError):
        prove_layout(checkpoint, ParallelLayout(), torch.bfloat16)


def test_a_layout_that_plans_do_not_have_is_streamed(tiny: Tiny) -> None:
    with pytest.raises(Unfit, match="do not divide over 3"):
        prove_layout(open_checkpoint(tiny("qwen3")), ParallelLayout(1, 3), torch.bfloat16)


def built(planned: Planned) -> torch.nn.Module:
    """Return a model with just the parameters of a plan."""
    model = torch.nn.Module()
    for spec in planned.plan.rank(planned.rank).specs:
        made = torch.empty(spec.shape, dtype=TORCH[spec.dtype])
        put(model, spec.name, find(model, spec.alias) if spec.alias else torch.nn.Parameter(made, requires_grad=False))
    return model


def put(model: torch.nn.Module, name: str, param: torch.nn.Parameter) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(model, part):
            model.add_module(part, torch.nn.Module())
        model = getattr(model, part)
    model.register_parameter(leaf, param)


def find(model: torch.nn.Module, name: str) -> torch.nn.Parameter:
    return model.get_parameter(name)


def planned(path: Path, *sizes: int, **layout: Any) -> Planned:
    return Planned(prove_layout(open_checkpoint(path), ParallelLayout(*sizes, **layout), torch.bfloat16), 0)


def reasons(planned: Planned, model: torch.nn.Module, *may_stay: str) -> list[str]:
    return list(misfits(planned, model, may_stay.__contains__))


def test_a_model_with_just_the_parameters_of_the_plan_fits(tiny: Tiny) -> None:
    for preset in ("qwen3", "smollm2", "qwen3-moe"):
        made = planned(tiny(preset))
        assert reasons(made, built(made)) == []


def test_a_model_with_other_parameters_does_not_fit_and_each_is_named(tiny: Tiny) -> None:
    made = planned(tiny("qwen3"))

    def said(name: str, param: torch.Tensor) -> list[str]:
        model = built(made)
        put(model, name, torch.nn.Parameter(param, requires_grad=False))
        return reasons(made, model)

    norm, head = "model.norm.weight", "lm_head.weight"
    dtype = torch.bfloat16
    assert said(norm, torch.empty(64, dtype=dtype)) == [f"{norm} is [64] here and [128] in the plan"]
    assert said(norm, torch.empty(128)) == [f"{norm} is float32 here and BF16 in the plan"]
    assert said(head, torch.empty(128, 320, dtype=dtype).t()) == [f"{head} is not contiguous here"]
    assert said("model.extra", torch.empty(1)) == ["model.extra is not in the plan"]
    assert said(norm, torch.empty(128, dtype=dtype, device="meta"))[0].startswith("parameters are on several devices")
    with torch.inference_mode():
        made_there = torch.empty(128, dtype=dtype)
    assert said(norm, made_there) == [f"{norm} was made in inference mode, so other threads cannot write to it"]
    model = built(made)
    del model.get_submodule("model.norm").weight
    assert reasons(made, model) == [f"{norm} is not a parameter of the model"]
    put(model, norm, torch.nn.Parameter(torch.empty(128, dtype=dtype), requires_grad=False))
    put(model, "model.layers.0.self_attn.attn.k_scale", torch.nn.Parameter(torch.ones(1)))
    assert reasons(made, model, "model.layers.0.self_attn.attn.k_scale") == []


def test_memory_is_shared_where_the_plan_says_so_and_nowhere_else(tiny: Tiny) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    tied, apart = planned(tiny("smollm2")), planned(tiny("qwen3"))
    model = built(tied)
    put(model, head, torch.nn.Parameter(torch.empty_like(find(model, embedding)), requires_grad=False))
    assert f"{head} is {embedding} in the plan, but not in the model" in reasons(tied, model)
    model = built(apart)
    put(model, head, find(model, embedding))
    assert reasons(apart, model) == [f"{head} is {embedding} in the model, but not in the plan"]


def test_scales_of_a_cache_that_are_stored_are_not_left_out(tiny_copy: Tiny) -> None:
    scale = "model.layers.0.self_attn.attn.k_scale"
    path = (
        DamagedCheckpoint(tiny_copy("qwen3"))
        .copy(r"layers\.0\.input_layernorm\.weight", "layers.0.self_attn.k_scale")
        .path
    )
    made = planned(path)
    model = built(made)
    assert reasons(made, model, scale) == []
    put(model, scale, torch.nn.Parameter(torch.ones(1)))
    assert reasons(made, model, scale) == ["scales of a quantised KV cache are stored"]


def with_experts(model: torch.nn.Module, held: list[int] | None, share: tuple[int, int]) -> torch.nn.Module:
    """Give a model the attributes by which vLLM's modules of experts tell what they hold; None: all."""
    parallel = SimpleNamespace(tp_rank=share[0], tp_size=share[1])
    for name, module in model.named_modules():
        if name.endswith("routed_experts"):
            module.moe_config = SimpleNamespace(num_experts=8, num_logical_experts=8, moe_parallel_config=parallel)
            slots = None if held is None else torch.tensor([held.index(i) if i in held else -1 for i in range(8)])
            module.expert_map_manager = SimpleNamespace(expert_map=slots)
    return model


def test_experts_are_those_of_the_plan(tiny: Tiny) -> None:
    path = tiny("qwen3-moe")
    cut, spread = planned(path, 1, 2), planned(path, 1, 2, enable_expert_parallel=True)
    assert reasons(cut, with_experts(built(cut), None, (0, 2))) == []
    assert reasons(spread, with_experts(built(spread), [0, 1, 2, 3], (0, 1))) == []
    (first, *_) = reasons(spread, with_experts(built(spread), [0, 2, 4, 6], (0, 1)))
    name = "model.layers.0.mlp.experts.routed_experts"
    assert first == f"{name} holds the experts 0, 2, 4, 6 in the model and 0, 1, 2, 3 in the plan"
    (first, *_) = reasons(cut, with_experts(built(cut), None, (1, 2)))
    assert first == f"{name} is share 1 of 2 in the model and 0 of 2 in the plan"


def test_a_plan_is_made_again_with_the_room_that_kernels_want(tiny: Tiny) -> None:
    made = planned(tiny("qwen3-moe"), 1, 2)
    wanted = with_room(made, (128, 256))
    assert with_room(made, None) is made
    name = "model.layers.0.mlp.experts.routed_experts.w2_weight"
    shapes = [next(s.shape for s, _ in p.params if s.name == name) for p in (made, wanted)]
    assert shapes == [(8, 128, 32), (8, 128, 256)]
    with pytest.raises(Unfit, match="room for 16"):
        with_room(made, (128, 16))


def sized(*sizes: tuple[int, int, int, int]) -> torch.nn.Module:
    """Return a model with modules of experts: hidden and inner elements, then those without what kernels add."""
    model = torch.nn.Module()
    names = ("hidden_dim", "intermediate_size_per_partition")
    for number, values in enumerate(sizes):
        experts: Any = torch.nn.Module()
        experts.expert_map_manager = object()
        experts.moe_config = SimpleNamespace(
            **dict(zip((*names, *(f"{n}_unpadded" for n in names)), values, strict=True))
        )
        model.register_module(str(number), experts)
    return model


def test_the_sizes_of_experts_are_those_that_all_modules_agree_on() -> None:
    assert expert_sizes(sized((128, 192, 128, 160), (128, 192, 128, 160))) == (128, 192)
    assert expert_sizes(sized((256, 160, 128, 160))) == (256, 160)
    assert expert_sizes(sized((128, 160, 128, 160))) is None
    assert expert_sizes(sized((128, 192, 128, 160), (128, 64, 128, 64))) is None
    assert expert_sizes(torch.nn.Module()) is None


def test_what_vllm_computes_is_what_is_stored_of_a_parameter(tiny: Tiny) -> None:
    made = with_room(planned(tiny("gpt-oss"), 1, 2), (256, 128))
    bias = torch.arange(8 * 256).reshape(8, 256)
    stored = made.stored_parts("model.layers.3.mlp.experts.routed_experts.w2_bias", bias)
    assert [part.tolist() for part in stored] == [bias[:, :128].tolist()]


def test_copies_of_experts_are_stored_parts_too(tiny: Tiny) -> None:
    """8 experts and 2 copies of the first over 2 ranks: the second has experts 5, 6, 7, then 0 and 1."""
    layout = ParallelLayout(1, 2, enable_expert_parallel=True, num_redundant_experts=2)
    made = Planned(prove_layout(open_checkpoint(tiny("gpt-oss")), layout, torch.bfloat16), 1, is_draft=False)
    bias = torch.arange(5 * 128).reshape(5, 128)
    stored = made.stored_parts("model.layers.3.mlp.experts.routed_experts.w2_bias", bias)
    assert [part.tolist() for part in stored] == [bias[:3].tolist(), bias[3:].tolist()]
