"""Says what a stored weight is, and how tensor-parallel ranks divide it, by the names that known families use.

A name that is in no table here is not guessed: every rank holds such a tensor, and the draft asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from loadmaster.describe.dims import Dim, Sizes, words_of
from loadmaster.describe.stored import Weight

Way = Literal["rows", "columns", "whole", "vocabulary"]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of weight. ``name`` is an anchored pattern of its module's name.

    ``dims`` are expressions (`loadmaster.describe.dims.NAMES`) that each dim may be. ``units`` are, beside those of the
    divided dim, the unit in which ranks divide it. ``beside`` is a pattern that another module of the same layer has.
    """

    name: str
    logical: str
    dims: tuple[tuple[str, ...], ...]
    way: Way = "whole"
    units: tuple[str, ...] = ()
    repeat: bool = False
    beside: str = ""


HIDDEN: Final = ("hidden",)
_Q = ("heads * head", "2 * heads * head", "heads * (nope + rope)")
_Q_UNITS = ("head", "2 * head", "nope + rope")
_INNER: Final = {
    "mlp": ("inner",),
    "moe": ("moe_inner",),
    "shared": ("num_shared * moe_inner", "shared_inner", "inner"),
}
_ANY_Q = r".*\.(q_proj|wq|qkv_proj|q_b_proj|wq_b|query_key_value|W_pack|Wqkv|c_attn|wqkv)"

ROLES: Final[tuple[Role, ...]] = (
    Role(r"input_layernorm|ln_1|attention_norm|operator_norm", "input_norm", (HIDDEN,)),
    Role(r"post_attention_layernorm|ln_2|ffn_norm", "post_norm", (HIDDEN,)),
    Role(r"\w*(attn|attention)\.(q_proj|wq)", "attn.q", (_Q, HIDDEN), "rows", _Q_UNITS),
    Role(r"\w*(attn|attention)\.(k_proj|wk)", "attn.k", (("kv_heads * head",), HIDDEN), "rows", ("head",), True),
    Role(r"\w*(attn|attention)\.(v_proj|wv)", "attn.v", (("kv_heads * head",), HIDDEN), "rows", ("head",), True),
    Role(
        r"\w*(attn|attention)\.(o_proj|wo|out_proj|dense|c_proj)",
        "attn.o",
        (HIDDEN, ("heads * head", "heads * value")),
        "columns",
        ("head", "value"),
        beside=_ANY_Q,
    ),
    Role(
        r"\w*(attn|attention)\.(q_norm|query_layernorm|q_layernorm)",
        "attn.q_norm",
        (("head", "heads * head"),),
        "rows",
        ("", "head"),
    ),
    Role(
        r"\w*(attn|attention)\.(k_norm|key_layernorm|k_layernorm)",
        "attn.k_norm",
        (("head", "kv_heads * head"),),
        "rows",
        ("", "head"),
        True,
    ),
    Role(r"\w*attn\.(q_a_proj|wq_a)", "attn.q_a", (("q_rank",), HIDDEN)),
    Role(r"\w*attn\.(q_a_layernorm|q_norm)", "attn.q_a_norm", (("q_rank",),)),
    Role(r"\w*attn\.(q_b_proj|wq_b)", "attn.q_b", (("heads * (nope + rope)",), ("q_rank",)), "rows", ("nope + rope",)),
    Role(r"\w*attn\.kv_a_proj_with_mqa", "attn.kv_a", (("kv_rank + rope",), HIDDEN)),
    Role(r"\w*attn\.kv_a_layernorm", "attn.kv_a_norm", (("kv_rank",),)),
    Role(r"\w*attn\.kv_b_proj", "attn.kv_b", (("heads * (nope + value)",), ("kv_rank",)), "rows", ("nope + value",)),
    *(
        role
        for where, logical in (
            (r".*\bexperts\.\{expert\}", "moe"),
            (r".*shared\w*", "shared"),
            (r"\w*(mlp|ffn|feed_forward)", "mlp"),
        )
        for role in (
            Role(where + r"\.(gate_proj|w1)", f"{logical}.gate", (_INNER[logical], HIDDEN), "rows", ("",)),
            Role(
                where + r"\.(up_proj|w3|c_fc|fc1|dense_h_to_4h)",
                f"{logical}.up",
                (_INNER[logical], HIDDEN),
                "rows",
                ("",),
            ),
            Role(
                where + r"\.(down_proj|w2|c_proj|fc2|dense_4h_to_h)",
                f"{logical}.down",
                (HIDDEN, _INNER[logical]),
                "columns",
                ("",),
            ),
        )
    ),
    Role(r"\w+\.(gate|router|gate\.wg)", "moe.router", (("experts",), HIDDEN), beside=r".*experts.*"),
    Role(
        r"\w+\.(gate\.|router\.)?(e_score_correction_bias|expert_bias)",
        "moe.router_bias",
        (("experts",),),
        beside=r".*experts.*",
    ),
    Role(r"\w+\.shared_expert_gate", "shared.router", (("1",), HIDDEN)),
    Role(r"eh_proj", "mtp.eh_proj", (HIDDEN, ("2 * hidden",))),
    Role(r"enorm", "mtp.enorm", (HIDDEN,)),
    Role(r"hnorm", "mtp.hnorm", (HIDDEN,)),
    Role(r"shared_head\.norm", "mtp.norm", (HIDDEN,)),
    Role(r"embed_tokens", "mtp.embed", (("vocab",), HIDDEN), "vocabulary"),
    Role(r"shared_head\.head", "mtp.head", (("vocab",), HIDDEN), "vocabulary"),
)
"""The weights of layers that are known by name and shape."""

