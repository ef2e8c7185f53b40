"""A case of the audit: a preset, its defect if any, and the rank of a layout that loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from loadmaster.audit.accepted import BESIDE, CODE, RECENT, WRAPPED
from loadmaster.audit.damage import Damage
from loadmaster.audit.ranks import Rank
from loadmaster.parallel import ParallelLayout
from loadmaster.synth import PRESETS, Preset, write_tiny
from loadmaster.synth.quantised import FP8
from loadmaster.testing.damaged import DamagedCheckpoint

MLA: Final[dict[str, Any]] = {  # vLLM refuses a cut inside a quantisation block of 128
    "topk_method": "noaux_tc",
    "hidden_size": 384,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
GLM: Final[dict[str, Any]] = {**MLA, "qk_head_dim": 64, "head_dim": 32}
LONG: Final[dict[str, Any]] = {"max_position_embeddings": 16384}
MINIMAX: Final[dict[str, Any]] = {
    "head_dim": 32,
    "hidden_size": 256,
    "num_key_value_heads": 8,
    "rotary_dim": 8,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
}


MIMO: Final[dict[str, Any]] = {
    "model_type": "mimo_v2_flash",  # transformers has no class of the releases' type, which bring their own
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "n_group": 1,
    "norm_topk_prob": True,
    "sliding_window_size": 128,
    "swa_rope_theta": 10000,
    "topk_group": 1,
}


def _text_only(preset: str, architecture: str, model: str) -> dict[str, Any]:
    """Return the changes that reduce a config to the language model; vLLM's towers may need missing packages."""
    config = PRESETS[preset].config_of(tiny=True)
    return {**config["text_config"], "text_config": None, "architectures": [architecture], "model_type": model}


def _plain_beside(preset: str, *modules: str) -> dict[str, Any]:
    """Return FP8's config with modules of every layer listed as not quantised, as published; vLLM follows the list."""
    layers = range(PRESETS[preset].config_of(tiny=True)["num_hidden_layers"])
    plain = [f"model.layers.{i}.{module}" for i in layers for module in modules]
    return {"quantization_config": {**FP8, "modules_to_not_convert": ["lm_head", *plain]}}


ACCEPTED: Final[dict[str, dict[str, Any]]] = {
    **{name: LONG for name in PRESETS if name == "llama" or name.startswith("llama-")},
    **{name: MLA for name in PRESETS if name.startswith(("deepseek-v3", "kimi-k2"))},
    "glm-5.1-fp8": GLM,
    "glm-5.2-fp8": GLM,
    "qwen3-fp8": {"head_dim": 32},
    "qwen3-moe-fp8": {"head_dim": 32, "moe_intermediate_size": 128, **_plain_beside("qwen3-moe-fp8", "mlp.gate")},
    "qwen3-next-fp8": {
        "head_dim": 32,
        "hidden_size": 256,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "moe_intermediate_size": 256,
        "num_key_value_heads": 8,
        "shared_expert_intermediate_size": 256,
        **_plain_beside("qwen3-next-fp8", "mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_ba"),
    },
    "minimax-m2": MINIMAX,
    "qwen3.8": _text_only("qwen3.8", "Qwen3_5ForCausalLM", "qwen3_5_text"),
    "qwen3.5-moe": _text_only("qwen3.5-moe", "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"),
    "step-3.7-flash": _text_only("step-3.7-flash", "Step3p5ForCausalLM", "step3p5"),
    "gemma-4-26b-a4b": _text_only("gemma-4-26b-a4b", "Gemma4ForCausalLM", "gemma4_text"),
    "gemma-4-e2b": _text_only("gemma-4-e2b", "Gemma4ForCausalLM", "gemma4_text"),
    "mistral-large-3": {
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    },
    "mimo-v2.5-pro": MIMO,
    "mimo-v2.6-pro": MIMO,
    "gemma-3": _text_only("gemma-3", "Gemma3ForCausalLM", "gemma3_text"),
    "llama-4": _text_only("llama-4", "Llama4ForCausalLM", "llama4_text"),
    **RECENT,
    # not those that tests load in another format than the preset's
    **{name: changes for name, changes in WRAPPED.items() if None not in changes.values()},
}
"""Changes to the tiny configs of presets that vLLM would not accept unchanged (None removes a value)."""


