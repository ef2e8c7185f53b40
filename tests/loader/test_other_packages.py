"""Checkpoints as MLX and bitsandbytes write them: what they decode, cut for the ranks, and defective ones.

``golden`` holds what `tools.format_goldens` made with the packages themselves. Where a format is decoded, the cuts are compared
with the reference loader, over a plain checkpoint of the values whose digests are the packages' own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError, LoadError, UnsupportedError
from loadmaster.findings import Finding
from loadmaster.kernels.dequantise import dequantise
from loadmaster.loader import Receiver, load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import Preset
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.expected import Expected
from loadmaster.torch_dtypes import TORCH
from tests.loader.reference import Arrays, Reference, differences, read_all
from tests.payload.inject import findings as verified

GOLDEN = Path(__file__).parent / "golden"
CASES = (
    "mlx-mixed",
    "mlx-moe",
    "mlx-mxfp4",
    "mlx-mxfp8",
    "mlx-nvfp4",
    "bitsandbytes-nf4",
    "bitsandbytes-fp4",
    "bitsandbytes-int8",
)
LAYOUTS = {
    "pp 2 tp 2": ParallelLayout(2, 2),
    "tp 4": ParallelLayout(1, 4),
    "tp 2 dp 2 ep": ParallelLayout(1, 2, data_parallel_size=2, enable_expert_parallel=True),
}
REFUSED = {
    ("mlx-mixed", "tp 4"): "attn.o (model.layers.{layer}.self_attn.o_proj.weight): 2 unit(s) of 32 (words of mlx5)"
}


def plan_of(path: Path, layout: ParallelLayout | None = None, target: str = "native-decoded") -> Plan:
    return build_plan(open_checkpoint(path), layout, target=target)


def found(path: Path) -> tuple[Finding, ...]:
    return prove(plan_of(path)).findings


def decoded(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The values of every encoded weight, whole, by its stored name."""
    plan, stored = plan_of(path), read_all(path)
    for bound in plan.all_classes:
        for item in bound.items:
            form = bound.forms[item.key][0]
            for row, layer in enumerate(bound.layers) if form.format else ():
                format_ = form.format.stacked() if item.stacked else form.format
                names = [item.stored_name(c.suffix, layer, None) for c in format_.components]
                dims = (item.component_dims(c) for c in format_.components)
                parts = [stored[n].reshape(d) for n, d in zip(names, dims, strict=True)]
                made = dequantise(format_, parts, item.shape, (0,) * len(item.shape))
                yield item.stored_name("weight", layer), made.to(TORCH[plan.dtype])
                assert bound.ids[f"{item.key}/weight"].shape[0] > row


def plain_copy(case: str, folder: Path) -> Path:
    """A checkpoint without quantisation, in the published names, that holds the decoded values."""
    config = json.loads((GOLDEN / case / "config.json").read_text())
    values = dict(decoded(GOLDEN / case))
    kept = {n: t for n, t in read_all(GOLDEN / case).items() if t.dtype in (torch.float32, torch.bfloat16)}
    kept = {n: t for n, t in kept.items() if not n.endswith((".scales", ".biases", ".SCB")) and ".weight." not in n}
    tensors: Arrays = {}
    for name, tensor in {**kept, **values}.items():
        if "switch_mlp" in name:
            tensors |= {name.replace("switch_mlp", f"experts.{e}"): t.clone() for e, t in enumerate(tensor)}
        else:
            tensors[name] = tensor.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    without = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    (folder / "config.json").write_text(json.dumps(without))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return {case: plain_copy(case, folder / case) for case in CASES}


@pytest.fixture
def damaged(tmp_path: Path) -> Any:
    def copy(case: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(Path(shutil.copytree(GOLDEN / case, tmp_path / case)))

    return copy


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        if key in config:
            config[key] |= changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES)
def test_decoded_values_have_the_digests_of_the_package(case: str) -> None:
    digests = json.loads((GOLDEN / case / "decoded.json").read_text())
    made = {n: hashlib.sha256(v.view(torch.uint8).numpy().tobytes()).hexdigest() for n, v in decoded(GOLDEN / case)}
    assert made == digests