TOP: Final[tuple[Role, ...]] = (
    Role(
        r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding)",
        "embed",
        (("vocab",), HIDDEN),
        "vocabulary",
    ),
    Role(r"(.*\.)?(lm_head|embed_out|output|output_layer)", "head", (("vocab",), HIDDEN), "vocabulary"),
    Role(r"(.*\.)?(norm|ln_f|final_layernorm|final_layer_norm|embedding_norm)", "norm", (HIDDEN,)),
)
"""The weights of the model itself."""


@dataclass(frozen=True, slots=True)
class Described:
    """A logical tensor of the draft. ``stored`` is its stored name; ``parts`` are those of one stored tensor, if several.

    ``doubts`` are sentences on what is not certain. ``known`` says whether a role was found.
    """

    logical: str
    stored: str
    dims: tuple[Dim, ...]
    placement: str = ""
    linear: bool = False
    experts: str = ""
    keep: str = ""
    parts: tuple[str, ...] = ()
    stacked: bool = False
    transposed: bool = False
    doubts: tuple[str, ...] = field(default=())
    known: bool = True


def module_of(name: str) -> tuple[str, bool]:
    """Return the module of a stored weight, and whether it is a bias.

    >>> module_of("self_attn.q_proj.bias"), module_of("mlp.experts.gate_up_proj_bias")
    (('self_attn.q_proj', True), ('mlp.experts.gate_up_proj', True))
    """
    module = re.sub(r"\.(weight|bias)$", "", name)
    if module != name:
        return module, name.endswith(".bias")
    return (name.removesuffix("_bias"), True) if name.endswith("_proj_bias") else (name, False)


