"""Checkpoints that are quantised in part: what the headers say is loaded, every byte the reference's, and what is said."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.loader.reference import read_all
from tests.loader.test_presets import assert_loads_as_the_reference

FORMATS = [name.removeprefix("llama-") for name in PRESETS if name.startswith("llama-") and name != "llama-4"]


def plain(path: Path, out: Path, modules: dict[str, tuple[int, int]], **config: Any) -> Path:
    """Write a checkpoint again in which each of ``modules`` has a plain BF16 weight of the shape given."""
    tensors = read_all(path)
    random = torch.Generator().manual_seed(1)
    for module, shape in modules.items():
        for name in [n for n in tensors if n.rpartition(".")[0] == module and not n.endswith(".bias")]:
            del tensors[name]
        tensors[f"{module}.weight"] = torch.randn(shape, generator=random).bfloat16()
    return write(tensors, path, out, **config)


def write(tensors: dict[str, torch.Tensor], path: Path, out: Path, **config: Any) -> Path:
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    whole = json.loads((path / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(whole))
    return out


def planned(path: Path, drafts: int = 0) -> Plan:
    return build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=drafts))


def codes(plan: Plan) -> Counter[tuple[str, str]]:
    return Counter((f.code, f.severity) for f in prove(plan).findings)


def specs(plan: Plan, pattern: str) -> dict[str, str]:
    return {s.name: s.dtype for s in plan.rank(0).specs if pattern in s.name}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_plain_part_decodes_the_others_into_the_models_dtype(format_: str, tiny: Tiny, tmp_path: Path) -> None:
    """Every format's arithmetic, also where a cut falls inside its groups: 64 inputs a rank at tp 2, 16 at tp 8."""
    odd = {"model.layers.1.self_attn.k_proj": (64, 128), "model.layers.2.mlp.up_proj": (256, 128)}
    path = plain(tiny(f"llama-{format_}"), tmp_path / "mixed", odd)
    plan = planned(path)
    unclaimed = 1 if format_ == "modelopt-fp4" else 2  # whose attention is not quantised anyway
    assert codes(plan) == {("format-contradiction", "warning"): unclaimed}
    assert specs(plan, "layers.2.mlp.gate_up_proj") == {"layers.2.mlp.gate_up_proj.weight": "BF16"}
    assert_loads_as_the_reference(path, ParallelLayout(2, 2))
    assert_loads_as_the_reference(path, ParallelLayout(1, 8))


@pytest.mark.parametrize(
    ("preset", "odd", "param", "says"),
    [
        (
            "qwen3-moe-gptq",
            "mlp.experts.3.up_proj.scales",
            "mlp.experts.w13_weight",
            "it is BF16, other parts of layers.1.mlp.experts.w13_weight use F16",
        ),
        (
            "llama-fp8-static",
            "mlp.gate_proj.input_scale",
            "mlp.gate_up_proj.weight",
            "it is BF16, other parts of layers.1.mlp.gate_up_proj.weight use F32",
        ),
        (
            "llama-fp8-static",
            "self_attn.k_proj.weight",  # that has no input_scale
            "self_attn.qkv_proj.weight",
            "it has no input_scale, other parts of layers.1.self_attn.qkv_proj.weight have one",
        ),
    ],
)
def test_parts_that_are_quantised_unlike_are_decoded_and_that_is_said(
    preset: str, odd: str, param: str, says: str, tiny: Tiny, tmp_path: Path
) -> None:
    tensors = read_all(tiny(preset))
    name = f"model.layers.1.{odd}"
    if odd.endswith("scale") or odd.endswith("scales"):
        tensors[name] = tensors[name].bfloat16()
    else:
        del tensors[name.replace("weight", "input_scale")]
    path = write(tensors, tiny(preset), tmp_path / "odd")
    (found,) = prove(planned(path)).findings
    assert (found.code, found.severity, found.tensor) == ("parts-differ", "warning", name)
    assert found.param == f"layers.1.{param}"
    assert found.message == f"{says}; layers.1.{param} is dequantised to BF16"
    stem = f"layers.1.{param}".removesuffix("weight")
    assert specs(planned(path), stem) == {f"layers.1.{param}": "BF16"}
    assert_loads_as_the_reference(path, ParallelLayout(1, 2))


