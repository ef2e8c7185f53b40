"""Puts the draft of a family together: kinds of layers, logical tensors, names, and the questions that are left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loadmaster.architectures.aliases import architecture_of
from loadmaster.architectures.config import Config
from loadmaster.architectures.mlx import key_of_mlx
from loadmaster.architectures.registry import LANGUAGE_SECTIONS
from loadmaster.architectures.schema import Family, Schema
from loadmaster.checkpoint.table import Signature
from loadmaster.describe.dims import NAMES, Sizes
from loadmaster.describe.encoded import decoded
from loadmaster.describe.layers import Rule, find_rule
from loadmaster.describe.roles import ROLES, TOP, Described, describe, module_of
from loadmaster.describe.stored import Weight, formats_of, group
from loadmaster.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True)
class Draft:
    """A family to be: what its file will say.

    ``prefix`` precedes a layer's number. ``layers`` gives the kind of each decoder layer, ``drafts`` of each MTP layer,
    ``rule`` says where the kinds come from (None: one kind, or not known), ``count_keys`` are the config's keys for the
    numbers of both. ``keys`` are the keys that sizes are made of. ``waived`` counts the tensors left unread, by prefix.
    """

    architecture: str
    values: Mapping[str, Any]
    section: str | None
    prefix: str
    top: tuple[Described, ...]
    kinds: Mapping[str, tuple[Described, ...]]
    layers: tuple[str, ...]
    drafts: tuple[str, ...]
    rule: Rule | None
    count_keys: tuple[str | None, str | None]
    keys: tuple[str, ...]
    f32: frozenset[str]
    formats: Mapping[str, int]
    waived: Mapping[str, int]
    questions: tuple[str, ...]

    @property
    def name(self) -> str:
        """The family's name, as a Python name: of the model type, or else of the architecture.

        >>> name_of({}, "Starcoder2ForCausalLM")
        'starcoder2'
        """
        return name_of(self.values, self.architecture)


def name_of(values: Mapping[str, Any], architecture: str) -> str:
    """Return the name of a family of this architecture, in lower case."""
    model_type = values.get("model_type")
    text = model_type if isinstance(model_type, str) and model_type else re.sub(r"(For|LMHead).*", "", architecture)
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:60] or "model"


def draft_family(tensors: Mapping[str, Signature], config: Mapping[str, Any]) -> Draft:
    """Draft the family of a model from the names, shapes and dtypes of its tensors and its config.json.

    Raises:
        ConfigError: the config names no architecture.
        CheckpointError: no stored name has a layer's number.
    """
    architecture = architecture_of(config)
    if architecture is None:
        raise ConfigError(
            "config.json names no architecture",
            hint='"architectures" must be a list with the model class, such as ["LlamaForCausalLM"]',
        )
    section = _section(config)
    values = _reader(architecture, section).describe(config).values
    sizes = Sizes(values)
    tensors, questions = decoded(tensors, values, sizes)
    layers_key = sizes.key("layers")
    grouped = group(tensors, values[layers_key] if layers_key else None)
    if grouped is None:
        raise CheckpointError(
            "no tensor's name has the number of a layer, so no layers can be described",
            hint="`loadmaster inspect --match .` lists the names",
        )
    stack = grouped.stack
    num_layers = values[layers_key] if layers_key else len(stack.layers)
    if layers_key is None:
        questions.append(f"no key of the config gives the number of layers; {num_layers} are stored")
    missing = [n for n in range(num_layers) if n not in stack.layers]
    if missing:
        questions.append(
            f"{len(missing)} of {num_layers} layers are not stored (the first is {missing[0]}): is the checkpoint whole?"
        )

    by_tensors: dict[tuple[tuple[str, tuple[int, ...], int], ...], str] = {}
    kinds: dict[str, tuple[Described, ...]] = {}
    names: dict[int, str] = {}
    owners: dict[str, str] = {}
    for number, weights in stack.layers.items():
        key = (
            (*((w.name, w.shape, w.experts) for w in weights), ("mtp", (), 0))
            if number >= num_layers
            else tuple((w.name, w.shape, w.experts) for w in weights)
        )
        if key not in by_tensors:
            label = f"kind {len(by_tensors)}" if number < num_layers else f"mtp {len(by_tensors)}"
            by_tensors[key] = label
            kinds[label] = _described(weights, sizes, ROLES, owners)
        names[number] = by_tensors[key]
    labels = _labels(kinds)
    kinds = {labels[k]: v for k, v in kinds.items()}
    layers = tuple(labels[names[n]] for n in range(num_layers) if n in names)
    drafts = tuple(labels[names[n]] for n in sorted(names) if n >= num_layers)

    rule = None
    if len(set(layers)) > 1:
        rule, others = find_rule(layers, values)
        if rule is None:
            questions.append(
                "no key of the config says which layer is of which kind; the draft lists them. What is the rule?"
            )
        elif others:
            questions.append(
                f"the kinds of layers follow {rule.text}, and in this model also {' and '.join(others)}: which is meant?"
            )
    top = _described(grouped.top, sizes, TOP, owners)
    for t in (*top, *(t for tensors in kinds.values() for t in tensors)):
        questions += t.doubts
    questions += [
        f"{count} tensors under {prefix} are left unread: what are they?" for prefix, count in grouped.others.items()
    ]
    tied = values.get("tie_word_embeddings")
    if any(t.logical == "head" for t in top) and tied is True:
        questions.append("the config ties the head to the embedding, and a head is stored: the draft leaves it unread")
    if all(t.logical != "head" for t in top) and tied is False:
        questions.append("no head is stored, and the config does not tie it to the embedding: under which name is it?")
    drafts_key = next(
        (k for k, v in values.items() if re.search("nextn|mtp|draft", k) and type(v) is int and v == len(drafts)), None
    )
    if drafts and drafts_key is None:
        questions.append(
            f"{len(drafts)} layers are stored after the {num_layers} of the config: MTP layers? Which key counts them?"
        )
    every = [*grouped.top, *(w for weights in stack.layers.values() for w in weights)]
    formats = formats_of(every)
    is_said = isinstance(values.get("quantization_config"), Mapping) or key_of_mlx(values) is not None
    if any(w.format for w in every) and not is_said:
        questions.append("weights are quantised, and the config has no quantization_config: plan needs one")
    if switches := [k for k, v in values.items() if type(v) is bool and re.search("bias|norm|tie|gate|shared|use_", k)]:
        questions.append(
            f"which of these switches adds or removes tensors? The draft has those of this checkpoint: {', '.join(switches)}"
        )
    return Draft(
        architecture=architecture,
        values=values,
        section=section,
        prefix=stack.prefix,
        top=top,
        kinds=kinds,
        layers=layers,
        drafts=drafts,
        rule=rule,
        count_keys=(layers_key, drafts_key),
        keys=tuple(k for k in sizes.used if k),
        f32=frozenset(w.name for w in every if w.dtype == "F32" and w.format is None),
        formats=formats,
        waived=grouped.others,
        questions=tuple(dict.fromkeys(questions)),
    )


def _section(config: Mapping[str, Any]) -> str | None:
    """Return the section that describes the language model, where the config itself does not."""
    if any(k in config for k in NAMES["layers"]):
        return None
    sections = [k for k, v in config.items() if isinstance(v, Mapping) and any(n in v for n in NAMES["layers"])]
    return next((k for k in LANGUAGE_SECTIONS if k in sections), None)


def _reader(architecture: str, section: str | None) -> Family:
    """Return a family without tables, which reads a config as the drafted one will."""

    def schema(_: Config) -> Schema:
        raise NotImplementedError

    return Family("draft", (architecture,), schema, {}, (), section=section)


def _described(
    weights: Sequence[Weight], sizes: Sizes, roles: Sequence[Any], owners: dict[str, str]
) -> tuple[Described, ...]:
    """Return the logical tensors of a layer. A logical name belongs to one stored name, in all kinds (``owners``)."""
    modules = [module_of(w.name)[0] for w in weights]
    result, taken = [], set[str]()
    for weight in weights:
        for t in describe(weight, modules, sizes, roles):
            logical = t.logical
            if owners.setdefault(logical, weight.name) != weight.name or logical in taken:
                logical = re.sub(r"\.weight$", "", weight.name).replace("{expert}.", "").replace(".bias", "_bias")
                owners.setdefault(logical, weight.name)
            taken.add(logical)
            result.append(replace(t, logical=logical))
    return tuple(result)


def _labels(kinds: Mapping[str, tuple[Described, ...]]) -> dict[str, str]:
    """Return names for the kinds: by what they have and others lack."""
    decoders = {k: v for k, v in kinds.items() if k.startswith("kind")}
    has = {
        k: {
            part
            for t in v
            for part, seen in (("sparse", "experts" in t.stored), (t.stored.split(".")[0], "." in t.stored))
            if seen
        }
        for k, v in decoders.items()
    }
    common = set.intersection(*has.values()) if has else set[str]()
    labels: dict[str, str] = {}
    for kind in kinds:
        if kind not in has:
            label = "mtp"
        elif len(has) == 1:
            label = "layer"
        else:
            words = sorted(w for w in has[kind] - common if w not in ("input_layernorm", "post_attention_layernorm"))
            if any("sparse" in h for h in has.values()) and "sparse" not in has[kind]:
                words = ["dense", *words]
            label = "/".join(words) or "layer"
        number = sum(other == label or other.startswith(f"{label} ") for other in labels.values())
        labels[kind] = f"{label} {number + 1}" if number else label
    return labels