def describe(weight: Weight, beside: Collection[str], sizes: Sizes, roles: Sequence[Role]) -> list[Described]:
    """Return the logical tensors of one stored weight: one, or several that it holds one after another."""
    module, is_bias = module_of(weight.name)
    if not is_bias and (fused := _fused(weight, module, sizes)):
        return fused
    experts = _experts(weight, sizes)
    for role in roles:
        if re.fullmatch(role.name, module) is None or len(role.dims) != len(weight.shape) + is_bias * (
            len(role.dims) - 1
        ):
            continue
        if role.beside and not any(re.fullmatch(role.beside, other) for other in beside):
            continue
        dims = [sizes.matching(n, t) for n, t in zip(weight.shape, role.dims, strict=False)]
        if None in dims and (not is_bias and any(d is None for d in dims[1:])) and role.way == "whole":
            continue
        words = words_of(weight.name)
        found = tuple(d or sizes.find(n, words) for d, n in zip(dims, weight.shape, strict=True))
        return [_placed(role, weight, found, sizes, experts, is_bias=is_bias, certain=None not in dims)]
    return [_unknown(weight, module, is_bias, sizes, experts)]


def _placed(
    role: Role, weight: Weight, dims: tuple[Dim, ...], sizes: Sizes, experts: str, *, is_bias: bool, certain: bool
) -> Described:
    doubts = [f"{weight.name}: {d.doubt}" for d in dims if d.doubt]
    logical = f"{role.logical}_bias" if is_bias else role.logical
    placement, divided = "", {"rows": 0, "columns": 1}.get(role.way)
    if role.way == "vocabulary":
        placement = "by_vocabulary()"
    elif divided is not None and (divided == 0 or not is_bias):
        templates = role.dims[divided]
        chosen = next(
            (i for i, t in enumerate(templates) if (d := sizes.evaluate(t)) and d.value == dims[divided].value), None
        )
        unit = role.units[min(chosen or 0, len(role.units) - 1)] if role.units else ""
        evaluated = sizes.evaluate(unit) if unit else None
        name = {0: "by_rows", 1: "by_columns"}[divided]
        if role.units == ("",) or evaluated is not None:
            arguments = ([evaluated.text] if evaluated else []) + (["repeat=True"] if role.repeat else [])
            placement = f"{name}({', '.join(arguments)})"
            if evaluated is not None:
                sizes.matching(evaluated.value, (unit,))
        if chosen is None:
            doubts.append(
                f"{weight.name}: its size {dims[divided].value} is not the usual one; in which units do ranks divide it?"
            )
    keep = '"F32"' if role.logical == "moe.router_bias" else ""
    return Described(
        logical,
        weight.name,
        dims,
        placement,
        linear=_is_linear(weight, role.logical),
        experts=experts,
        keep=keep,
        doubts=tuple(doubts),
    )


def _is_linear(weight: Weight, logical: str) -> bool:
    plain = ("moe.router", "embed", "mtp.embed", "mtp.head", "mtp.eh_proj")
    return len(weight.shape) == 2 and (weight.format is not None or logical not in plain)


def _experts(weight: Weight, sizes: Sizes) -> str:
    if not weight.experts:
        return ""
    dim = sizes.matching(weight.experts, ("experts",))
    return dim.text if dim else str(weight.experts)


def _unknown(weight: Weight, module: str, is_bias: bool, sizes: Sizes, experts: str) -> Described:
    words = words_of(weight.name)
    dims = tuple(sizes.find(n, words) for n in weight.shape)
    is_norm = len(dims) == 1 and re.search(r"norm|^ln_|layer_?norm", module) is not None
    is_whole = is_norm or re.search(r"\bindexer\b", module) is not None
    doubts = [f"{weight.name}: {d.doubt}" for d in dims if d.doubt]
    if not is_whole:
        doubts.insert(
            0,
            f"{weight.name} {list(weight.shape)}: what is it, and how do ranks divide it? The draft gives every rank all of it",
        )
    elif is_norm and dims[0].text != sizes.key("hidden") and re.search(r"attn|attention", module) is None:
        doubts.append(
            f"{weight.name}: a norm of {dims[0].value} elements; every rank holds all of it, unless they divide what it norms"
        )
    logical = module.replace("{expert}.", "") + ("_bias" if is_bias else "")
    return Described(
        logical,
        weight.name,
        dims,
        linear=_is_linear(weight, ""),
        experts=experts,
        doubts=tuple(doubts),
        known=is_whole,
    )


