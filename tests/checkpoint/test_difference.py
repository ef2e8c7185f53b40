"""Two checkpoints compared: every change is found, named once, and grouped by layers and experts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.difference import CheckpointDifference, compare_checkpoints
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint


def compare(before: Path, after: Path) -> CheckpointDifference:
    return compare_checkpoints(open_checkpoint(before), open_checkpoint(after))


def test_a_copy_is_equal(tiny: Tiny, tiny_copy: Tiny) -> None:
    assert compare(tiny("qwen3"), tiny_copy("qwen3")).is_equal


def test_tensors_that_change_alike_in_several_layers_are_one_group(tiny: Tiny, tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).copy(r"([12])\.self_attn\.o_proj", r"\1.self_attn.z_proj")
    (group,) = compare(tiny("qwen3"), path).tensors
    assert (group.change, group.pattern) == ("gained", "model.layers.1-2.self_attn.z_proj.weight")
    assert (group.num_tensors, group.before, group.first) == (2, None, "model.layers.1.self_attn.z_proj.weight")
    table = open_checkpoint(path).table
    assert group.after_bytes == sum(int(table.nbytes[i]) for n, i in table.ids.items() if "z_proj" in n)
    (back,) = compare(path, tiny("qwen3")).tensors
    assert (back.change, back.before_bytes, back.after_bytes) == ("lost", group.after_bytes, 0)


def test_another_model_of_the_family_shows_types_and_shapes(tiny: Tiny) -> None:
    found = compare(tiny("qwen3-moe"), tiny("qwen3-moe-fp8"))
    changes = {group.change for group in found.tensors}
    assert {"retyped", "gained"} <= changes
    experts = next(g for g in found.tensors if ".experts." in g.pattern and g.change == "retyped")
    assert experts.pattern.startswith("model.layers.0-3.mlp.experts.0-7.")
    assert experts.num_tensors == 4 * 8
    assert experts.before is not None
    assert experts.after is not None
    assert (experts.before.dtype, experts.after.dtype) == ("BF16", "F8_E4M3")
    assert len(found.tensors) < 40


def test_config_keys_are_compared_inside_objects(tiny: Tiny, tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4}
    del config["vocab_size"]
    (path / "config.json").write_text(json.dumps(config))
    changes = {c.key: (c.before, c.after) for c in compare(tiny("qwen3"), path).config}
    before = json.loads((tiny("qwen3") / "config.json").read_text())
    assert changes.pop("vocab_size") == (str(before["vocab_size"]), None)
    assert changes["rope_scaling.factor"] == (None, "4")
    assert changes["rope_scaling.rope_type"] == (None, '"yarn"')


def test_tensors_in_a_renamed_shard_have_moved(tiny: Tiny, tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shutil.move(path / "model-00002-of-00004.safetensors", path / "other.safetensors")
    names = [n for n, file in index["weight_map"].items() if file == "model-00002-of-00004.safetensors"]
    index["weight_map"] |= dict.fromkeys(names, "other.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = compare(tiny("glm-5.1-fp8"), path)
    assert found.tensors == ()
    (move,) = found.moves
    assert (move.before, move.after) == ("model-00002-of-00004.safetensors", "other.safetensors")
    assert move.num_tensors == len(names)


def test_findings_are_compared(tiny: Tiny, tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    (path / "model-00004-of-00004.safetensors").unlink()
    found = compare(tiny("glm-5.1-fp8"), path)
    assert {f.code for f in found.findings_gained} == {"shard-missing"}
    assert found.findings_lost == ()
    assert {g.change for g in found.tensors} == {"lost"}
