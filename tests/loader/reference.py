"""Every parameter of a rank, computed another way: whole tensors through the safetensors package, cut with numpy.

Nothing of the planner is used: names, cuts and fusions are written out by hand here, as an engine's loader would.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Arrays = dict[str, torch.Tensor]


def read_all(path: Path) -> Arrays:
    """Every tensor of a checkpoint, whole."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            tensors.update({name: f.get_tensor(name) for name in f.keys()})  # noqa: SIM118
    return tensors


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stage_layers(num_layers: int, pp: int, stage: int) -> range:
    counts = [num_layers // pp] * pp
    for i in range(2, num_layers % pp + 2):
        counts[-i] += 1
    return range(sum(counts[:stage]), sum(counts[: stage + 1]))


def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Dequantise a whole weight in 128 × 128 blocks, the last ones ragged."""
    rows, columns = weight.shape
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return weight.float() * spread


class Reference:
    """The parameters of one rank of a DeepSeek-like or Llama-like checkpoint."""

    def __init__(
        self,
        path: Path,
        *,
        pp: tuple[int, int] = (0, 1),
        tp: tuple[int, int] = (0, 1),
        ep: bool = False,
        mtp: bool = False,
    ) -> None:
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.stored = read_all(path)
        self.pp, self.tp, self.ep, self.mtp = pp, tp, ep, mtp
        self.params: Arrays = {}
        self._build()

    # cuts of whole tensors -------------------------------------------------------------------------------------------

    def _weight(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.stored[f"{name}.weight"], self.stored.get(f"{name}.weight_scale_inv")

    def _rows(self, name: str, cut: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Column parallel: this rank's rows, and the rows of the scale that cover them."""
        weight, scale = self._weight(name)
        if not cut:
            return weight, scale
        n = weight.shape[0] // self.tp[1]
        a, b = self.tp[0] * n, (self.tp[0] + 1) * n
        return weight[a:b], None if scale is None else scale[a // 128 : -(-b // 128)]

    def _columns(self, name: str, cut: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Row parallel: this rank's columns, and the columns of the scale that cover them."""
        weight, scale = self._weight(name)
        if not cut:
            return weight, scale
        n = weight.shape[1] // self.tp[1]
        a, b = self.tp[0] * n, (self.tp[0] + 1) * n
        return weight[:, a:b], None if scale is None else scale[:, a // 128 : -(-b // 128)]

    def _kv(self, name: str, head: int) -> torch.Tensor:
        """Key or value rows: heads fewer than ranks are repeated."""
        whole = self.stored[name]
        heads = whole.shape[0] // head
        if heads >= self.tp[1]:
            n = whole.shape[0] // self.tp[1]
            return whole[self.tp[0] * n : (self.tp[0] + 1) * n]
        i = self.tp[0] // (self.tp[1] // heads)
        return whole[i * head : (i + 1) * head]

    def _put(self, name: str, *parts: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        self.params[f"{name}weight"] = torch.cat([w for w, _ in parts])
        scales = [s for _, s in parts if s is not None]
        if scales:
            self.params[f"{name}weight_scale_inv"] = torch.cat(scales)

    # the model -------------------------------------------------------------------------------------------------------

    def _vocab(self, name: str) -> torch.Tensor:
        whole = self.stored[name]
        n = whole.shape[0] // self.tp[1]
        return whole[self.tp[0] * n : (self.tp[0] + 1) * n]

    def _build(self) -> None:
        num_layers = self.config["num_hidden_layers"]
        tied = self.config.get("tie_word_embeddings", False)
        first, last = self.pp[0] == 0, self.pp[0] == self.pp[1] - 1
        layer: Callable[[str, str], None] = self._mla if "kv_lora_rank" in self.config else self._llama
        if first:
            self.params["embed_tokens.weight"] = self._vocab("model.embed_tokens.weight")
        for i in stage_layers(num_layers, self.pp[1], self.pp[0]):
            layer(f"model.layers.{i}.", f"layers.{i}.")
        if last:
            self.params["norm.weight"] = self.stored["model.norm.weight"]
            self.params["lm_head.weight"] = self._vocab("model.embed_tokens.weight" if tied else "lm_head.weight")
        if last and self.mtp:
            self._draft(num_layers)

    def _draft(self, layer: int) -> None:
        p, q = f"model.layers.{layer}.", "mtp.0."
        self._mla(p, q)
        for name in ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"):
            self.params[q + name] = self.stored[p + name]
        own = p + "embed_tokens.weight" in self.stored
        self.params[q + "embed_tokens.weight"] = self._vocab(
            p + "embed_tokens.weight" if own else "model.embed_tokens.weight"
        )
        self.params[q + "shared_head.head.weight"] = self._vocab(
            p + "shared_head.head.weight" if own else "lm_head.weight"
        )

    def _norms(self, p: str, q: str) -> None:
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            self.params[q + name] = self.stored[p + name]

    def _llama(self, p: str, q: str) -> None:
        self._norms(p, q)
        a, m = p + "self_attn.", p + "mlp."
        heads = self.config["num_attention_heads"]
        head = self.config.get("head_dim") or self.config["hidden_size"] // heads
        for kind in ("weight", "bias"):
            if f"{a}q_proj.{kind}" in self.stored:
                self.params[f"{q}self_attn.qkv_proj.{kind}"] = torch.cat(
                    [
                        self._vocab(f"{a}q_proj.{kind}"),
                        self._kv(f"{a}k_proj.{kind}", head),
                        self._kv(f"{a}v_proj.{kind}", head),
                    ]
                )
        for name in ("q_norm.weight", "k_norm.weight", "o_proj.bias"):
            if a + name in self.stored:
                self.params[f"{q}self_attn.{name}"] = self.stored[a + name]
        self._put(f"{q}self_attn.o_proj.", self._columns(a + "o_proj"))
        self._put(f"{q}mlp.gate_up_proj.", self._rows(m + "gate_proj"), self._rows(m + "up_proj"))
        self._put(f"{q}mlp.down_proj.", self._columns(m + "down_proj"))

    def _mla(self, p: str, q: str) -> None:
        self._norms(p, q)
        a, b, m = p + "self_attn.", q + "self_attn.", p + "mlp."
        self._put(b + "fused_qkv_a_proj.", self._weight(a + "q_a_proj"), self._weight(a + "kv_a_proj_with_mqa"))
        for name in ("q_a_layernorm.weight", "kv_a_layernorm.weight"):
            self.params[b + name] = self.stored[a + name]
        self._put(b + "q_b_proj.", self._rows(a + "q_b_proj"))
        self._put(b + "kv_b_proj.", self._rows(a + "kv_b_proj"))
        self._put(b + "o_proj.", self._columns(a + "o_proj"))
        if a + "indexer.wk.weight" in self.stored:
            self._put(b + "indexer.wq_b.", self._weight(a + "indexer.wq_b"))
            wk, scale = self._weight(a + "indexer.wk")
            wk = wk if scale is None else dequantise(wk, scale).to(torch.bfloat16)
            self.params[b + "indexer.wk_weights_proj.weight"] = torch.cat(
                [wk, self.stored[a + "indexer.weights_proj.weight"].to(wk.dtype)]
            )
            for name in ("k_norm.weight", "k_norm.bias"):
                self.params[b + "indexer." + name] = self.stored[a + "indexer." + name]
        if m + "gate_proj.weight" in self.stored:
            self._put(q + "mlp.gate_up_proj.", self._rows(m + "gate_proj"), self._rows(m + "up_proj"))
            self._put(q + "mlp.down_proj.", self._columns(m + "down_proj"))
            return
        self.params[q + "mlp.gate.weight"] = self.stored[m + "gate.weight"]
        self.params[q + "mlp.gate.e_score_correction_bias"] = self.stored[m + "gate.e_score_correction_bias"].float()
        s = m + "shared_experts."
        self._put(q + "mlp.shared_experts.gate_up_proj.", self._rows(s + "gate_proj"), self._rows(s + "up_proj"))
        self._put(q + "mlp.shared_experts.down_proj.", self._columns(s + "down_proj"))
        self._experts(m + "experts.", q + "mlp.experts.")

    def _experts(self, p: str, q: str) -> None:
        experts = range(self.config["n_routed_experts"])
        if self.ep:
            n = len(experts) // self.tp[1]
            experts = range(self.tp[0] * n, (self.tp[0] + 1) * n)
        w13, w2 = [], []
        for e in experts:
            gate, up = (self._rows(f"{p}{e}.{n}_proj", not self.ep) for n in ("gate", "up"))
            down = self._columns(f"{p}{e}.down_proj", not self.ep)
            w13.append(
                tuple(None if x is None or y is None else torch.cat([x, y]) for x, y in zip(gate, up, strict=True))
            )
            w2.append(down)
        for name, stack in (("w13_weight", w13), ("w2_weight", w2)):
            for suffix, i in (("", 0), ("_scale_inv", 1)):
                parts = [member[i] for member in stack]
                if all(t is not None for t in parts):
                    self.params[q + name + suffix] = torch.stack([t for t in parts if t is not None])


def differences(loaded: dict[str, torch.Tensor], expected: Arrays) -> list[str]:
    """Names whose bytes, shapes or dtypes differ, or that only one side has."""
    out = [f"only loaded: {n}" for n in loaded.keys() - expected.keys()]
    out += [f"only expected: {n}" for n in expected.keys() - loaded.keys()]
    for name in loaded.keys() & expected.keys():
        a, b = loaded[name], expected[name]
        if a.shape != b.shape or a.dtype != b.dtype or raw(a) != raw(b):
            out.append(f"{name}: {a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    return sorted(out)


__all__ = ["Reference", "dequantise", "differences", "raw", "read_all", "stage_layers"]