def test_which_of_two_unlike_parts_is_odd_is_told_by_the_layers_where_both_are_alike(
    tiny: Tiny, tmp_path: Path
) -> None:
    tensors = read_all(tiny("llama-fp8-static"))
    names = [f"model.layers.{layer}.mlp.gate_proj.weight_scale" for layer in range(3)]
    tensors |= {name: tensors[name].bfloat16() for name in names}
    path = write(tensors, tiny("llama-fp8-static"), tmp_path / "odd")
    assert [f.tensor for f in prove(planned(path)).findings] == names


def test_a_row_parallel_weight_is_decoded_by_the_groups_of_the_whole(tmp_path: Path) -> None:
    """gate and up of experts that differ make w13 plain; the down of one expert makes all of w2 plain."""
    for preset in ("qwen3-moe-awq", "qwen3-moe-gptq", "qwen3-moe-w4a16", "qwen3-moe-nvfp4", "qwen3-moe-fp8"):
        write_tiny(PRESETS[preset], tmp_path / preset, overrides={"moe_intermediate_size": 96})
        odd = {"model.layers.1.mlp.experts.3.down_proj": (128, 96)}
        path = plain(tmp_path / preset, tmp_path / f"{preset}-mixed", odd)
        plan = planned(path)
        assert codes(plan) == {("format-contradiction", "warning"): 1}
        assert specs(plan, "layers.1.mlp.experts.w2") == {"layers.1.mlp.experts.w2_weight": "BF16"}
        assert len(specs(plan, "layers.1.mlp.experts.w13")) > 1
        assert len(specs(plan, "layers.2.mlp.experts.w2")) > 1
        assert_loads_as_the_reference(path, ParallelLayout(2, 2, data_parallel_size=2))  # 24 of 96 inputs a rank
        assert_loads_as_the_reference(path, ParallelLayout(1, 4, True))


@pytest.mark.parametrize(("preset", "hidden"), [("glm-4.5-air-awq", 128), ("glm-5.1-fp8", 320), ("deepseek-v3", 320)])
def test_an_mtp_layer_may_be_plain_in_a_quantised_checkpoint(
    preset: str, hidden: int, tiny: Tiny, tmp_path: Path
) -> None:
    stored = read_all(tiny(preset))
    config = json.loads((tiny(preset) / "config.json").read_text())
    layer = f"model.layers.{config['num_hidden_layers']}"
    shapes = _shapes(stored, layer)
    path = plain(tiny(preset), tmp_path / "plain", shapes)
    plan = planned(path, drafts=1)
    assert set(codes(plan)) == {("format-contradiction", "warning")}
    assert all(layer in (f.tensor or "") for f in prove(plan).findings)
    assert set(specs(plan, "mtp.0.").values()) <= {"BF16", "F32"}
    assert_loads_as_the_reference(path, ParallelLayout(2, 2, num_draft_layers=1))
    ignored = {**config["quantization_config"], "modules_to_not_convert": [layer, "lm_head"]}
    if preset != "glm-5.1-fp8":  # whose own list names what else is plain
        said = plain(tiny(preset), tmp_path / "said", shapes, quantization_config=ignored)
        assert codes(planned(said, drafts=1)) == {}


def _shapes(stored: dict[str, torch.Tensor], layer: str) -> dict[str, tuple[int, int]]:
    """Every quantised module of a layer and its shape (out, in)."""
    shapes = {}
    for name, tensor in stored.items():
        module, _, suffix = name.rpartition(".")
        if name.startswith(layer + ".") and suffix == "qweight":
            shapes[module] = (tensor.shape[1] * 8, tensor.shape[0])
        elif name.startswith(layer + ".") and f"{name}_scale_inv" in stored:
            shapes[module] = (tensor.shape[0], tensor.shape[1])
    return shapes