@pytest.mark.parametrize(("case", "layout"), [(c, x) for c in CASES for x in LAYOUTS if "ep" not in x or "moe" in c])
def test_every_rank_holds_its_part_of_the_decoded_values(case: str, layout: str, plain: dict[str, Path]) -> None:
    if says := REFUSED.get((case, layout)):
        with pytest.raises(LayoutError) as error:
            plan_of(GOLDEN / case, LAYOUTS[layout])
        assert says in str(error.value)
        return
    proof = prove(plan_of(GOLDEN / case, LAYOUTS[layout]))
    assert proof.proven and not proof.findings
    stored = read_all(plain[case])
    for rank in range(proof.plan.num_ranks):
        expected = Reference.at(plain[case], LAYOUTS[layout], rank, stored)
        assert differences(load_rank(proof.require_proven(), rank, num_readers=1).tensors, expected.params) == []


@pytest.mark.parametrize("case", ["mlx-mixed", "mlx-moe", "mlx-mxfp4", "mlx-mxfp8", "mlx-nvfp4", "bitsandbytes-int8"])
def test_what_stays_encoded_is_cut_as_its_table_says(case: str) -> None:
    proof = prove(plan_of(GOLDEN / case, ParallelLayout(2, 2), "native"))
    assert proof.proven
    encoded = 0
    for rank in range(proof.plan.num_ranks):
        loaded = load_rank(proof.require_proven(), rank, num_readers=1).tensors
        for name, bits in Expected(proof.plan, rank, proof.plan.family.spelling).arrays().items():
            assert loaded[name].contiguous().view(torch.uint8).numpy().tobytes() == bits.tobytes(), name
            encoded += loaded[name].dtype in (torch.uint32, torch.int8)
    assert encoded >= 8


def test_a_pushed_checkpoint_is_decoded_as_a_read_one() -> None:
    plan = prove(plan_of(GOLDEN / "bitsandbytes-nf4", ParallelLayout(1, 2))).require_proven()
    receiver = Receiver(plan, 1)
    for name, tensor in reversed(read_all(GOLDEN / "bitsandbytes-nf4").items()):
        receiver.offer(name, tensor)
    assert differences(receiver.finish().tensors, load_rank(plan, 1).tensors) == []


def test_an_embedding_and_a_router_are_decoded_although_weights_stay_encoded() -> None:
    specs = {s.name: s for s in plan_of(GOLDEN / "mlx-moe", target="native").rank(0).specs}
    assert (specs["embed_tokens.weight"].dtype, specs["layers.0.mlp.gate.weight"].dtype) == ("F32", "F32")
    assert specs["lm_head.weight"].alias == "embed_tokens.weight"
    assert (specs["layers.0.self_attn.o_proj.weight"].format, specs["layers.0.self_attn.o_proj.weight"].shape) == (
        "mlx4",
        (64, 8),
    )


@pytest.mark.parametrize("case", CASES)
def test_sound_checkpoints_have_no_findings_in_their_values(case: str) -> None:
    odd = [f.tensor for f in verified(GOLDEN / case) if f.code != "parts-differ"]
    assert odd == []


def test_modules_of_other_bits_are_decoded_where_they_are_fused_with_others() -> None:
    noted = {(f.code, f.tensor) for f in prove(plan_of(GOLDEN / "mlx-mixed", target="native")).findings}
    fused = ["0.mlp.up_proj", "1.self_attn.v_proj", "1.mlp.up_proj"]  # in layer 0, q is plain
    assert noted == {("parts-differ", f"model.layers.{name}.weight") for name in fused}


