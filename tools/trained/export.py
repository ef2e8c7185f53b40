"""Writes the model as a checkpoint: FP8 blocks, shards, index and config, named and typed as GLM-5.1-FP8's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.trained import fp8
from tools.trained.config import BLOCK, END, SPECIAL
from tools.trained.model import Glm

NUM_SHARDS = 4
SCALE = "_scale_inv"


def write_checkpoint(model: Glm, out: Path) -> None:
    """Write config.json, generation_config.json, shards and index into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(model)
    total = sum(t.nbytes for t in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(NUM_SHARDS)]
    done = 0
    for name, tensor in tensors.items():
        if not name.endswith(SCALE):  # a factor stays with its weight
            number = min(done * NUM_SHARDS // total, NUM_SHARDS - 1)
        shards[number][name] = tensor
        done += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    eos, pad = model.config["eos_token_id"], SPECIAL.index(END)
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "pad_token_id": pad}, indent=2) + "\n")


def stored_tensors(model: Glm) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by name: each expert's by itself, a quantised weight followed by its factors."""
    quantised = {f"{name}.weight" for name, m in model.named_modules() if getattr(m, "fp8", False)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name.endswith("e_score_correction_bias"):
            tensors[name] = tensor.float()
        elif name not in quantised:
            tensors[name] = tensor.bfloat16()
        elif ".experts." not in name:
            tensors[name], tensors[name + SCALE] = fp8.quantise(tensor)
        else:
            for expert, matrix in enumerate(tensor):
                own = name.replace(".experts.", f".experts.{expert}.")
                tensors[own], tensors[own + SCALE] = fp8.quantise(matrix)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def load_stored(model: Glm, folder: Path) -> None:
    """Give ``model`` the values that the checkpoint in ``folder`` stores, dequantised."""
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(file))
    for name, target in model.state_dict().items():
        names = [name]
        if ".experts." in name:
            names = [name.replace(".experts.", f".experts.{expert}.") for expert in range(len(target))]
        values = torch.stack([_dequantised(stored, n) for n in names])
        target.copy_(values if ".experts." in name else values[0])


def _dequantised(stored: dict[str, Tensor], name: str) -> Tensor:
    values = stored[name].float()
    if name + SCALE not in stored:
        return values
    scale = stored[name + SCALE].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return values * scale[: values.shape[0], : values.shape[1]]
