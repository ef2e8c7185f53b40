"""The plan: pure data from which every rank's parameters and reads are derived on demand.

A plan holds its inputs (headers, config, layout, dtype) and what follows from them: the classes of layers, bound to
stored ids and composed once for each tensor-parallel rank. Its JSON holds the inputs and the hash; reading it back
composes again and compares, so two versions of this package that would plan differently are noticed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadmaster.architectures.items import check_size
from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Family
from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import NATIVE, find_target
from loadmaster.arguments import expect, expect_int, shown
from loadmaster.catalogue import ranked
from loadmaster.checkpoint import Checkpoint, Names, Origin, ShardFile, Signature, TensorTable
from loadmaster.dtypes import PLAIN
from loadmaster.errors import ArgumentError, ConfigError, InputError, LayoutError, PlanError, UnsupportedError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan.binding import bind
from loadmaster.plan.claims import Claims, read_claims
from loadmaster.plan.composition import Numerics
from loadmaster.plan.diagnosis import diagnose
from loadmaster.plan.diagnosis.defects import Holders, gather
from loadmaster.plan.diagnosis.described import check_described
from loadmaster.plan.diagnosis.divide import check_divisible
from loadmaster.plan.diagnosis.fusions import unlike
from loadmaster.plan.diagnosis.sizes import odd_sizes
from loadmaster.plan.diagnosis.unchecked import unchecked
from loadmaster.plan.filling import ExpertSizes
from loadmaster.plan.hash import PLAN_VERSION, hash_plan
from loadmaster.plan.model import PlannedModel, compose_model
from loadmaster.plan.rank import RankPlan, derive_rank
from loadmaster.plan.stages import divide_layers
from loadmaster.plan.towers import with_towers
from loadmaster.plan.waivers import Waiver, WaiverRequest, requests


@dataclass(frozen=True, eq=False)
class Plan(PlannedModel):
    """What every rank reads, moves and computes.

    Built by `build_plan`. ``findings`` are those of planning; `loadmaster.plan.prove` checks the laws too and says whether
    the plan is proven. Two plans are equal when their hashes are.
    """

    checkpoint: Checkpoint = field(repr=False)
    dtype: str
    hash: str
    family: Family = field(repr=False)
    findings: tuple[Finding, ...]
    waivers: tuple[Waiver, ...]
    explicit_dtype: str | None = None
    waive: tuple[WaiverRequest, ...] = ()
    expert_sizes: ExpertSizes | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return self.checkpoint.config or {}

    @property
    def numerics(self) -> Numerics:
        """The model's dtype, and why plain weights are cast to it."""
        return _numerics(self.target, self.dtype, self.explicit_dtype, self.expert_sizes)

    @property
    def model_path(self) -> Path:
        """The checkpoint's folder.

        Raises:
            LoadError: its files are not on disk; the plan was made from their headers.
        """
        return self.checkpoint.folder

    def rank(self, rank: int) -> RankPlan:
        """Derive one rank's parameters and reads.

        Raises:
            ArgumentError: the layout has no such rank.
        """
        return derive_rank(self, expect_int("rank", rank, 0, self.num_ranks - 1))

    def to_json(self) -> bytes:
        """Return the plan as JSON: its inputs and its hash."""
        c = self.checkpoint
        t = c.table
        return orjson.dumps(
            {
                "plan_version": PLAN_VERSION,
                "hash": self.hash,
                "path": str(c.path),
                "origin": c.origin.as_json(),
                "digest": c.digest,
                "config": json.dumps(c.config),  # which may hold numbers of any size
                "layout": self.layout.as_json(),
                "target": self.target.name,
                "dtype": self.explicit_dtype,
                **({"waive": [[w.pattern, w.reason] for w in self.waive]} if self.waive else {}),
                **({"expert_sizes": self.expert_sizes} if self.expert_sizes else {}),
                "files": [[f.name, f.size, f.header_bytes, f.mtime_ns] for f in c.files],
                "signatures": [[s.dtype, s.shape] for s in t.signatures],
                "tensors": {
                    "name": list(t.names),
                    "file": t.file,
                    "start": t.start,
                    "nbytes": t.nbytes,
                    "signature": t.signature,
                },
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises:
            PlanError: the JSON is not a plan of this version, or this version plans the same inputs differently.
        """
        try:
            v = orjson.loads(data)
            if v["plan_version"] != PLAN_VERSION:
                raise PlanError(f"a plan of version {v['plan_version']}, expected {PLAN_VERSION}")
            columns = v["tensors"]
            names = columns["name"]
            if not all(isinstance(n, str) for n in names):
                raise ValueError("a tensor's name is not a string")
            table = TensorTable(
                names=Names.of(names),
                file=np.array(columns["file"], dtype=np.int32),
                start=np.array(columns["start"], dtype=np.int64),
                nbytes=np.array(columns["nbytes"], dtype=np.int64),
                signature=np.array(columns["signature"], dtype=np.int32),
                signatures=tuple(Signature(d, tuple(s)) for d, s in v["signatures"]),
            )
            checkpoint = Checkpoint(
                path=Path(v["path"]),
                files=tuple(ShardFile(*f) for f in v["files"]),
                table=table,
                config=json.loads(v["config"]),
                index=None,
                findings=(),
                digest=v["digest"],
                origin=Origin.from_json(v.get("origin") or {"kind": "folder", "name": v["path"]}),
            )
            _check_columns(checkpoint)
            layout = ParallelLayout.from_json(v["layout"])
            dtype, target = v["dtype"], v.get("target", NATIVE)
            waive = [WaiverRequest(pattern, reason) for pattern, reason in v.get("waive", ())]
            sizes = tuple(v["expert_sizes"]) if v.get("expert_sizes") else None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise PlanError(f"not a plan: {type(error).__name__}: {error}") from error
        plan = build_plan(checkpoint, layout, dtype=dtype, target=target, waive=waive, expert_sizes=sizes)
        if plan.hash != v["hash"]:
            raise PlanError(
                f"the plan's hash is {v['hash'][:16]}, and this version plans {plan.hash[:16]} from the same inputs",
                hint="all ranks must run the same version",
            )
        return plan


def build_plan(
    checkpoint: Checkpoint,
    layout: ParallelLayout | None = None,
    *,
    dtype: str | None = None,
    target: str = NATIVE,
    waive: Sequence[WaiverRequest] = (),
    expert_sizes: ExpertSizes | None = None,
) -> Plan:
    """Plan ``checkpoint`` on ``layout``.

    ``dtype`` (a safetensors name such as ``F32``) is the dtype that the user asks unquantised weights to be cast to;
    None keeps them as stored, and decodes into the config's dtype. ``target`` says whose parameters are filled: those of
    this package's runtime (``native``), or another engine's (``vllm-0.32``). ``waive`` asks for waivers: stored tensors
    that no parameter needs, and that are left unread for the reason given instead of being an error. ``expert_sizes`` are
    the hidden and inner elements of each expert on a rank where an engine's kernels need more than the model has: zeros follow.

    Raises:
        ArgumentError: an argument is not of its kind, or ``dtype`` or ``target`` is not known.
        UnsupportedError: the model, or something that its checkpoint or the layout has, is not described for the target.
        InputError: nothing can be planned: the config or the layout is impossible; what is wrong with the files is in its
            findings. What is wrong with single tensors is in the plan's findings.
    """
    expect("checkpoint", checkpoint, Checkpoint, "a Checkpoint, as open_checkpoint(path) returns")
    expect("layout", layout, (ParallelLayout, type(None)), "a ParallelLayout")
    if dtype is not None and dtype not in PLAIN:
        raise ArgumentError(f"dtype is {shown(dtype)}, expected one of {', '.join(PLAIN)}, or None")
    expect("target", target, str, "the name of a target")
    if expert_sizes is not None:
        expert_sizes = _two_sizes(expert_sizes)
    try:
        return _build(checkpoint, layout or ParallelLayout(), dtype, target, requests(waive), expert_sizes)
    except InputError as error:
        if checkpoint.findings and not error.findings:
            finding = Finding(error.code, "error", error.message, hint=error.hint)
            error.findings = ranked((*checkpoint.findings, finding))
        raise


def _two_sizes(sizes: ExpertSizes) -> ExpertSizes:
    """Return the sizes of experts, checked."""
    if not isinstance(sizes, tuple) or len(sizes) != 2:
        raise ArgumentError(f"expert_sizes is {shown(sizes)}, expected (hidden, inner) elements of an expert, or None")
    hidden, inner = (expect_int("expert_sizes", n, 1) for n in sizes)
    return hidden, inner


def _build(
    checkpoint: Checkpoint,
    layout: ParallelLayout,
    dtype: str | None,
    engine: str,
    waive: tuple[WaiverRequest, ...],
    sizes: ExpertSizes | None,
) -> Plan:
    if checkpoint.config is None:
        raise ConfigError("the checkpoint has no readable config.json", findings=checkpoint.findings)
    family = find_family(checkpoint.config)
    config = family.describe(checkpoint.config)
    target = find_target(engine, family, config)
    if layout.num_draft_layers and target.draft is None:
        raise UnsupportedError(f"MTP layers are not described for {target.name}")
    schema = target.adapted(family.schema(config))
    check_size(schema, family.spelling, family.draft_spelling())
    claims = read_claims(config, _commonest_plain(checkpoint.table))
    if layout.num_draft_layers > schema.num_drafts:
        raise LayoutError(
            f"{layout.num_draft_layers} MTP layer(s) asked for, and the model has {schema.num_drafts}",
            hint="leave out --speculative-config" if not schema.drafts else None,
            code="draft-missing",
        )
    towers = with_towers(family, schema, target, checkpoint.table) if layout.multimodal else None
    if towers is not None:
        family, schema, target = towers.family, towers.schema, towers.target
    divided = divide_layers(schema, target, layout)
    layout, stages = divided.layout, divided.stages
    binding = bind(checkpoint, family, schema, claims, num_blocks=len(schema.drafted(layout.num_draft_layers)))
    diagnosis = diagnose(checkpoint, binding, claims, len(schema.layers), waive)
    top_class, *classes = (c.held_as(target.formats or {}) for c in binding.all_classes)
    binding = replace(binding, top=top_class, classes=tuple(classes))
    check_divisible(binding.all_classes, schema, layout)
    numerics = _numerics(target, claims.model_dtype, dtype, sizes)
    composed, top = compose_model(target, binding, layout, numerics)
    of_model = (c for by_name in top.values() for params in by_name.values() for c in params)
    check_described(target, chain(of_model, *composed.values()), numerics.model_dtype)
    decoded = unlike(target, binding.all_classes, len(schema.layers), numerics.model_dtype)
    about_files = (
        *checkpoint.findings,
        *diagnosis.findings,
        *odd_sizes(config, schema),
        *unchecked(family, checkpoint.config),
        *((towers.finding,) if towers is not None else ()),
    )
    defects = (*diagnosis.defects, *decoded)
    findings = (*gather(about_files, defects, Holders(target, schema, layout, stages)), *divided.findings)
    plan = Plan(
        layout=layout,
        target=target,
        schema=schema,
        stages=stages,
        table=checkpoint.table,
        top_class=binding.top,
        classes=binding.classes,
        composed=composed,
        top=top,
        checkpoint=checkpoint,
        dtype=numerics.model_dtype,
        hash="",
        family=family,
        findings=findings,
        waivers=diagnosis.waivers,
        explicit_dtype=dtype,
        waive=waive,
        expert_sizes=sizes,
    )
    return replace(plan, hash=_hash(plan))


def claims_of(plan: Plan) -> Claims:
    """Return what the config of a plan says about how its values are stored."""
    return read_claims(plan.family.describe(plan.config), _commonest_plain(plan.table))


def _hash(plan: Plan) -> str:
    inputs = {
        "checkpoint": plan.checkpoint.digest,
        "config": json.dumps(plan.config, sort_keys=True),  # which may hold numbers of any size
        "layout": plan.layout.as_json(),
        "target": plan.target.name,
        "dtype": plan.dtype,
        "explicit_dtype": plan.explicit_dtype,
        "waive": [[w.pattern, w.reason] for w in plan.waive],
        **({"expert_sizes": plan.expert_sizes} if plan.expert_sizes else {}),
    }
    return hash_plan(inputs, plan)


def _check_columns(checkpoint: Checkpoint) -> None:
    """Check that the columns of a table read from JSON are consistent.

    Raises:
        ValueError: they are not.
    """
    t = checkpoint.table
    columns: dict[str, np.ndarray] = {"file": t.file, "start": t.start, "nbytes": t.nbytes, "signature": t.signature}
    ends = {"file": len(checkpoint.files), "signature": len(t.signatures)}
    if len(t.ids) != len(t.names):
        raise ValueError("two tensors have the same name")
    for name, column in columns.items():
        if column.shape != (len(t.names),):
            raise ValueError(f"tensors.{name} has the shape {list(column.shape)}, and there are {len(t.names)} names")
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < ends.get(name, 2**62):
            raise ValueError(f"tensors.{name} has a value outside its range")


def _numerics(target: Target, configured: str, asked: str | None, sizes: ExpertSizes | None) -> Numerics:
    if asked is not None:
        return Numerics(asked, f"--dtype {asked}", target.formats or {}, sizes)
    dtype = target.dtypes.get(configured, configured)
    return Numerics(dtype, f"{target.name} has it in {dtype}" if target.fixed else None, target.formats or {}, sizes)


def _commonest_plain(table: TensorTable) -> str:
    """Return the plain number format with the most bytes (not tensors: scales are many, and small)."""
    counts: dict[str, float] = {}
    num_bytes = np.bincount(table.signature, weights=table.nbytes).tolist()
    for signature, count in zip(table.signatures, num_bytes, strict=False):
        d = signature.dtype
        if d in ("BF16", "F16", "F32"):
            counts[d] = counts.get(d, 0) + count
    return max(counts, key=lambda d: counts[d], default="BF16")