@pytest.mark.parametrize("case", CASES)
def test_synth_describes_the_headers_that_the_package_writes(case: str) -> None:
    config = json.loads((GOLDEN / case / "config.json").read_text())
    preset = Preset(case, config, {}, num_shards=1)
    table = open_checkpoint(GOLDEN / case).table
    signatures = dict(zip(table.names, (table.signatures[n] for n in table.signature), strict=True))
    made = {e.name: e.signature for e in inventory(preset, config)}
    if case == "mlx-mixed":  # the config leaves open that this module is plain
        for name in ("scales", "biases"):
            del made[f"model.layers.0.self_attn.q_proj.{name}"]
        made["model.layers.0.self_attn.q_proj.weight"] = signatures["model.layers.0.self_attn.q_proj.weight"]
    if "bitsandbytes" in case:
        signatures = {n: s for n, s in signatures.items() if not n.endswith("weight_format")}
    texts = [n for n in made if "quant_state" in n]  # as long as its numbers have digits
    assert {n: s for n, s in made.items() if n not in texts} == {n: s for n, s in signatures.items() if n not in texts}
    assert {n for n in signatures if "quant_state" in n} == {*texts}


# Defects --------------------------------------------------------------------------------------------------------------

K_PROJ = "model.layers.1.self_attn.k_proj."


def test_factors_that_are_missing(damaged: Any) -> None:
    checkpoint = damaged("mlx-mxfp4")
    checkpoint.drop(r"layers\.1\.self_attn\.k_proj\.scales")
    [finding] = found(checkpoint.path)
    assert (finding.code, finding.tensor) == ("scale-missing", K_PROJ + "scales")


def test_factors_in_another_number_format_than_the_mode_has(damaged: Any) -> None:
    checkpoint = damaged("mlx-nvfp4")
    checkpoint.change(r"layers\.1\.self_attn\.k_proj\.scales", lambda t: t.view(torch.float8_e4m3fn).float())
    [finding] = found(checkpoint.path)
    assert (finding.code, finding.tensor) == ("dtype-inadmissible", K_PROJ + "scales")


def test_groups_of_another_size_than_the_config_says(damaged: Any) -> None:
    checkpoint = damaged("mlx-moe")
    checkpoint.change(r"layers\.1\.mlp\.gate\.scales", lambda t: t.repeat_interleave(2, 1))
    [finding] = found(checkpoint.path)
    assert (finding.code, finding.tensor) == ("shape-mismatch", "model.layers.1.mlp.gate.scales")
    assert "expected [4, 1] from the config, found [4, 2]" in finding.message


def test_bits_of_a_module_that_the_config_names_otherwise(damaged: Any) -> None:
    checkpoint = damaged("mlx-mixed")
    edit_config(
        checkpoint.path, **{K_PROJ[:-1]: {"group_size": 32, "bits": 8}, "model.layers.0.self_attn.v_proj": False}
    )
    contradictions = {f.tensor: f.message for f in found(checkpoint.path) if f.code == "format-contradiction"}
    assert contradictions == {
        K_PROJ + "weight": "config says mlx8 in groups of 32, file says U32; using the file",
        "model.layers.0.self_attn.v_proj.weight": "config says unquantised, file says U32; using the file",
    }


def test_a_block_of_factors_is_cut_off(damaged: Any) -> None:
    checkpoint = damaged("bitsandbytes-nf4")
    checkpoint.change(r"layers\.1\.self_attn\.k_proj\.weight\.absmax", lambda t: t[:-1])
    [finding] = found(checkpoint.path)
    assert (finding.code, finding.tensor) == ("shape-mismatch", K_PROJ + "weight.absmax")
    assert "expected [32] from the config, found [31]" in finding.message


