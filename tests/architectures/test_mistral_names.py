"""Dense models in Mistral's own names, whose queries and keys are stored pair by pair, beside the same in transformers' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loadmaster.architectures.llama import FAMILY, read_model
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.params import as_config
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.plan.explanation.params import explain_param
from loadmaster.testing import check_loading, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 160,
    "torch_dtype": "bfloat16",
}
PARAMS: dict[str, Any] = {
    "dim": 64,
    "hidden_dim": 96,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 32,
    "norm_eps": 1e-5,
    "vocab_size": 160,
    "rope_theta": 1000000.0,
}
NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn": "attention",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "mlp": "feed_forward",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Transformers' names and Mistral's, by ``convert_mistral_weights_to_hf.py``."""


class Heads:
    """What transformers' ``PermuteForRope`` reads of a config."""

    def __init__(self, num_heads: int) -> None:
        self.num_attention_heads = num_heads


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Mistral as transformers saves it, and the same in Mistral's own form, permuted by transformers."""
    from transformers import MistralConfig, MistralForCausalLM  # seconds, which other test processes need not wait
    from transformers.core_model_loading import PermuteForRope

    folder = tmp_path_factory.mktemp("mistral")
    torch.manual_seed(7)
    MistralForCausalLM(MistralConfig(**CONFIG)).to(torch.bfloat16).save_pretrained(folder / "hf")
    tensors: dict[str, torch.Tensor] = {}
    back = PermuteForRope(inverse=True)
    for name, tensor in load_file(folder / "hf" / "model.safetensors").items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        mine = back._permute_for_rope(tensor, Heads(heads)) if heads else tensor
        for theirs, own in NAMES.items():
            name = f".{name}.".replace(f".{theirs}.", f".{own}.").strip(".")
        tensors[name] = mine.contiguous()
    (folder / "own").mkdir()
    save_file(tensors, folder / "own" / "consolidated.safetensors", metadata={"format": "pt"})
    (folder / "own" / "params.json").write_text(json.dumps(PARAMS))
    return folder / "hf", folder / "own"


@pytest.mark.parametrize("layout", [ParallelLayout(), ParallelLayout(2, 2), ParallelLayout(1, 4)], ids=str)
def test_both_forms_become_the_same_parameters(layout: ParallelLayout, both: tuple[Path, Path]) -> None:
    """Heads are 32 rows; at tp 4 each rank has one of the 4 heads of queries, and shares one of the 2 of keys."""
    hf, own = (prove(build_plan(open_checkpoint(path), layout)).require_proven() for path in both)
    for rank in range(hf.num_ranks):
        of_hf, of_own = load_rank(hf, rank).tensors, load_rank(own, rank).tensors
        assert of_hf.keys() == of_own.keys()
        assert all(torch.equal(of_hf[name], of_own[name]) for name in of_hf)


def test_queries_are_stored_otherwise_and_only_they_and_keys_are_reordered(both: tuple[Path, Path]) -> None:
    hf, own = (load_file(next(path.glob("*.safetensors"))) for path in both)
    assert not torch.equal(hf["model.layers.0.self_attn.q_proj.weight"], own["layers.0.attention.wq.weight"])
    plan = build_plan(open_checkpoint(both[1]), ParallelLayout(1, 2))
    told = explain_param(plan, "layers.1.self_attn.qkv_proj.weight")
    assert told is not None
    assert [piece.operation for piece in told.shares[0].pieces] == ["permute", "permute", "copy"]
    assert told.shares[1].pieces[1].expression == "Reorder(layers.1.attention.wk.weight[32:64, :], dim=0, 16x2)"


def test_every_rank_gets_its_rows_and_their_factors(tmp_path: Path) -> None:
    """FP8 with a factor for each row, which changes places with it, and with one for the tensor, which does not."""
    layouts = [ParallelLayout(2, 2), ParallelLayout(1, 4)]
    for number, strategy in enumerate(("channel", "tensor")):
        weights = {"type": "float", "num_bits": 8, "strategy": strategy, "symmetric": True, "dynamic": False}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        quantised = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head", "output"],
            "config_groups": {"group_0": group},
        }
        config = CONFIG | {"quantization_config": quantised}
        assert check_loading(FAMILY, config, tmp_path / str(number), layouts=layouts) > 200


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(("head", "dtype"), [(64, "F8_E4M3"), (128, "F8_E4M3"), (192, "BF16")])
def test_heads_that_are_not_whole_in_a_block_are_decoded(head: int, dtype: str, tmp_path: Path) -> None:
    """Rows of one head of 192 would come from two blocks of 128, so that no factor holds for the rows of a block."""
    config = CONFIG | {"quantization_config": FP8, "head_dim": head, "num_attention_heads": 2, "hidden_size": 128}
    checkpoint = write_checkpoint(FAMILY, config, tmp_path / "m", spelling=1)
    plan = prove(build_plan(checkpoint)).require_proven()
    specs = {s.name: s for s in plan.rank(0).specs}
    qkv = specs["layers.0.self_attn.qkv_proj.weight"]
    assert (qkv.dtype, specs["layers.0.self_attn.o_proj.weight"].dtype) == (dtype, "F8_E4M3")
    stored = {name: t for file in (tmp_path / "m").glob("*.safetensors") for name, t in load_file(file).items()}
    loaded = load_rank(plan, 0).tensors
    assert torch.equal(values(loaded, "layers.0.self_attn.qkv_proj")[: 2 * head], expected(stored, "wq", 2, head))


