"""The model: GLM-5.1's decoder and its MTP layer, in plain PyTorch, for training on whole sequences.

Names are those of the checkpoint, except that the experts of a layer are one tensor. The published computation is that of
``modeling_glm_moe_dsa.py`` in transformers; norms of the latents take the config's epsilon, as in engines. The MTP layer is
that of vLLM's ``deepseek_mtp.py``: from the hidden state that the head reads at position i and the embedding of token i + 1
it predicts token i + 2, and its own normed hidden state serves for the token after that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.trained.attention import Attention, Mode, rotation_of
from tools.trained.blocks import Dense, Experts, Norm, Router, Weight


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, c: dict[str, Any], *, sparse: bool) -> None:
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = Norm(hidden, eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(hidden, eps)
        self.mlp = Experts(c) if sparse else Dense(hidden, c["intermediate_size"])
        self.dropout = nn.Dropout(0.0)

    def forward(self, x_BTH: Tensor, rotation: Tensor, mode: Mode, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the hidden states, which stay float32, and the indexer's loss."""
        out, loss = self.self_attn(self.input_layernorm(x_BTH, dtype), rotation, mode)
        x_BTH = x_BTH + self.dropout(out)
        out = self.mlp(self.post_attention_layernorm(x_BTH, dtype))
        return x_BTH + self.dropout(out), loss


class SharedHead(nn.Module):
    """The norm before the head, as the MTP layer names it."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


class DraftLayer(Layer):
    """The MTP layer: a decoder layer with a way in and a norm of its own; embedding and head are the model's."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__(c, sparse=True)
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.enorm = Norm(hidden, eps)
        self.hnorm = Norm(hidden, eps)
        self.eh_proj = Weight(hidden, 2 * hidden, fp8=False)
        self.shared_head = SharedHead(c)


class Decoder(nn.Module):
    """Embedding, layers with the MTP layer after them, and the norm before the head."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        num_layers, hidden = c["num_hidden_layers"], c["hidden_size"]
        layers = [Layer(c, sparse=i >= c["first_k_dense_replace"]) for i in range(num_layers)]
        self.embed_tokens = Weight(c["vocab_size"], hidden, fp8=False)
        self.layers = nn.ModuleList([*layers, DraftLayer(c)])
        self.norm = Norm(hidden, c["rms_norm_eps"])


class Output(NamedTuple):
    """``logits`` of the next token, then of the drafts after it: ``[B, T, V]`` each. ``index_loss``: the mean over the layers."""

    logits: list[Tensor]
    index_loss: Tensor


class Glm(nn.Module):
    """The whole model."""

    def __init__(self, c: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = c, dtype
        self.model = Decoder(c)
        self.lm_head = Weight(c["vocab_size"], c["hidden_size"], fp8=False)

    def initialise(self, seed: int) -> None:
        """Draw the weights: each output has the size of its input, what is added to the residual less of it."""
        generator = torch.Generator().manual_seed(seed)
        depth = len(self.model.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = parameter.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= (2 * depth) ** -0.5
            std = {"model.embed_tokens.weight": 0.5, "lm_head.weight": 0.01}.get(name, std)
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.data.copy_(drawn)

    def set_dropout(self, share: float) -> None:
        """Set the share of a layer's output that is dropped in training."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def set_quantised(self, quantised: bool) -> None:
        """Compute with the weights as they will be stored, or as they are."""
        for module in self.modules():
            if isinstance(module, (Weight, Router)):
                module.quantised = quantised

    def indexer_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all indexers."""
        return [p for name, p in self.named_parameters() if ".indexer." in name]

    def forward(self, tokens_BT: Tensor, mode: Mode = "sparse", num_drafts: int = 0) -> Output:
        """Return the logits of the next tokens, and of ``num_drafts`` tokens after them."""
        c = self.config
        theta = c["rope_parameters"]["rope_theta"]
        rotation = rotation_of(tokens_BT.shape[1], c["qk_rope_head_dim"], theta, tokens_BT.device)
        *layers, draft = self.model.layers
        assert isinstance(draft, DraftLayer)
        embedded_BTH = F.embedding(tokens_BT, self.model.embed_tokens.matrix(torch.float32))
        x_BTH, index_loss = embedded_BTH, torch.zeros((), device=tokens_BT.device)
        for layer in layers:
            x_BTH, loss = layer(x_BTH, rotation, mode, self.dtype)
            index_loss = index_loss + loss / (len(layers) + 1)
        hidden_BTH = self.model.norm(x_BTH, self.dtype)
        logits = [self.lm_head(hidden_BTH)]
        for i in range(num_drafts):
            next_BTH = draft.enorm(torch.roll(embedded_BTH, -1, dims=1), self.dtype)  # the last token's is not used
            joined_BTH = draft.eh_proj(torch.cat([next_BTH, draft.hnorm(hidden_BTH)], dim=-1)).float()
            x_BTH, loss = draft(joined_BTH, rotation, mode, self.dtype)
            if i == 0:
                index_loss = index_loss + loss / (len(layers) + 1)
            # row t of this pass read token t + 1; as the next draft's state it belongs to row t + 1
            hidden_BTH = draft.shared_head.norm(x_BTH, self.dtype)
            logits.append(self.lm_head(hidden_BTH))
            hidden_BTH = torch.cat([hidden_BTH[:, :1], hidden_BTH[:, :-1]], dim=1)
        return Output(logits, index_loss)