def test_a_text_about_the_weight_is_missing(damaged: Any) -> None:
    checkpoint = damaged("bitsandbytes-fp4")
    checkpoint.drop(r"layers\.1\.self_attn\.k_proj\.weight\.quant_state.*")
    [finding] = found(checkpoint.path)
    assert (finding.code, finding.tensor) == ("scale-missing", K_PROJ + "weight.quant_state.bitsandbytes__fp4")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"blocksize": 64', '"blocksize": 32', "its quant_state says blocksize 32, and the headers 64"),
        ('"shape": [32, 64]', '"shape": [64, 32]', "its quant_state says shape [64, 32], and the headers [32, 64]"),
        ('{"quant', '["quant', "its quant_state is not JSON"),
        ('"nested_offset": 0.0', '"nested_offset":"0.', "its quant_state is not JSON"),
    ],
)
def test_a_text_that_contradicts_the_headers_is_found_by_verify_and_refused_by_a_load(
    old: str, new: str, says: str, damaged: Any
) -> None:
    checkpoint = damaged("bitsandbytes-nf4")
    name = K_PROJ + "weight.quant_state.bitsandbytes__nf4"

    def changed(text: torch.Tensor) -> torch.Tensor:
        made = bytes(text.tolist()).replace(old.encode(), new.encode())
        assert made != bytes(text.tolist())
        return torch.tensor(list(made), dtype=torch.uint8)

    checkpoint.change(name.replace(".", r"\."), changed)
    plan = prove(plan_of(checkpoint.path)).require_proven()
    [finding] = verified(checkpoint.path)
    assert (finding.code, finding.severity, finding.tensor) == ("value-contradicts", "error", name)
    assert says in finding.message
    with pytest.raises(LoadError) as error:
        load_rank(plan, 0, num_readers=1)
    assert f"rank 0: {K_PROJ}weight: {says}" in str(error.value)


def test_rows_that_are_not_whole_blocks(damaged: Any) -> None:
    checkpoint = damaged("bitsandbytes-fp4")
    config = json.loads((checkpoint.path / "config.json").read_text())
    (checkpoint.path / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    messages = {f.message for f in found(checkpoint.path) if "down_proj.weight" in str(f.tensor)}
    assert "its rows have 96 elements, and blocks of 64 (bitsandbytes_fp4) run on from row to row" in messages


def test_a_layout_other_than_rows_of_int8(damaged: Any) -> None:
    checkpoint = damaged("bitsandbytes-int8")
    checkpoint.change(r"layers\.1\.self_attn\.k_proj\.weight_format", lambda t: t + 2)
    [finding] = verified(checkpoint.path)
    assert (finding.code, finding.tensor) == ("value-not-zero", K_PROJ + "weight_format")


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("mlx-mixed", {"mode": "nvfp4"}, "MLX's mode 'nvfp4' with 4 bits in groups of 64 is not supported"),
        ("mlx-mixed", {"mode": ["nvfp4"]}, "MLX's mode ['nvfp4'] with 4 bits in groups of 64 is not supported"),
        ("mlx-mixed", {"bits": 7}, "with 7 bits in groups of 64 is not supported"),
        ("mlx-mixed", {"lm_head": {"bits": True}}, "lm_head: MLX's mode 'affine' with True bits"),
        ("bitsandbytes-nf4", {"bnb_4bit_quant_storage": "bfloat16"}, "stored as 'bfloat16', is not supported"),
        ("bitsandbytes-nf4", {"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type 'af4'"),
    ],
)
def test_settings_that_are_not_supported(case: str, changes: dict[str, Any], says: str, damaged: Any) -> None:
    checkpoint = damaged(case)
    edit_config(checkpoint.path, **changes)
    with pytest.raises(UnsupportedError) as error:
        plan_of(checkpoint.path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("mlx-moe", "model.embed_tokens.weight: mlx4, which"),
        ("bitsandbytes-nf4", "qkv_proj.weight: bitsandbytes_nf4, which"),
        ("bitsandbytes-int8", "qkv_proj.weight: bitsandbytes_int8 with SCB, which"),
    ],
)
def test_vllm_is_not_given_these_formats(case: str, says: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        plan_of(GOLDEN / case, target="vllm-0.33")
    assert says in str(error.value)


def test_an_architecture_whose_values_mlx_changes(damaged: Any) -> None:
    checkpoint = damaged("mlx-moe")
    config = json.loads((checkpoint.path / "config.json").read_text())
    (checkpoint.path / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3NextForCausalLM"]}))
    with pytest.raises(UnsupportedError) as error:
        plan_of(checkpoint.path)
    assert "Qwen3NextForCausalLM was converted to MLX" in str(error.value)
