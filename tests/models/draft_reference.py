"""Drafts of an MTP layer, step by step on transformers: no cache, the whole sequence anew for every token. Slow and plain.

The MTP layer is loaded as a model of one layer, whose final norm and head are the layer's. It reads, as in DeepSeek-V3 (arXiv
2412.19437, section 2.2) and vLLM's ``deepseek_mtp.py``: at position i the embedding of token i + 1 beside the hidden state that
the target's head reads at i, each after a norm, embedding first. It predicts token i + 2. Its own hidden state after its norm
takes the target's place for the next draft, one position further on. vLLM puts zeros for the embedding at position 0; here it is
read like the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.reference import transformers_model


@dataclass
class Answer:
    """``tokens`` without the prompt; for each round the drafts, and how many of them were accepted."""

    tokens: list[int] = field(default_factory=list)
    drafts: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def shares(self) -> list[float]:
        """The share of the rounds that accepted the first draft, the first two, and so on."""
        most = max(map(len, self.drafts))
        return [sum(n > i for n in self.accepted) / len(self.accepted) for i in range(most)]


class DraftReference:
    """A checkpoint's target and its MTP layer, both of transformers, in float32."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Write both dequantised into ``folder``, and load them."""
        self.target = transformers_model(path, folder / "target")
        stored = load_file(folder / "target" / "model.safetensors")
        config = json.loads((folder / "target" / "config.json").read_text())
        prefix = f"model.layers.{config['num_hidden_layers']}."
        layer = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
        self.enorm, self.hnorm = layer.pop("enorm.weight"), layer.pop("hnorm.weight")
        self.eh_proj = layer.pop("eh_proj.weight")
        self.embed = layer.pop("embed_tokens.weight", stored["model.embed_tokens.weight"])
        self.eps = config["rms_norm_eps"]
        top = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": layer.pop("shared_head.norm.weight"),
            "lm_head.weight": layer.pop("shared_head.head.weight", stored["lm_head.weight"]),
        }
        self.draft = one_layer(
            folder / "draft", config, {**top, **{f"model.layers.0.{n}": t for n, t in layer.items()}}
        )

    @torch.inference_mode()
    def answer(self, prompt: list[int], num_tokens: int, num_drafts: int) -> Answer:
        """Return at least ``num_tokens`` greedy tokens, made in rounds of one token and ``num_drafts`` drafts."""
        answer, tokens = Answer(), list(prompt)
        while len(answer.tokens) < num_tokens:
            hidden_TH, choices = self.read(tokens)
            drafts = self.drafts([*tokens, choices[-1]], hidden_TH, num_drafts)
            _, choices = self.read([*tokens, choices[-1], *drafts])
            new = choices[len(tokens) - 1 :]  # the token itself, and what should stand at each draft and after the last
            accepted = next((i for i, draft in enumerate(drafts) if draft != new[i + 1]), num_drafts)
            tokens += new[: accepted + 1]
            answer.tokens += new[: accepted + 1]
            answer.drafts.append(drafts)
            answer.accepted.append(accepted)
        return answer

    def read(self, tokens: list[int]) -> tuple[Tensor, list[int]]:
        """Return the target's hidden states as the head reads them, and its choice after each token."""
        hidden_1TH = self.target.model(torch.tensor([tokens]), use_cache=False).last_hidden_state
        return hidden_1TH[0], self.target.lm_head(hidden_1TH)[0].argmax(-1).tolist()

    def drafts(self, tokens: list[int], hidden_TH: Tensor, num_drafts: int) -> list[int]:
        """Return the drafts after ``tokens``, of which the target has read all but the last."""
        tokens, drafts = list(tokens), []
        for _ in range(num_drafts):
            embedded_TH = self.embed[torch.tensor(tokens[1:])]
            x_TH = torch.cat([norm(embedded_TH, self.enorm, self.eps), norm(hidden_TH, self.hnorm, self.eps)], dim=-1)
            inputs_1TH = (x_TH @ self.eh_proj.T)[None]
            normed_1TH = self.draft.model(inputs_embeds=inputs_1TH, use_cache=False).last_hidden_state
            drafts.append(int(self.draft.lm_head(normed_1TH[0, -1]).argmax()))
            tokens.append(drafts[-1])
            hidden_TH = torch.cat([hidden_TH, normed_1TH[0, -1:]])
        return drafts


def one_layer(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> PreTrainedModel:
    """Let transformers load an MTP layer as a model of one layer of experts, which has an indexer if the model has any."""
    config = {**config, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    for key in ("mlp_layer_types", "indexer_types", "layer_types", "index_topk_pattern", "index_topk_freq"):
        config.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):  # as in the target's reference
            module.variance_epsilon = config["rms_norm_eps"]
    return model.eval()


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
