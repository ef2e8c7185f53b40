"""What an MTP layer proposes, computed slowly: transformers' own decoder layer over the whole sequence for every draft.

transformers has no MTP for GLM-5 and DeepSeek-V3.2. A model of one layer of the same class, given ``eh_proj``'s result for
its embeddings, is the MTP layer: its only layer is the block, and its final norm is ``shared_head.norm``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.reference import transformers_model


class DraftReference:
    """The model, and its MTP layers as models of one layer."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.model = transformers_model(path, folder / "model")
        self.plain = load_file(folder / "model" / "model.safetensors")
        config = json.loads((folder / "model" / "config.json").read_text())
        self.num_layers: int = config["num_hidden_layers"]
        self.eps: float = self.model.config.rms_norm_eps
        self.shares_selection = bool(config.get("index_share_for_mtp_iteration"))
        self.drafts = [
            self._draft(config, self.num_layers + i, folder / f"draft_{i}")
            for i in range(config["num_nextn_predict_layers"])
        ]

    def _draft(self, config: dict[str, object], layer: int, folder: Path) -> PreTrainedModel:
        prefix = f"model.layers.{layer}."
        tensors = {
            name.replace(prefix, "model.layers.0."): t for name, t in self.plain.items() if name.startswith(prefix)
        }
        tensors["model.norm.weight"] = tensors.pop("model.layers.0.shared_head.norm.weight")
        tensors["model.embed_tokens.weight"] = tensors.pop("model.layers.0.embed_tokens.weight", self.embed(layer))
        tensors["lm_head.weight"] = tensors.pop("model.layers.0.shared_head.head.weight", self.head(layer))
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        one = {**config, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
        one |= {"mlp_layer_types": ["sparse"]} if "mlp_layer_types" in config else {}
        one |= {"indexer_types": ["full"]} if "indexer_types" in config else {}
        (folder / "config.json").write_text(json.dumps(one))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for name, module in model.named_modules():
            if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
                module.variance_epsilon = self.eps
        return model.eval()

    def embed(self, layer: int) -> Tensor:
        """Return the layer's embedding, or the model's where it has none."""
        return self.plain.get(f"model.layers.{layer}.embed_tokens.weight", self.plain["model.embed_tokens.weight"])

    def head(self, layer: int) -> Tensor:
        """Return the layer's head, or the model's where it has none."""
        return self.plain.get(f"model.layers.{layer}.shared_head.head.weight", self.plain["lm_head.weight"])

    def norm(self, x_TH: Tensor, name: str) -> Tensor:
        return x_TH * torch.rsqrt(x_TH.pow(2).mean(-1, keepdim=True) + self.eps) * self.plain[name]

    def after(self, i: int, hidden_TH: Tensor, tokens: list[int]) -> Tensor:
        """Return MTP layer ``i``'s normed hidden states ``[T, H]``; ``tokens`` are those that it takes at each position."""
        prefix = f"model.layers.{self.num_layers + i}."
        embedded_TH = self.norm(self.embed(self.num_layers + i)[tokens], f"{prefix}enorm.weight")
        joined_TH = torch.cat([embedded_TH, self.norm(hidden_TH, f"{prefix}hnorm.weight")], dim=-1)
        inputs_TH = joined_TH @ self.plain[f"{prefix}eh_proj.weight"].t()
        return self.drafts[i].model(inputs_embeds=inputs_TH[None], use_cache=False).last_hidden_state[0]

    def propose(self, tokens: list[int], num_drafts: int) -> list[int]:
        """Return the drafts that follow ``tokens``, the last of which was just sampled."""
        with torch.inference_mode():
            hidden_TH = self.model.model(torch.tensor([tokens[:-1]]), use_cache=False).last_hidden_state[0]
            one_by_one = self._repeated if len(self.drafts) == 1 else self._chained
            return one_by_one(tokens, hidden_TH, num_drafts)

    def _repeated(self, tokens: list[int], hidden_TH: Tensor, num_drafts: int) -> list[int]:
        """One layer: its own hidden state and draft are the input at the next position."""
        taken, drafts = tokens[1:], []
        selection = _Selection(self.drafts[0]) if self.shares_selection else None
        for _ in range(num_drafts):
            last_1H = self.after(0, hidden_TH, taken)[-1:]
            drafts.append(int((last_1H @ self.head(self.num_layers).t()).argmax()))
            hidden_TH, taken = torch.cat([hidden_TH, last_1H]), [*taken, drafts[-1]]
            if selection is not None:
                selection.extend()
        if selection is not None:
            selection.hook.remove()
        return drafts

    def _chained(self, tokens: list[int], hidden_TH: Tensor, num_drafts: int) -> list[int]:
        """Several layers: each takes the hidden states of the one before, and the tokens one place later."""
        drafts: list[int] = []
        for i in range(num_drafts):
            taken = [*tokens, *drafts][1 + i :]
            hidden_TH = self.after(i, hidden_TH, taken)
            drafts.append(int((hidden_TH[-1] @ self.head(self.num_layers + i).t()).argmax()))
        return drafts


class _Selection:
    """The tokens that the indexer selects when the layer is run first, given to later runs too.

    A later run's last token attends to the tokens selected for the one before, and to itself.
    """

    def __init__(self, draft: PreTrainedModel) -> None:
        self.topk_TK: Tensor | None = None
        self.hook = draft.model.layers[0].self_attn.indexer.register_forward_hook(self._replace)

    def extend(self) -> None:
        """Add a row for the next token."""
        assert self.topk_TK is not None
        last_1K = torch.cat([self.topk_TK[-1:], torch.tensor([[len(self.topk_TK)]])], dim=1)
        others_TK = torch.cat([self.topk_TK, self.topk_TK[:, :1]], dim=1)
        self.topk_TK = torch.cat([others_TK, last_1K])

    def _replace(self, indexer: torch.nn.Module, args: tuple[Tensor, ...], selected_1TK: Tensor) -> Tensor:
        if self.topk_TK is None:
            self.topk_TK = selected_1TK[0]
        return self.topk_TK[None]