def _fused(weight: Weight, module: str, sizes: Sizes) -> list[Described]:
    """Return the parts of a tensor that holds several by its name and its size: q, k, v; gate and up; a stack of experts."""
    if re.fullmatch(r".*experts\.(gate_up_proj|down_proj)", module) and len(weight.shape) == 3:
        return _stack(weight, module, sizes)
    if len(weight.shape) != 2 or "experts" in module:
        return []
    rows, columns = weight.shape
    hidden = sizes.evaluate("hidden")
    if hidden is None or columns != hidden.value:
        return []
    if re.fullmatch(r"\w*(attn|attention)\.(qkv_proj|query_key_value|W_pack|Wqkv|c_attn|wqkv)", module):
        whole = sizes.evaluate("(heads + 2 * kv_heads) * head")
        if whole is not None and whole.value == rows:
            doubt = f"{weight.name}: it holds q, k and v; does q come first, whole, then k, then v?"
            return _parts(
                weight,
                sizes,
                ("attn.q", "attn.k", "attn.v"),
                ("heads * head", "kv_heads * head", "kv_heads * head"),
                doubt,
            )
    if re.fullmatch(r"\w*(mlp|shared\w*|feed_forward)(\.shared\w*)?\.(gate_up_proj|input_linear)", module):
        where = "shared" if "shared" in module else "mlp"
        inner = next((t for t in _INNER[where] if (d := sizes.evaluate(t)) and 2 * d.value == rows), None)
        if inner:
            doubt = f"{weight.name}: it holds gate and up; is gate first?"
            return _parts(weight, sizes, (f"{where}.gate", f"{where}.up"), (inner, inner), doubt)
    return []


def _parts(weight: Weight, sizes: Sizes, parts: tuple[str, ...], rows: tuple[str, ...], doubt: str) -> list[Described]:
    result = []
    for part, template in zip(parts, rows, strict=True):
        role = next(r for r in ROLES if r.logical == part)
        size = sizes.evaluate(template)
        assert size is not None
        sizes.matching(size.value, (template,))
        one = _placed(
            role,
            weight,
            (size, sizes.find(weight.shape[1], words_of(weight.name))),
            sizes,
            "",
            is_bias=False,
            certain=True,
        )
        result.append(replace(one, parts=parts, doubts=(*one.doubts, doubt) if part == parts[0] else one.doubts))
    return result


def _stack(weight: Weight, module: str, sizes: Sizes) -> list[Described]:
    """Return the parts of a stack of experts, ``[experts, out, in]`` or, transposed, ``[experts, in, out]``."""
    hidden, inner, count = sizes.evaluate("hidden"), sizes.evaluate("moe_inner"), sizes.evaluate("experts")
    if hidden is None or inner is None or count is None or weight.shape[0] != count.value:
        return []
    is_down = module.endswith("down_proj")
    straight = (hidden.value, inner.value) if is_down else (2 * inner.value, hidden.value)
    if weight.shape[1:] not in (straight, straight[::-1]):
        return []
    for template in ("hidden", "moe_inner", "experts"):
        sizes.matching({"hidden": hidden, "moe_inner": inner, "experts": count}[template].value, (template,))
    transposed = weight.shape[1:] != straight
    doubt = f"{weight.name}: it holds gate and up of each expert; is gate first, or do they alternate?"
    if straight == straight[::-1]:
        doubt += " Its last two dims are equal: are they [out, in]?"
    down = Described(
        "moe.down",
        weight.name,
        (hidden, inner),
        "by_columns()",
        linear=True,
        experts=count.text,
        parts=("moe.down",),
        stacked=True,
        transposed=transposed,
    )
    if is_down:
        return [down]
    gate = replace(down, logical="moe.gate", dims=(inner, hidden), placement="by_rows()", parts=("moe.gate", "moe.up"))
    return [replace(gate, doubts=(doubt,)), replace(gate, logical="moe.up")]
