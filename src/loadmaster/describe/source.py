"""Writes a draft as the Python source of a family's file: each guess is marked, and refers to a question in the docstring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from loadmaster.architectures import blocks
from loadmaster.architectures.schema import Param
from loadmaster.describe.dims import RESERVED
from loadmaster.describe.draft import Draft
from loadmaster.describe.roles import Described

WIDTH = 116

NATIVES: Mapping[str, Sequence[Param]] = {
    "blocks.TOP_NATIVE": blocks.TOP_NATIVE,
    "blocks.NORMS_NATIVE": blocks.NORMS_NATIVE,
    "blocks.ATTENTION_NATIVE": blocks.ATTENTION_NATIVE,
    "blocks.gated_mlp_native()": blocks.gated_mlp_native(),
    "blocks.PLAIN_MLP_NATIVE": blocks.PLAIN_MLP_NATIVE,
    "blocks.EXPERTS_NATIVE": blocks.EXPERTS_NATIVE,
    "blocks.SHARED_EXPERT_NATIVE": blocks.SHARED_EXPERT_NATIVE,
    "blocks.DRAFT_NATIVE": blocks.DRAFT_NATIVE,
}
"""Parameters that families share, as they are written in a family's file."""


def family_source(draft: Draft, model: str) -> str:
    """Return the source of the family's file. ``model`` is what it was drafted from."""
    number = {q: i for i, q in enumerate(draft.questions, 1)}
    schema = list(_schema(draft, number))
    spelling, native, family = list(_spelling(draft)), list(_native(draft)), list(_family(draft))
    body = "\n".join([*schema, "", "", *spelling, "", *native, "", *family])
    names = (
        "Config",
        "Family",
        "Param",
        "Schema",
        "Tensor",
        "blocks",
        "by_columns",
        "by_rows",
        "by_vocabulary",
        "embedding",
        "linear",
        "packed",
    )
    used = [n for n in names if re.search(rf"\b{n}\b", body)]
    imports = ["from loadmaster.architectures import (", *(f"    {n}," for n in used), ")"]
    return "\n".join([*_docstring(draft, model), "", *imports, "", "", body, ""])


def _docstring(draft: Draft, model: str) -> Iterator[str]:
    yield f'"""{draft.architecture}: a draft by `loadmaster describe`, to be checked before it is trusted.'
    yield ""
    stored = ", ".join(f"{count} {name}" for name, count in draft.formats.items())
    yield from wrap(
        _safe(f"Made from the headers and the config of {model}. Weights of one layer, by format: {stored}."), WIDTH
    )
    yield ""
    yield (
        "Lines marked `guess` are not certain. Questions to answer:"
        if draft.questions
        else "There are no open questions."
    )
    yield ""
    for i, question in enumerate(draft.questions, 1):
        yield from wrap(_safe(f"{i}. {question}"), WIDTH, subsequent_indent="   ")
    yield '"""'


def _safe(text: str) -> str:
    """Return text that can stand in a docstring: names and keys come from files."""
    return text.replace("\\", "/").replace('"', "'")


def _quoted(text: str) -> str:
    return json.dumps(text)


def _schema(draft: Draft, number: Mapping[str, int]) -> Iterator[str]:
    yield "def schema(c: Config) -> Schema:"
    yield '    """Return the logical tensors that ``c`` describes."""'
    derived = [k for k in draft.keys if k not in draft.values]
    for key in (*(k for k in draft.keys if k in draft.values), *derived):
        if key in derived:
            hidden, heads = (next(k for k in draft.keys if k in names) for names in (_HIDDEN, _HEADS))
            yield f"    {key} = c.size({_quoted(key)}, {hidden} // {heads})"
        else:
            yield f"    {key} = c.size({_quoted(key)})"
    groups: dict[tuple[str, tuple[Described, ...]], str] = {}
    of_kind: dict[str, list[str]] = {}
    for kind, tensors in draft.kinds.items():
        by_part: dict[str, list[Described]] = {}
        for t in tensors:
            by_part.setdefault(_part_of(t), []).append(t)
        for part, members in by_part.items():
            key_of = (part, tuple(members))
            if key_of not in groups:
                taken = {*groups.values(), *draft.keys, *RESERVED}
                groups[key_of] = next(n for n in (part, *(f"{part}_{i}" for i in range(2, 999))) if n not in taken)
                yield f"    {groups[key_of]} = ("
                for t in members:
                    yield from _tensor(t, draft, number)
                yield "    )"
            of_kind.setdefault(kind, []).append(groups[key_of])
    head = [t for t in draft.top if t.logical == "head"]
    kinds = dict(draft.rule.kinds) if draft.rule else {}
    if kinds:
        yield f"    kind_of = {{{', '.join(f'{_literal(v)}: {_quoted(k)}' for v, k in kinds.items())}}}"
    yield "    return Schema("
    yield "        top=("
    for t in draft.top:
        if t.logical != "head":
            yield from _tensor(t, draft, number, indent=12)
    if head:
        yield '            *(() if c.flag("tie_word_embeddings") else ('
        yield from _tensor(head[0], draft, number, indent=16)
        yield "            )),"
    yield "        ),"
    yield "        kinds={"
    for kind, variables in of_kind.items():
        yield f"            {_quoted(kind)}: ({', '.join(f'*{v}' for v in variables)},),"
    yield "        },"
    layers_key, drafts_key = draft.count_keys
    count = f"c.size({_quoted(layers_key)})" if layers_key else str(len(draft.layers))
    if draft.rule:
        yield f"        layers=tuple(kind_of[{draft.rule.text}] for i in range({count})),"
    elif len(set(draft.layers)) == 1:
        yield f"        layers=({_quoted(draft.layers[0])},) * {count},"
    else:
        yield f"        layers=({', '.join(map(_quoted, draft.layers))}),  # guess: no rule was found"
    if draft.drafts and len(set(draft.drafts)) == 1:
        times = f"c.size({_quoted(drafts_key)}, 0, least=0)" if drafts_key else f"{len(draft.drafts)}  # guess"
        yield f"        drafts=({_quoted(draft.drafts[0])},) * {times},"
    elif draft.drafts:
        yield f"        drafts=({', '.join(map(_quoted, draft.drafts))},),"
    yield "    )"


_HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _part_of(t: Described) -> str:
    first, dot, _ = t.stored.partition(".")
    part = re.sub(r"\W", "_", first) if dot and "norm" not in first else "norms"
    return part if part.isidentifier() else f"part_{part}"


def _tensor(t: Described, draft: Draft, number: Mapping[str, int], indent: int = 8) -> Iterator[str]:
    shape = [d.text for d in t.dims]
    tail = [t.placement] if t.placement else []
    if t.experts:
        tail.append(f"experts={t.experts}")
    if t.keep:
        tail.append(f"keep={t.keep}")
    if t.stored in draft.f32 and draft.values.get("torch_dtype", draft.values.get("dtype")) != "float32" and not t.keep:
        tail.append('usual=("F32",)')
    plain = any(x.startswith(("keep", "usual")) for x in tail)
    if t.linear and len(shape) == 2 and not plain and t.logical != "head":
        arguments = [*shape, *tail]
        call = f"linear({_quoted(t.logical)}, {', '.join(arguments)})"
    else:
        more = ["quantised=True"] if t.linear else []
        if t.logical == "head":
            more.append("rarely=True")
        call = f"Tensor({_quoted(t.logical)}, ({', '.join(shape)}{',' if len(shape) == 1 else ''}), {', '.join([*tail, *more])}"
        call = call.removesuffix(", ") + ")"
    about = sorted({number[d] for d in t.doubts if d in number})
    marks = f"  # guess: question{'s' if len(about) > 1 else ''} {', '.join(map(str, about))}" if about else ""
    yield f"{' ' * indent}{call},{marks}"


def _spelling(draft: Draft) -> Iterator[str]:
    yield f"LAYER = {_quoted(draft.prefix + '{layer}.')}"
    yield "SPELLING = {"
    done: set[str] = set()
    for t in draft.top:
        yield f"    {_quoted(t.logical)}: {_quoted(t.stored)},"
    for t in (t for tensors in draft.kinds.values() for t in tensors):
        if t.logical in done:
            continue
        done.add(t.logical)
        if t.parts and t.logical == t.parts[0]:
            options = "".join(f", {n}=True" for n in ("stacked", "transposed") if getattr(t, n))
            yield f"    **packed(LAYER + {_quoted(t.stored)}, {', '.join(map(_quoted, t.parts))}{options}),"
        elif not t.parts:
            yield f"    {_quoted(t.logical)}: LAYER + {_quoted(t.stored)},"
    yield "}"


def _native(draft: Draft) -> Iterator[str]:
    top = {t.logical for t in draft.top}
    kinds = [{t.logical for t in tensors} for tensors in draft.kinds.values()]
    left = top | set[str]().union(*kinds)
    yield "NATIVE = ("
    for text, params in NATIVES.items():
        covered = {part for p in params for part in p.parts} & left
        whole = all(
            not here or here == set(p.parts)
            for p in params
            for held in (top, *kinds)
            for here in (held & set(p.parts),)
        )
        if covered and whole:
            left -= covered
            yield f"    *{text},"
    for t in draft.top:
        if t.logical in left:
            yield f'    Param({_quoted(t.stored)}, ({_quoted(t.logical)},), stage="first"),  # guess: on which stage?'
    done: set[str] = set()
    for t in (t for tensors in draft.kinds.values() for t in tensors):
        if t.logical in left and t.logical not in done:
            done.add(t.logical)
            name = t.stored.replace("{expert}.", "") if not t.parts else f"{t.stored.rpartition('.')[0]}.{t.logical}"
            yield f"    Param({_quoted('{block}.' + name)}, ({_quoted(t.logical)},)),"
    yield ")"


def _family(draft: Draft) -> Iterator[str]:
    yield "FAMILY = Family("
    yield f"    name={_quoted(draft.name)},"
    yield f"    architectures=({_quoted(draft.architecture)},),"
    yield "    schema=schema,"
    yield "    spelling=SPELLING,"
    yield "    native=NATIVE,"
    if draft.section:
        yield f"    section={_quoted(draft.section)},"
    yield "    waived=("
    yield "        blocks.INV_FREQ,"
    for prefix in draft.waived:
        pattern = re.escape(prefix) + (".*" if prefix.endswith(".") else "")
        yield f"        ({_quoted(pattern)}, {_quoted('not described: what is it?')}),  # guess"
    yield "    ),"
    yield ")"