_LANGUAGE_ALONE: Final = "the audit describes the language model alone"
_ACTIVATIONS: Final = "the preset stores scales of activations, which vLLM does not take with its config"
_ROUTERS: Final = "its config does not say that routers are plain, and vLLM follows the config"
UNJUDGED: Final[dict[str, str]] = {
    "gemma-3-w4a16": _LANGUAGE_ALONE,
    "gemma-3-fp8-channel": _LANGUAGE_ALONE,
    "llama-fp8-channel": _ACTIVATIONS,
    "phi-4-fp8-channel": _ACTIVATIONS,
    "llama-nvfp4": _ACTIVATIONS,
    "qwen3-moe-w4a16": _ROUTERS,
    "qwen3-moe-nvfp4": _ROUTERS,
}
"""Presets whose sound checkpoints are no measure of vLLM's loaders, and why. They are not run."""

ONE: Final = Rank()
FIRST, LAST = Rank((0, 2)), Rank((1, 2))
CUT, SPREAD = Rank(tp=(1, 2)), Rank(tp=(1, 2), ep=True)
WHERE = {Rank(): "", FIRST: "@pp0of2", LAST: "@pp1of2", CUT: "@tp1of2", SPREAD: "@ep1of2"}


@dataclass(frozen=True)
class Case:
    """One checkpoint, loaded on one rank. Without a ``damage`` it is sound.

    ``overrides`` are more values of the config, ``draft`` is a method of speculation whose draft model is loaded instead of
    the model, ``shards`` is the number of files.
    """

    name: str
    preset: str
    damage: Damage | None = None
    rank: Rank = ONE
    draft: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    shards: int = 2

    @property
    def checkpoint(self) -> str:
        """A key of its sound checkpoint."""
        return f"{self.preset} {sorted(self.overrides.items())} {self.shards}"

    @property
    def config(self) -> dict[str, Any]:
        """The sound checkpoint's config."""
        changes = {**ACCEPTED.get(self.preset, {}), **self.overrides}
        config = PRESETS[self.preset].config_of(tiny=True) | changes
        return {key: value for key, value in config.items() if value is not None}

    @property
    def engine(self) -> dict[str, Any]:
        """vLLM's arguments: of a model around a language model, the language model is loaded alone; code beside it is run."""
        alone = {"language_model_only": True} if self.preset in WRAPPED else {}
        return {**alone, **({"trust_remote_code": True} if self.preset in CODE else {})}

    @property
    def written(self) -> Preset:
        """The preset that writes it: with this config, in the family's spelling."""
        preset, config = PRESETS[self.preset], self.config
        is_whole = "text_config" in config or "text_config" not in preset.config
        family = preset.family_of(config)
        if not is_whole and family.name == "llama4":
            family = replace(family, spelling=family.variants[1])  # names without language_model before them
        return replace(
            preset, config=config, tiny={}, format=None, family=family, extra=preset.extra if is_whole else {}
        )

    @property
    def layout(self) -> ParallelLayout:
        """The layout that the rank belongs to."""
        drafts = self.config.get("num_nextn_predict_layers", 0) if self.draft else 0
        return ParallelLayout(
            self.rank.pp[1], self.rank.tp[1], enable_expert_parallel=self.rank.ep, num_draft_layers=drafts
        )

    @property
    def rank_number(self) -> int:
        """The rank's number in the layout."""
        return self.rank.pp[0] * self.rank.tp[1] + self.rank.tp[0]

    @property
    def family(self) -> str:
        """The name of its family."""
        return PRESETS[self.preset].family_of(self.config).name

    def write(self, path: Path) -> None:
        """Write the sound checkpoint."""
        write_tiny(self.written, path, num_shards=self.shards)
        write_beside(self.preset, path)
        if self.preset == "mixtral-fp8-static":
            alike_inputs(DamagedCheckpoint(path))


def write_beside(preset: str, path: Path) -> None:
    """Write what vLLM reads beside the config of a preset's checkpoint."""
    for name, values in BESIDE.get(preset, {}).items():
        (path / name).write_text(json.dumps(values), encoding="utf-8")
    for name, code in CODE.get(preset, {}).items():
        (path / name).write_text(code, encoding="utf-8")


def alike_inputs(m: DamagedCheckpoint) -> None:
    """Give the first and third matrix of each expert the same input scale, as quantisers do: their input is the same."""
    of_w1 = {n: m.tensor(n) for n in m.names(r"\.w1\.input_scale$")}
    m.each(r"\.w3\.input_scale$", lambda name, tensor: {name: of_w1[name.replace(".w3.", ".w1.")].clone()})


def cases_of(preset: str, *rows: tuple[str, Damage] | tuple[str, Damage, dict[str, Any]]) -> Iterator[Case]:
    """Yield a preset's cases from rows of a name, a defect, and more values of a case."""
    for slug, damage, *more in rows:
        options = more[0] if more else {}
        rank = options.get("rank", ONE)
        draft = "-draft" if options.get("draft") else ""
        yield Case(f"{preset}/{slug}{draft}{WHERE[rank]}", preset, damage, **options)
