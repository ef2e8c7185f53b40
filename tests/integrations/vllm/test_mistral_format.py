"""A model in Mistral's own names and config, written directly into vLLM, beside what vLLM's loader for this form makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file

from loadmaster.architectures.llama import FAMILY
from loadmaster.audit.ranks import Rank, load
from loadmaster.testing import write_checkpoint
from tests.architectures.test_mistral_names import CONFIG, PARAMS
from tests.integrations.vllm.test_left import DIRECT, needs_0_33

MISTRAL: dict[str, Any] = {"config_format": "mistral"}
PIXTRAL: Final = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1},
    **{"num_channels": 3, "image_size": 28, "patch_size": 14, "rope_theta": 1e4, "adapter_bias": True},
    **{"image_token_id": 10, "image_break_token_id": 12, "image_end_token_id": 13},
}


def tower(hidden: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a tower, and of what adapts its output to the hidden size."""
    block = "vision_encoder.transformer.layers.0."
    shapes = {
        "vision_encoder.patch_conv.weight": (64, 3, 14, 14),
        "vision_encoder.ln_pre.weight": (64,),
        **{f"{block}attention.{name}.weight": (64, 64) for name in ("wq", "wk", "wv", "wo")},
        **{f"{block}feed_forward.{name}.weight": (64, 64) for name in ("w1", "w2", "w3")},
        **{f"{block}{name}.weight": (64,) for name in ("attention_norm", "ffn_norm")},
        "vision_language_adapter.w_in.weight": (hidden, 64),
        "vision_language_adapter.w_out.weight": (hidden, hidden),
        **{f"vision_language_adapter.{name}.bias": (hidden,) for name in ("w_in", "w_out")},
    }
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def write(path: Path, *, has_tower: bool) -> None:
    write_checkpoint(FAMILY, CONFIG, path, spelling=1)
    files = sorted(path.glob("*.safetensors"))
    params = PARAMS
    if has_tower:
        params = {**PARAMS, "vision_encoder": PIXTRAL}
        files.append(path / "tower.safetensors")
        save_file(tower(PARAMS["dim"]), files[-1])
    for number, file in enumerate(files, 1):
        file.rename(path / f"consolidated-{number:05d}-of-{len(files):05d}.safetensors")
    (path / "model.safetensors.index.json").unlink()
    (path / "config.json").unlink()
    (path / "params.json").write_text(json.dumps(params))


def assert_equal(path: Path, rank: Rank, **engine: Any) -> set[str]:
    own = load(path, rank, load_format="mistral", **MISTRAL, **engine).params
    direct = load(path, rank, **DIRECT, **MISTRAL, **engine).params
    assert own.keys() == direct.keys()
    assert all(torch.equal(own[name], direct[name]) for name in own)
    return set(own)


@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank(), Rank((1, 2), (0, 2)), Rank(tp=(3, 4))], ids=str)
def test_mistrals_own_form_is_written_as_vllms_loader_for_it_does(rank: Rank, tmp_path: Path) -> None:
    write(tmp_path, has_tower=False)
    assert_equal(tmp_path, rank)


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank((0, 2)), Rank((1, 2), (0, 2)), Rank(tp=(3, 4))], ids=str)
def test_so_is_the_language_model_of_a_pixtral_and_its_tower_is_streamed(rank: Rank, tmp_path: Path) -> None:
    write(tmp_path, has_tower=True)
    names = assert_equal(tmp_path, rank, skip_tokenizer_init=True)
    assert "vision_encoder.ln_pre.weight" in names
