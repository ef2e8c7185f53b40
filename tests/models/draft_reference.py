"""Drafts of MTP layers, computed slowly: transformers' own decoder layer, without a cache, over the whole sequence every time.

transformers has no MTP for DeepSeek-V3, GLM-4.5 and GLM-5. A model of one layer of the same class, given ``eh_proj``'s result
for its embeddings, is the MTP layer: its only layer is the block, and its final norm is ``shared_head.norm``.

The layer reads, as in DeepSeek-V3 (arXiv 2412.19437, section 2.2) and vLLM's ``deepseek_mtp.py``: at position i the embedding
of token i + 1 beside the hidden state that the target's head reads at i, each after a norm, embedding first. It predicts token
i + 2. vLLM puts zeros for the embedding at position 0; here it is read like the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.reference import load_model, transformers_model


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
    """A checkpoint's target and its MTP layers, all of transformers, in float32."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Write them dequantised into ``folder``, and load them."""
        self.target = transformers_model(path, folder / "target")
        stored = load_file(folder / "target" / "model.safetensors")
        config = json.loads((folder / "target" / "config.json").read_text())
        first = config["num_hidden_layers"]
        self.layers = [
            MtpLayer(folder / f"draft_{i}", config, stored, first + i)
            for i in range(config["num_nextn_predict_layers"])
        ]
        self.shares_selection = bool(config.get("index_share_for_mtp_iteration"))

    @torch.inference_mode()
    def answer(self, prompt: list[int], num_tokens: int, num_drafts: int) -> Answer:
        """Return at least ``num_tokens`` greedy tokens, made in rounds of one token and ``num_drafts`` drafts."""
        answer, tokens = Answer(), list(prompt)
        while len(answer.tokens) < num_tokens:
            sampled = self.read(tokens)[1][-1]
            drafts = self.propose([*tokens, sampled], num_drafts)
            _, choices = self.read([*tokens, sampled, *drafts])
            new = choices[len(tokens) - 1 :]  # the token itself, and what should stand at each draft and after the last
            accepted = next((i for i, draft in enumerate(drafts) if draft != new[i + 1]), num_drafts)
            tokens += new[: accepted + 1]
            answer.tokens += new[: accepted + 1]
            answer.drafts.append(drafts)
            answer.accepted.append(accepted)
        return answer

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> tuple[Tensor, list[int]]:
        """Return the target's hidden states ``[T, H]`` as the head reads them, and its choice after each token."""
        hidden_1TH = self.target.model(torch.tensor([tokens]), use_cache=False).last_hidden_state
        return hidden_1TH[0], self.target.lm_head(hidden_1TH)[0].argmax(-1).tolist()

    @torch.inference_mode()
    def propose(self, tokens: list[int], num_drafts: int) -> list[int]:
        """Return the drafts that follow ``tokens``, the last of which was just sampled: the target has not read it."""
        hidden_TH, _ = self.read(tokens[:-1])
        one_by_one = self._repeated if len(self.layers) == 1 else self._chained
        return one_by_one(tokens, hidden_TH, num_drafts)

    def _repeated(self, tokens: list[int], hidden_TH: Tensor, num_drafts: int) -> list[int]:
        """One layer: its own hidden state, after its norm, and its draft are the input at the next position."""
        [layer] = self.layers
        taken, drafts = tokens[1:], []
        selection = _Selection(layer.model) if self.shares_selection else None
        for _ in range(num_drafts):
            last_1H = layer.after(hidden_TH, taken)[-1:]
            drafts.append(layer.choice(last_1H))
            hidden_TH, taken = torch.cat([hidden_TH, last_1H]), [*taken, drafts[-1]]
            if selection is not None:
                selection.extend()
        if selection is not None:
            selection.hook.remove()
        return drafts

    def _chained(self, tokens: list[int], hidden_TH: Tensor, num_drafts: int) -> list[int]:
        """Several layers: each takes the hidden states of the one before, and the tokens one place later."""
        drafts: list[int] = []
        for i, layer in enumerate(self.layers[:num_drafts]):
            hidden_TH = layer.after(hidden_TH, [*tokens, *drafts][1 + i :])
            drafts.append(layer.choice(hidden_TH[-1:]))
        return drafts


class MtpLayer:
    """An MTP layer as a model of one layer. It has the target's embedding and head where the checkpoint has none of its own."""

    def __init__(self, folder: Path, config: Mapping[str, object], stored: Mapping[str, Tensor], number: int) -> None:
        prefix = f"model.layers.{number}."
        own = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
        self.enorm, self.hnorm, self.eh_proj = (own.pop(f"{n}.weight") for n in ("enorm", "hnorm", "eh_proj"))
        self.embed = own.pop("embed_tokens.weight", stored["model.embed_tokens.weight"])
        self.head = own.pop("shared_head.head.weight", stored["lm_head.weight"])
        top = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": own.pop("shared_head.norm.weight"),
            "lm_head.weight": self.head,
        }
        one = {**config, "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
        one |= {"mlp_layer_types": ["sparse"]} if "mlp_layer_types" in config else {}
        one |= {"indexer_types": ["full"]} if "indexer_types" in config else {}
        self.model = load_model(folder, one, {**top, **{f"model.layers.0.{name}": t for name, t in own.items()}})
        self.eps: float = self.model.config.rms_norm_eps

    def after(self, hidden_TH: Tensor, tokens: list[int]) -> Tensor:
        """Return the layer's normed hidden states ``[T, H]``; ``tokens`` are those that it takes at each position."""
        x_TH = torch.cat([self._norm(self.embed[tokens], self.enorm), self._norm(hidden_TH, self.hnorm)], dim=-1)
        inputs_1TH = (x_TH @ self.eh_proj.T)[None]
        return self.model.model(inputs_embeds=inputs_1TH, use_cache=False).last_hidden_state[0]

    def choice(self, normed_1H: Tensor) -> int:
        """Return the likeliest token."""
        return int((normed_1H @ self.head.T).argmax())

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight


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
