"""How a version of vLLM names and holds a family's parameters, derived from the native ones, which have vLLM's names in a block.

The differences in vLLM: blocks and the model's own parameters are under ``model.``, experts have their own module, a
vocabulary is always padded to a multiple of 64, and a plain parameter has the model's dtype whatever is stored. Some models
hold embedding, norm and head on every stage. MTP layers are a separate draft model, whose layer numbers continue those of the
model (`DRAFT_EMBEDDING` has none); here they are planned with the model, on its last stage.

A version is a table of architectures (`vllm_0_32`), the next one a difference to it. ``tests/integrations/vllm`` compares all
of it with what vLLM's own loader writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Param, Target
from loadmaster.architectures.wrapper import WrappedFamily
from loadmaster.errors import UnsupportedError

NOT_OF_PLUGINS: Final = (
    ": its family is from another package, and only loadmaster's own families are described, because they are compared with "
    "vLLM's own loaders; prove it for the native target, and stream it through vLLM's own loader"
)
"""Why a family from another package has no vLLM target."""

DRAFT_EMBEDDING: Final = ("{draft}.embed_tokens.weight", "model.embed_tokens.weight")
"""The name of a draft model's embedding in the plan, and its name in the draft model."""


@dataclass(frozen=True)
class Described:
    """How vLLM implements an architecture.

    ``classes`` are vLLM's classes for it, and ``drafts`` those for its MTP layers. ``modules`` are modules of a block with
    another name in vLLM, as (native name, vLLM's name); the first that matches is renamed. ``on_every_stage``: all stages
    hold embedding, norm and head. ``keep`` are parameters of a block with a fixed dtype. ``sends`` is what a stage passes to
    the next (``make_empty_intermediate_tensors``). ``obstacle`` returns why a config is not described; None if it is.
    """

    classes: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = (("mlp.experts.", "mlp.experts.routed_experts."),)
    on_every_stage: bool = False
    keep: tuple[tuple[str, str], ...] = ()
    sends: tuple[str, ...] = ("hidden_states", "residual")
    obstacle: Callable[[Config], str | None] = lambda c: None


@dataclass(frozen=True)
class Version:
    """A version of vLLM: the name of its target, and how it implements each architecture that is described."""

    name: str
    described: Mapping[str, Described]

    def target(self, family: Family, config: Config) -> Target:
        """Return the parameters of this version's model.

        Raises:
            UnsupportedError: the architecture, or this config of it, is not described.
        """
        architecture = config.values["architectures"][0]
        if isinstance(family, WrappedFamily):
            raise UnsupportedError(
                f"{family.architectures[0]} is not described for {self.name}, which names the parameters of the "
                f"{architecture} inside it differently",
                hint="prove it for the native target, and stream it through vLLM's own loader",
            )
        known = self.described.get(architecture)
        if known is None:
            raise UnsupportedError(
                f"{architecture} is not described for {self.name}" + ("" if family in FAMILIES else NOT_OF_PLUGINS),
                hint=f"described: {', '.join(self.described)}",
            )
        if obstacle := known.obstacle(config):
            raise UnsupportedError(f"{architecture} is not described for {self.name}: {obstacle}")
        return Target(
            self.name,
            tuple(_renamed(p, known) for p in family.native if known.drafts or not _is_of_draft(p)),
            layer="model.layers.{layer}",
            draft="model.layers.{layer}.mtp_block" if known.drafts else None,
            formats={"fp8_block": ("weight_scale_inv",)},
            fixed=True,
            dtypes={"F32": "BF16"},  # unless F32 is requested
            sends=known.sends,
        )


def _renamed(param: Param, known: Described) -> Param:
    if param.stage is not None:
        stage = "every" if known.on_every_stage else param.stage
        otherwise = param.otherwise and _of_model(param.otherwise)
        return replace(param, name=_of_model(param.name), otherwise=otherwise, stage=stage)
    if _is_of_draft(param):
        otherwise = param.otherwise and _of_model(param.otherwise)
        return replace(param, name=param.name.replace("{block}", "{draft}"), otherwise=otherwise)
    inside = param.name.removeprefix("{block}.")
    old, new = next((pair for pair in known.modules if inside.startswith(pair[0])), ("", ""))
    name = new + inside.removeprefix(old)
    return replace(param, name=f"{{block}}.{name}", keep=dict(known.keep).get(name))


def _is_of_draft(param: Param) -> bool:
    return param.parts[0].startswith("mtp.")


def _of_model(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
