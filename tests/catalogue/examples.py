"""For each code of the catalogue a checkpoint, a config or a plan that gets it; the findings' words are the examples."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from loadmaster.architectures.algebra import Cast, Leaf, decode, restrict, stored
from loadmaster.audit.case import ACCEPTED
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import InputError
from loadmaster.findings import Finding
from loadmaster.formats import awq
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, WaiverRequest, build_plan, prove
from loadmaster.plan.lock import Lock, check_lock, lock_of
from loadmaster.plan.waivers import Waiver
from loadmaster.report.json import findings_of
from loadmaster.sizing import MemoryOptions, measure_proof, with_memory
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from tests.architectures.packages import install
from tests.failures.damaged import INDEX, DamagedCheckpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 5360000000\n"
GLM = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
Change = Callable[[DamagedCheckpoint], object]


def shard(i: int) -> str:
    return f"model-{i:05d}-of-00003.safetensors"


def rewritten(file: str, change: Callable[[bytes], bytes]) -> Change:
    """Return the change of one file's bytes."""
    return lambda m: (m.path / file).write_bytes(change((m.path / file).read_bytes()))


def header(old: bytes, new: bytes) -> Change:
    """Return the change of the first place in the second shard's header; the lengths are the same."""
    assert len(old) == len(new)
    return rewritten(shard(2), lambda b: b.replace(old, new, 1))


def index(change: Callable[[dict[str, str]], object], **metadata: int) -> Change:
    def write(m: DamagedCheckpoint) -> None:
        weight_map = json.loads((m.path / INDEX).read_text())["weight_map"]
        change(weight_map)
        (m.path / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))

    return write


def forgotten(file: str) -> Change:
    def forget(weight_map: dict[str, str]) -> None:
        for name in [n for n, f in weight_map.items() if f == file]:
            del weight_map[name]

    return index(forget)


def duplicate_key(content: bytes) -> bytes:
    """Give the second tensor of a header the name of the first, in as many bytes."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    a, b = [
        json.dumps(n).encode() for n in entries if n.endswith(("experts.1.up_proj.weight", "experts.2.up_proj.weight"))
    ][:2]
    return content.replace(b, a, 1)


def with_a_gap(content: bytes) -> bytes:
    """Move all tensors of a file but the first by 64 bytes."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    first = entries["__metadata__"] and next(e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__")
    for name, entry in entries.items():
        if name != "__metadata__" and entry["data_offsets"][0]:
            entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    text = json.dumps(entries).encode()
    data = content[8 + length :]
    return len(text).to_bytes(8, "little") + text + data[:first] + bytes(64) + data[first:]


def renumbered(m: DamagedCheckpoint) -> object:
    (m.path / INDEX).unlink()
    return (m.path / "model.safetensors").write_bytes((m.path / shard(2)).read_bytes())