@pytest.mark.parametrize("format_", FORMATS)
def test_a_quantised_head_is_loaded_as_it_is_stored(format_: str, tmp_path: Path) -> None:
    write_tiny(PRESETS[f"llama-{format_}"], tmp_path / "model", overrides={"intermediate_size": 320})
    path = with_quantised_head(tmp_path / "model", tmp_path / "head")
    plan = planned(path)
    said = ("awq", "gptq", "fp8-static")  # the others' configs leave the head out
    assert codes(plan) == ({} if format_.startswith(said) else {("format-contradiction", "warning"): 1})
    assert len(specs(plan, "lm_head.")) > 1
    for layout in (ParallelLayout(), ParallelLayout(2, 2), ParallelLayout(1, 4)):
        assert_loads_as_the_reference(path, layout)


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "glm-4.5-air-awq", "glm-4.5-air-w4a16", "glm-4.5-air-fp8-channel"])
def test_a_draft_shares_the_models_quantised_head(preset: str, tmp_path: Path) -> None:
    write_tiny(PRESETS[preset], tmp_path / "model", overrides={"intermediate_size": 320})
    stored = read_all(tmp_path / "model")
    own = [n for n in stored if ".layers.4." in n and (".embed_tokens." in n or ".shared_head.head." in n)]
    if preset != "glm-5.1-fp8":
        assert own
    for name in own:
        del stored[name]
    shared = write(stored, tmp_path / "model", tmp_path / "shared")
    path = with_quantised_head(shared, tmp_path / "head")
    one = planned(path, drafts=1).rank(0)
    aliases = {s.name: s.alias for s in one.specs if s.name.startswith("mtp.0.shared_head.head.")}
    assert aliases
    assert all(alias == name.replace("mtp.0.shared_head.head.", "lm_head.") for name, alias in aliases.items())
    assert_loads_as_the_reference(path, ParallelLayout(num_draft_layers=1))
    assert_loads_as_the_reference(path, ParallelLayout(2, 2, num_draft_layers=1))


def with_quantised_head(path: Path, out: Path) -> Path:
    """Write a checkpoint again whose head is the first layer's gate, which has as many rows as the vocabulary."""
    tensors = read_all(path)
    del tensors["lm_head.weight"]
    gate = "model.layers.0.mlp.gate_proj."
    tensors.update({n.replace(gate, "lm_head."): t.clone() for n, t in tensors.items() if n.startswith(gate)})
    return write(tensors, path, out)


def test_block_scales_of_compressed_tensors_may_be_bf16(tiny: Tiny, tmp_path: Path) -> None:
    """Its tools make scales in the dtype of the weights that they quantise."""
    source = tiny("llama-fp8-blocks")
    tensors = {n: t.bfloat16() if n.endswith("weight_scale") else t for n, t in read_all(source).items()}
    path = write(tensors, source, tmp_path / "bf16")
    assert codes(planned(path)) == {}
    assert_loads_as_the_reference(path, ParallelLayout(1, 4))


@pytest.mark.parametrize("format_", ["fp8-static", "nvfp4", "modelopt-fp4", "fp8-channel"])
def test_a_stack_of_experts_has_the_scales_that_experts_stored_one_by_one_have(format_: str, tmp_path: Path) -> None:
    """One number an expert and part, ``[experts, parts]``, whether a stack stores them as ``[experts]`` or a column."""
    preset = replace(PRESETS["granite-moe"], format=format_)
    write_tiny(preset, tmp_path / "stacks")
    plan = planned(tmp_path / "stacks")
    assert codes(plan) == {}
    scales = ("weight_scale", "input_scale", "weight_scale_2", "weight_global_scale", "input_global_scale")
    shapes = {s.name: s.shape for s in plan.rank(0).specs if s.name.startswith("layers.1.mlp.experts.w")}
    numbers = {n: s for n, s in shapes.items() if n.endswith(scales) and len(s) == 2}
    num_experts = plan.config["num_local_experts"]
    assert set(numbers.values()) == {(num_experts, 1), (num_experts, 2)}
    for layout in (ParallelLayout(2, 2), ParallelLayout(1, 2, True, data_parallel_size=2), ParallelLayout(1, 4, True)):
        assert_loads_as_the_reference(tmp_path / "stacks", layout)
    tensors = read_all(tmp_path / "stacks")
    columns = {n: t[:, None] if n.endswith(scales) and t.ndim == 1 and len(t) > 1 else t for n, t in tensors.items()}
    again = planned(write(columns, tmp_path / "stacks", tmp_path / "columns"))
    assert codes(again) == {}
    assert again.rank(0).specs == plan.rank(0).specs


