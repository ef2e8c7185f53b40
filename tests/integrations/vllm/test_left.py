"""What direct writing leaves to vLLM's own loader: towers, and parameters that vLLM computes while it loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loadmaster.audit.ranks import Rank, load
from loadmaster.errors import LoadError
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint
from tests.integrations.vllm.golden import told
from tests.integrations.vllm.test_direct import built, planned, put, reasons

INSTALLED = find_vllm()
DIRECT = {"model_loader_extra_config": {"direct": True}}
QWEN = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 128,
    "patch_size": 4,
}
GEMMA = {
    "model_type": "gemma4_vision",
    "head_dim": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "position_embedding_size": 16,
}

needs_0_33 = pytest.mark.skipif(
    INSTALLED is None or INSTALLED.target == "vllm-0.32", reason="described for vLLM 0.33: make test-vllm-cuda"
)


def test_parameters_that_vllm_computes_are_planned_and_their_tensors_left(tiny: Tiny) -> None:
    """Layers 0 and 4 are Mamba-2: vLLM holds -exp(A_log)."""
    made = planned(tiny("nemotron-3-super"))
    names = made.plan.checkpoint.table.names
    assert made.computed == {"model.layers.0.mixer.A", "model.layers.4.mixer.A"}
    assert [names[i] for i in made.left(built(made))] == [f"backbone.layers.{i}.mixer.A_log" for i in (0, 4)]
    assert planned(tiny("qwen3-next")).computed == set()


def test_towers_are_left_where_the_model_has_any(tiny: Tiny) -> None:
    made, stored = planned(tiny("qwen3.8")), "model.visual.pos_embed.weight"
    model = built(made)
    assert made.left(model) == []
    put(model, "visual.pos_embed.weight", torch.nn.Parameter(torch.empty(1)))
    assert reasons(made, model) == []
    assert [made.plan.checkpoint.table.names[i] for i in made.left(model)] == [stored]
    put(model, "language_model.model.extra", torch.nn.Parameter(torch.empty(1)))
    assert reasons(made, model) == ["language_model.model.extra is not in the plan"]


def of_qwen() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a tower, by stored name."""
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    tower = Qwen3_5VisionModel(Qwen3_5VisionConfig(**QWEN))
    return {f"model.visual.{name}": tuple(t.shape) for name, t in tower.state_dict().items()}


def of_gemma() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a tower, and what projects its output, by stored name."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

    tower = Gemma4VisionModel(Gemma4VisionConfig(**GEMMA))
    stored = {f"model.vision_tower.{name}": tuple(t.shape) for name, t in tower.state_dict().items()}
    return {**stored, "model.embed_vision.embedding_projection.weight": (96, 64)}


def with_tower(preset: str, path: Path) -> Path:
    tensors, vision = (of_qwen, QWEN) if preset == "qwen3.8" else (of_gemma, GEMMA)
    with torch.device("meta"):
        extra = {name: ("BF16", shape) for name, shape in tensors().items()}
    write_tiny(replace(PRESETS[preset], extra=extra), path, overrides={"vision_config": vision})
    return path


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("preset", "rank", "of_tower"),
    [
        ("qwen3.8", Rank(), "visual.pos_embed.weight"),
        ("qwen3.8", Rank(tp=(1, 2)), "visual.pos_embed.weight"),
        ("qwen3.8", Rank((1, 2)), "visual.pos_embed.weight"),
        ("gemma-4-26b-a4b", Rank(tp=(1, 2)), "embed_vision.embedding_projection.weight"),
    ],
    ids=str,
)
def test_a_language_model_is_written_directly_and_its_tower_streamed(
    preset: str, rank: Rank, of_tower: str, tmp_path: Path
) -> None:
    path = with_tower(preset, tmp_path)
    direct = load(path, rank, **DIRECT).params
    assert of_tower in direct
    assert told(direct) == told(load(path, rank, load_format="auto").params)


@needs_0_33
@pytest.mark.vllm
def test_a_tower_that_is_not_all_stored_is_refused(tmp_path: Path) -> None:
    path = DamagedCheckpoint(with_tower("qwen3.8", tmp_path)).drop(r"visual\.merger\.norm\.weight").path
    with pytest.raises(LoadError, match=r"1 parameter was not written(.|\n)*visual\.merger\.norm\.weight"):
        load(path, **DIRECT)