FILES: dict[str, Change] = {
    "checkpoint-missing": lambda m: [
        p.rename(p.with_suffix(".bin")) for p in (*m.path.glob("model-*"), m.path / INDEX)
    ],
    "file-lfs-pointer": rewritten(shard(2), lambda b: POINTER),
    "file-empty": rewritten("config.json", lambda b: b""),
    "limit-exceeded": rewritten("config.json", lambda b: b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"),
    "shard-missing": lambda m: (m.path / shard(2)).unlink(),
    "shard-unreadable": lambda m: ((m.path / shard(2)).unlink(), (m.path / shard(2)).symlink_to("nowhere")),
    "file-truncated": rewritten(shard(2), lambda b: b[:-4096]),
    "file-overlong": rewritten(shard(2), lambda b: b + bytes(4096)),
    "header-invalid": rewritten(shard(2), lambda b: b"<!DOCTYPE html>"),
    "header-duplicate-key": rewritten(shard(2), duplicate_key),
    "header-unknown-dtype": header(b'"F8_E4M3"', b'"F8_E9M9"'),
    "header-extent": header(b'"shape":[320]', b'"shape":[321]'),
    "header-tiling": rewritten(shard(2), with_a_gap),
    "tensor-duplicate": renumbered,
    "shard-unindexed": forgotten(shard(2)),
    "shard-stray": lambda m: (m.path / "consolidated.safetensors").touch(),
    "index-invalid": rewritten(INDEX, lambda b: b[:100]),
    "index-disagrees": index(lambda w: w.update({"model.layers.9.input_layernorm.weight": shard(1)})),
    "index-total-size": index(lambda w: None, total_size=756162687872),
    "checkpoint-partial": lambda m: (m.path / "loadmaster.partial.jsonl").write_text(
        '{"loadmaster partial": 1, "origin": {"kind": "hub", "name": "owner/name"}}\n'
        f'{{"file": "{shard(2)}", "size": {2**30}, "etag": null}}\n'
    ),
    "download-partial": lambda m: (m.path / f"{shard(2)}.aria2").touch(),
}

CONFIGURATION: dict[str, Change] = {
    "config-missing": lambda m: (m.path / "config.json").unlink(),
    "config-invalid": lambda m: m.config(hidden_size="320"),
    "config-implausible": lambda m: m.config(max_position_embeddings=10**9),
    "quantization-disagrees": lambda m: (m.path / "hf_quant_config.json").write_text(
        '{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}'
    ),
    "architecture-unknown": lambda m: m.config(architectures=["GlmForever"]),
    "family-unchecked": lambda m: m.config(architectures=["KimiVLForConditionalGeneration"]),
    "plugin-broken": lambda m: m.config(architectures=["AcmeForCausalLM"]),
    "unsupported": lambda m: m.config(quantization_config={"quant_method": "exl2"}),
}

TENSORS: dict[str, Change] = {
    "layer-missing": lambda m: m.drop(r"layers\.2\."),
    "expert-incomplete": lambda m: m.drop(r"layers\.[23]\.mlp\.experts\.[13]\."),
    "tensor-missing": lambda m: m.rename(r"layers\.2\.self_attn\.o_proj", "layers.2.self_attn.out_proj"),
    "tensor-unexpected": lambda m: m.config(index_topk_freq=4, index_skip_topk_offset=3),
    "shape-mismatch": lambda m: m.config(vocab_size=384),
    "dtype-inadmissible": lambda m: m.change(r"layers\.2\.input_layernorm", lambda t: t.to(torch.float8_e4m3fn)),
    "scale-missing": lambda m: m.drop(r"layers\.2\.self_attn\.indexer\.wk\.weight_scale_inv"),
    "scale-stray": lambda m: m.change(r"layers\.2\.self_attn\.o_proj\.weight$", lambda t: t.float().bfloat16()),
    "format-contradiction": lambda m: m.quantization(modules_to_not_convert=["model.layers.2.self_attn.o_proj"]),
    "parts-differ": lambda m: m.change(
        r"layers\.2\.self_attn\.q_a_proj\.weight_scale_inv", lambda t: t.to(torch.float8_e8m0fnu)
    ),
    "tower-unchecked": lambda m: m.copy(r"model\.language_model\.norm", "model.visual.merger.norm"),
    "dtype-noted": lambda m: m.change(r"layers\.2\.mlp\.gate\.e_score", lambda t: t.bfloat16()),
}

WAIVERS: dict[str, list[WaiverRequest]] = {
    "waiver-read": [WaiverRequest("model.layers.2.input_layernorm.*", "not wanted")],
    "waiver-unused": [WaiverRequest("model.vision.*", "not used for text")],
}

LAYOUTS: dict[str, ParallelLayout] = {
    "layout-stages": ParallelLayout(8),
    "layout-cut": ParallelLayout(2, layer_partition=(3, 5)),
    "layout-moved": ParallelLayout(2),
    "layout-indivisible": ParallelLayout(1, 3),
    "tower-missing": ParallelLayout(multimodal=True),
    "tower-unchecked": ParallelLayout(multimodal=True),
}

CUTS = ("glm-5.2-fp8", {**ACCEPTED["glm-5.2-fp8"], "n_routed_experts": 2, "num_experts_per_tok": 1})
"""A model, and its overrides, whose stages vLLM cannot begin everywhere."""


def split_word() -> None:
    """Cut AWQ's words of 8 four columns in: what a layout is checked for before it comes to that."""
    form = awq(32)
    shapes = (component.shape((64, 64)) for component in form.components)
    operands = (stored(Leaf(c.suffix, c.dtypes[0], shape)) for c, shape in zip(form.components, shapes, strict=True))
    restrict(decode(form, tuple(operands), (64, 64)), ((4, 64), (0, 64)))


def tampered(plan: Plan, code: str) -> Plan:
    """Return a plan that breaks one law, as no table of a family does."""
    key = next(iter(plan.composed))
    first, *others = plan.composed[key]
    if code == "law-bytes":
        waivers = (*plan.waivers, Waiver("a waiver too many", 1, 4096))
        return replace(plan, waivers=waivers)
    changed = first
    if code == "law-destination":
        changed = replace(first, pieces=())
    elif code == "law-cast":
        (piece,) = first.pieces
        changed = replace(first, pieces=(replace(piece, source=Cast(Cast(piece.source, "F32"), "BF16")),))
    made = (changed, *others) if code != "law-source" else tuple(others)
    return replace(plan, composed={**plan.composed, key: made})


def unlike_lock(plan: Plan, code: str) -> tuple[Finding, ...]:
    """Return what is found where a lock differs from a plan on it."""
    locked = lock_of(plan, "0.1.0")
    if code == "lock-invalid":
        Lock.from_json(locked.to_json().replace('"lock_version": 1', '"lock_version": 2'))
    differing = {
        "lock-shard": replace(locked, shards={**locked.shards, shard(2): "0" * 64}),
        "lock-config": replace(locked, config="0" * 64),
        "lock-options": replace(locked, options={**locked.options, "pipeline_parallel_size": 2}),
        "lock-version": replace(locked, plan_hash="0" * 64),
    }
    today = lock_of(plan, "0.2.0")
    if code == "lock-commit":
        return check_lock(replace(locked, commit="1" * 40), replace(today, commit="2" * 40))
    return check_lock(differing[code], today)


MANY = {"memory-activations": 131_072}
"""Tokens of a batch."""


def summaries(code: str, folder: Path) -> list[str]:
    """Return what is said where something is wrong as ``code`` says; the folder is called ``glm``."""
    return [f.summary.replace(str(folder), "glm") for f in findings(code, folder) if f.code == code]


def findings(code: str, folder: Path) -> tuple[Finding, ...]:
    """Return what is found where something is wrong as ``code`` says."""
    if code == "memory-capacity":
        write_full_size(PRESETS["llama"], folder)
        return prove(build_plan(open_checkpoint(folder), ParallelLayout(4)), capacity_bytes=4 * 2**30).findings
    if code in ("memory-activations", "memory-requests"):
        write_full_size(PRESETS["llama"], folder)
        proof = prove(build_plan(open_checkpoint(folder), ParallelLayout()))
        options = MemoryOptions((80 * 2**30,), max_num_seqs=64, max_num_batched_tokens=MANY.get(code))
        return with_memory(proof, measure_proof(proof, "native", options)).findings
    presets = {
        "draft-missing": ("qwen3", {}),
        "layout-cut": CUTS,
        "layout-moved": CUTS,
        "tower-unchecked": ("qwen3.8", {}),
    }
    preset, overrides = presets.get(code, ("glm-5.1-fp8", GLM))
    target = "vllm-0.32" if code in ("layout-cut", "layout-moved") else "native"
    write_tiny(PRESETS[preset], folder, overrides=overrides, num_shards=3)
    damaged = DamagedCheckpoint(folder)
    layout = LAYOUTS.get(code, ParallelLayout(4, num_draft_layers=int(code == "draft-missing")))
    if change := {**FILES, **CONFIGURATION, **TENSORS}.get(code):
        change(damaged)
    if code == "plugin-broken":
        install(folder.parent / "site", "acme", "import acme_kernels", "acme:FAMILY", version="1.2")
        sys.path.insert(0, str(folder.parent / "site"))
    try:
        plan = build_plan(open_checkpoint(folder), layout, target=target, waive=WAIVERS.get(code, ()))
        if code == "plan-invalid":
            Plan.from_json(re.sub(rb'"plan_version":\d+', b'"plan_version":1', plan.to_json()))
        if code == "layout-block-cut":
            split_word()
        if code.startswith("law-"):
            plan = tampered(plan, code)
        if code.startswith("lock-"):
            return unlike_lock(plan, code)
        return prove(plan).findings
    except InputError as error:
        return findings_of(error)
    finally:
        sys.path[:] = [p for p in sys.path if p != str(folder.parent / "site")]
