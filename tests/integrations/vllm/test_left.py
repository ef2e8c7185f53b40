"""What direct writing leaves to vLLM's own loader: towers, and parameters that vLLM computes while it loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from loadmaster.audit.ranks import Rank, load
from loadmaster.errors import LoadError
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint
from tests.integrations.vllm.golden import told, write
from tests.integrations.vllm.test_direct import built, planned, put, reasons

INSTALLED = find_vllm()
DIRECT = {"model_loader_extra_config": {"direct": True}}
VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 128,
    "patch_size": 4,
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


@pytest.fixture(scope="module")
def with_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    with torch.device("meta"):
        tower = Qwen3_5VisionModel(Qwen3_5VisionConfig(**VISION))
    extra = {f"model.visual.{name}": ("BF16", tuple(t.shape)) for name, t in tower.state_dict().items()}
    path = tmp_path_factory.mktemp("tower")
    write_tiny(replace(PRESETS["qwen3.8"], extra=extra), path, overrides={"vision_config": VISION})
    return path


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(1, 2)), Rank((1, 2))], ids=str)
def test_a_language_model_is_written_directly_and_its_tower_streamed(rank: Rank, with_tower: Path) -> None:
    direct = load(with_tower, rank, **DIRECT).params
    assert "visual.pos_embed.weight" in direct
    assert told(direct) == told(load(with_tower, rank, load_format="auto").params)


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("preset", ["mimo-v2.5-pro", "mimo-v2.6-pro"])
def test_what_vllm_puts_into_another_order_is_streamed_as_its_own_loader_does(preset: str, tmp_path: Path) -> None:
    """vLLM pads, permutes or quantises anew the rows of MiMo-V2's packed q, k and v, as the number of ranks wants it."""
    path = write(preset, tmp_path)
    for rank in (Rank((1, 2)), Rank(tp=(1, 2), ep=True)):
        assert told(load(path, rank).params) == told(load(path, rank, load_format="auto").params)


@needs_0_33
@pytest.mark.vllm
def test_a_tower_that_is_not_all_stored_is_refused(with_tower: Path, tmp_path: Path) -> None:
    path = DamagedCheckpoint(Path(copytree(with_tower, tmp_path / "copy"))).drop(r"visual\.merger\.norm\.weight").path
    with pytest.raises(LoadError, match=r"1 parameter was not written(.|\n)*visual\.merger\.norm\.weight"):
        load(path, **DIRECT)
