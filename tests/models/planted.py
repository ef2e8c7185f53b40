"""Small models with MTP layers, among them one whose drafts are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loadmaster.synth import PRESETS, write_tiny


def written(folder: Path, preset: str, **overrides: Any) -> Path:
    """Write a model of two layers, the second of them with experts."""
    config = PRESETS[preset].config_of(tiny=True)
    two: dict[str, Any] = {"num_hidden_layers": 2, "first_k_dense_replace": 1}
    if "mlp_layer_types" in config:
        two["mlp_layer_types"] = ["dense", "sparse"]
    if "indexer_types" in config:
        two["indexer_types"] = ["full", "shared"]
    write_tiny(PRESETS[preset], folder, overrides={**two, **overrides}, num_shards=1)
    return folder


def planted(folder: Path) -> tuple[Path, dict[int, int]]:
    """Write a model whose next token depends on the last alone, and what follows each token.

    Its blocks add nothing. The draft model has the same embedding and head, except that it takes every fourth token for
    another: it is right unless the last token is one of those.
    """
    path = written(folder, "deepseek-v3")
    file = next(path.glob("*.safetensors"))
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
        if name.endswith(("norm.weight", "enorm.weight")):
            tensor.fill_(1)
    draft = "model.layers.2."
    size = len(tensors["model.norm.weight"])
    embed = tensors["model.embed_tokens.weight"]
    head = tensors["lm_head.weight"]
    tensors[f"{draft}eh_proj.weight"] = torch.eye(size, 2 * size).to(torch.bfloat16)  # the token's half alone
    tensors[f"{draft}embed_tokens.weight"] = embed.clone()
    tensors[f"{draft}embed_tokens.weight"][::4] = embed.roll(-1, 0)[::4]
    tensors[f"{draft}shared_head.head.weight"] = head.clone()
    save_file(tensors, file, metadata={"format": "pt"})
    normed = embed.float() * torch.rsqrt(embed.float().pow(2).mean(-1, keepdim=True))
    return path, dict(enumerate((normed @ head.float().t()).argmax(-1).tolist()))


def expected_counts(
    prompt: list[int], follows: dict[int, int], num_tokens: int, num_drafts: int
) -> tuple[int, int, int]:
    """Return the steps of one request, and its verified and accepted drafts."""
    steps, verified, accepted, length, token = 1, 0, 0, 1, follows[prompt[-1]]
    while length < num_tokens:
        drafts, last = [], token
        for _ in range(min(num_drafts, num_tokens - length - 1)):
            last = follows[last + 1 if last % 4 == 0 else last]
            drafts.append(last)
        steps, verified = steps + 1, verified + len(drafts)
        for draft in [*drafts, None]:
            token, length = follows[token], length + 1
            if token != draft:
                break
            accepted += 1
    return steps, verified, accepted
