"""Models around language models, as transformers saves them: vLLM 0.33 is given towers, and the rest is written directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.targets import VLLM
from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.integrations.vllm.direct import Unfit, check_fit
from loadmaster.plan import build_plan
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.test_wrappers import NO_HEAD, TEXTS
from tests.integrations.vllm.golden import told
from tests.integrations.vllm.test_direct import configs
from tests.integrations.vllm.test_left import DIRECT, needs_0_33

QWEN: dict[str, Any] = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128}
INTERN: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
    **{"image_size": [28, 28], "patch_size": [14, 14]},
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
SAVED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "Qwen2_5_VLForConditionalGeneration": (
        QWEN,
        {"model_type": "qwen2_5_vl_text", "rope_parameters": ROPE},
        "visual.patch_embed.proj.weight",
    ),
    "InternVLForConditionalGeneration": (INTERN, {"model_type": "qwen2"}, "multi_modal_projector.linear_1.weight"),
    "SmolVLMForConditionalGeneration": (
        {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 28}
        | {"patch_size": 14},
        {"model_type": "llama"},
        "model.connector.modality_projection.proj.weight",
    ),
}
"""Architecture → configs of its tower and its language model, and a parameter outside the language model."""

DIVIDED = ("Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration")
"""Those that vLLM divides into stages."""


def saved(architecture: str, path: Path) -> Path:
    """Let transformers save a tiny model."""
    import transformers

    vision, text, _ = SAVED[architecture]
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(vision_config=vision, text_config={**NO_HEAD, **text}, dtype="bfloat16")
    torch.manual_seed(1)
    model_class(config).to(torch.bfloat16).save_pretrained(path)
    return path


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("architecture", "rank"),
    [*((name, Rank(tp=(1, 2))) for name in SAVED), *((name, Rank((1, 2))) for name in DIVIDED)],
)
def test_a_language_model_is_written_directly_and_its_tower_streamed(
    architecture: str, rank: Rank, tmp_path: Path
) -> None:
    path = saved(architecture, tmp_path / "tiny")
    own = load(path, rank, load_format="auto", skip_tokenizer_init=True).params
    direct = load(path, rank, skip_tokenizer_init=True, **DIRECT).params
    assert SAVED[architecture][2] in own
    assert told(direct) == told(own)


def test_around_another_language_model_that_is_not_described_nothing_is(tmp_path: Path) -> None:
    text = {"architectures": ["QWenLMHeadModel"], **NO_HEAD}
    config = {"architectures": ["LlavaForConditionalGeneration"], "dtype": "bfloat16", "text_config": text}
    checkpoint = write_checkpoint(find_family(config), config, tmp_path / "tiny")
    said = r"LlavaForConditionalGeneration is not described for vllm-0\.33: QWenLMHeadModel is not"
    with pytest.raises(UnsupportedError, match=said):
        build_plan(checkpoint, target="vllm-0.33")
    with pytest.raises(UnsupportedError, match=r"LlavaForConditionalGeneration is not described for vllm-0\.32\n"):
        build_plan(checkpoint, target="vllm-0.32")


def test_a_model_around_one_that_is_not_known_is_streamed(tmp_path: Path) -> None:
    text = {"architectures": ["LlamaForCausalLM"], **NO_HEAD}
    config = {"architectures": ["LlavaForConditionalGeneration"], "dtype": "bfloat16", "text_config": text}
    write_checkpoint(find_family(config), config, tmp_path / "tiny")
    of_another = {**config, "text_config": {"architectures": ["GPT9ForCausalLM"], **NO_HEAD}}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(of_another))
    checkpoint, whole = open_checkpoint(tmp_path / "tiny"), configs(architectures=config["architectures"])
    with pytest.raises(Unfit, match="the language model of LlavaForConditionalGeneration is 'GPT9ForCausalLM'"):
        check_fit(*whole, checkpoint, type("LlavaForConditionalGeneration", (), {}), "0.33.0")


def test_the_row_of_a_model_around_another_is_that_of_the_language_model() -> None:
    text = {"model_type": TEXTS["Glm4vMoeForConditionalGeneration"][0], **TEXTS["Glm4vMoeForConditionalGeneration"][1]}
    family = find_family({"architectures": ["Glm4vMoeForConditionalGeneration"], "text_config": text})
    version = VLLM["vllm-0.33"]
    around, inside = version.find(family, family.architectures[0]), version.described["Glm4MoeForCausalLM"]
    assert around is not None
    assert (around.classes, around.within, around.drafts) == (family.architectures, "language_model.", ())
    assert (around.modules, around.keep, around.obstacle) == (inside.modules, inside.keep, inside.obstacle)