def values(loaded: Any, name: str) -> torch.Tensor:
    """The values of a weight in BF16, decoded by its factors where it has some."""
    weight = loaded[f"{name}.weight"]
    return weight if weight.dtype == torch.bfloat16 else dequantised(weight, loaded[f"{name}.weight_scale_inv"])


def dequantised(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    factors = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    return (weight.float() * factors).to(torch.bfloat16)


def expected(stored: Any, name: str, heads: int, head: int) -> torch.Tensor:
    """A stored weight decoded, then permuted by transformers."""
    from transformers.core_model_loading import PermuteForRope

    module = f"layers.0.attention.{name}"
    plain = dequantised(stored[f"{module}.weight"], stored[f"{module}.weight_scale_inv"])
    return PermuteForRope()._permute_for_rope(plain, Heads(heads))


def test_blocks_that_cross_heads_are_refused_for_an_engine_that_decodes_nothing(tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": FP8, "head_dim": 192, "num_attention_heads": 2, "hidden_size": 128}
    checkpoint = write_checkpoint(FAMILY, config, tmp_path / "m", spelling=1)
    with pytest.raises(UnsupportedError, match=r"qkv_proj\.weight: parts of which only some are quantised"):
        build_plan(checkpoint, target="vllm-0.33")


def test_heads_of_an_odd_number_of_rows_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(FAMILY, CONFIG | {"head_dim": 15}, tmp_path / "m", spelling=1)
    with pytest.raises(
        ConfigError,
        match=r"heads of attn\.q have 15 rows, expected an even number: rotary embeddings turn pairs of rows",
    ):
        build_plan(checkpoint)


@pytest.mark.parametrize(
    ("pattern", "change", "expected"),
    [
        (r"layers\.1\.attention\.wq\.weight", lambda t: t[:-1], ("shape-mismatch", "layers.1.attention.wq.weight")),
        (r"layers\.3\.attention\.wk\.weight", None, ("tensor-missing", "layers.3.attention.wk.weight")),
        (
            r"layers\.2\.feed_forward\.w3\.weight",
            lambda t: t.char(),
            ("format-contradiction", "layers.2.feed_forward.w3.weight"),
        ),
    ],
)
def test_a_defect_is_found_under_its_name(pattern: str, change: Any, expected: Any, tmp_path: Path) -> None:
    write_checkpoint(FAMILY, CONFIG, tmp_path / "m", spelling=1)
    broken = DamagedCheckpoint(tmp_path / "m")
    if change is None:
        broken.drop(pattern)
    else:
        broken.change(pattern, change)
    findings = prove(build_plan(open_checkpoint(broken.path))).findings
    assert [(f.code, f.tensor) for f in findings if f.severity == "error"] == [expected]


def test_a_model_with_vision_is_found_and_its_tower_left_unread(both: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(both[1] / "consolidated.safetensors")
    tensors["vision_encoder.patch_conv.weight"] = torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"vision_encoder": {"hidden_size": 4}}))
    proof = prove(build_plan(open_checkpoint(tmp_path)))
    assert proof.proven and proof.plan.family.name == "llama inside PixtralForConditionalGeneration"
    towers = prove(build_plan(open_checkpoint(tmp_path), ParallelLayout(multimodal=True)))
    assert any("vision_encoder" in s.name for s in towers.plan.rank(0).specs)


def test_what_params_json_says_of_positions_and_windows_is_read() -> None:
    yarn = {"factor": 16, "original_max_position_embeddings": 16384, "beta": 32, "alpha": 1, "apply_scale": False}
    config = config_of(PARAMS | {"yarn": yarn, "sliding_window": [4096, None]})
    model = read_model(find_family(config).describe(config))
    rope = model.attention.rope
    assert (rope.rope_type, rope.theta, rope.factor, rope.original_length) == ("yarn", 1e6, 16, 16384)
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (32, 1, 1)
    assert model.windows == (4096, None, 4096, None)


def test_a_scale_of_positions_that_is_not_computed_is_refused_only_to_be_run() -> None:
    config = config_of(PARAMS | {"llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16384}})
    described = find_family(config).describe(config)
    assert len(FAMILY.schema(described).layers) == 4
    with pytest.raises(UnsupportedError, match="llama_4_scaling"):
        read_model(described)


def config_of(params: dict[str, Any]) -> dict[str, Any]:
    config = as_config(params)
    assert config is not None
    return config