def test_groups_in_the_order_of_activations_are_kept_whole(tiny: Tiny, tmp_path: Path) -> None:
    """The inputs that a rank holds belong to groups all over the weight: ``actorder: group`` of compressed-tensors."""
    source = tiny("llama-w4a16")
    tensors = read_all(source)
    random = torch.Generator().manual_seed(5)
    for name in [n for n in tensors if n.endswith("weight_packed")]:
        columns = tensors[name].shape[1] * 8
        index = (torch.arange(columns) // 32)[torch.randperm(columns, generator=random)]
        tensors[name.replace("packed", "g_idx")] = index.int()
    quantisation = json.loads((source / "config.json").read_text())["quantization_config"]
    quantisation["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    path = write(tensors, source, tmp_path / "ordered", quantization_config=quantisation)
    plan = build_plan(open_checkpoint(path), ParallelLayout(1, 4))
    down = next(s for s in plan.rank(1).specs if s.name == "layers.0.mlp.down_proj.weight_scale")
    assert down.shape == (128, 256 // 32)
    assert_loads_as_the_reference(path, ParallelLayout(1, 4))
    odd = plain(path, tmp_path / "odd", {"model.layers.1.mlp.up_proj": (256, 128)}, quantization_config=quantisation)
    assert_loads_as_the_reference(odd, ParallelLayout(2, 2))


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_the_grid_says_which_group_each_input_of_a_row_cut_belongs_to(in_order: bool, tp: int, tiny: Tiny) -> None:
    """By its formula where groups lie in order, and by ``g_idx``, which counts the groups of the whole, in any case."""
    path = tiny("llama-gptq" if in_order else "llama-gptq-act-order")
    whole = read_all(path)["model.layers.1.mlp.down_proj.scales"]
    index = read_all(path)["model.layers.1.mlp.down_proj.g_idx"]
    plan = prove(build_plan(open_checkpoint(path), ParallelLayout(1, tp))).require_proven()
    for rank in range(tp):
        loaded = load_rank(plan, rank).tensors
        spec = next(s for s in plan.rank(rank).specs if s.name == "layers.1.mlp.down_proj.qweight")
        (grid,) = spec.grids
        scales, of_each = (loaded[f"layers.1.mlp.down_proj.{name}"] for name in ("scales", "g_idx"))
        inputs = torch.arange(len(index) // tp)
        expected = whole[index[rank * len(inputs) : (rank + 1) * len(inputs)].long()]
        assert torch.equal(scales[(of_each - grid.first[1]).long()], expected)
        if in_order:
            assert torch.equal(scales[(inputs + grid.phase[1]) // grid.block[1]], expected)
        else:
            assert (grid.first[1], grid.phase[1]) == (0, rank * len(inputs))  # all groups are held


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "fp8 by channel"])
@pytest.mark.parametrize("prefix", ["language_model.", ""])
def test_llama_4_may_store_its_experts_one_by_one(prefix: str, quantised: bool, tiny: Tiny, tmp_path: Path) -> None:
    """As its quantised copies do, which leave everything else as it is."""
    source = tiny("llama-4")
    tensors = {n.replace("language_model.", prefix): t for n, t in read_all(source).items()}
    for name in [n for n in tensors if ".experts." in n]:
        stack = tensors.pop(name).transpose(1, 2)
        parts = stack.chunk(2, 1) if "gate_up" in name else (stack,)
        names = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
        for part, module in zip(parts, names, strict=True):
            for e, weight in enumerate(part):
                base = f"{name.rpartition('.')[0]}.{e}.{module}."
                tensors[base + "weight"] = (weight.to(torch.float8_e4m3fn) if quantised else weight).contiguous()
                if quantised:
                    tensors[base + "weight_scale"] = weight.abs().amax(1, keepdim=True)
    config = PRESETS["llama-fp8-channel"].config_of(tiny=True)["quantization_config"]
    config = {
        **config,
        "ignore": ["re:.*self_attn.*", "re:.*shared_expert.*", r"re:.*feed_forward\.(gate|up|down)_proj"],
    }
    config["ignore"] += ["re:.*lm_head"]
    path = write(tensors, source, tmp_path / "experts", **({"quantization_config": config} if quantised else {}))
    assert codes(planned(path)) == {}
    assert_loads_as_the_reference(path, ParallelLayout(2, 2))
    assert_loads_as_the_reference(path, ParallelLayout(1, 2, True, data_parallel_size=2))
