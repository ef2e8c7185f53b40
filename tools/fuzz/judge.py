"""The oracle: what a damaged checkpoint must come to, decided from what its files are and not from what was done to it.

Refused, with a finding or a typed error, is right unless nothing of consequence changed. Proven is right only if the
files are sound for the official package and every rank loads what it should: what the sound checkpoint loads as wherever
no tensor changed, the values of the changed tensors where one did, and where the independent reference knows the family,
exactly its bytes.
"""

from __future__ import annotations

import io
import json
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from loadmaster.catalogue import CATALOGUE
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadmasterError
from loadmaster.findings import Finding, errors
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, Proof, build_plan, prove
from loadmaster.report.json import dumps, failure_object, findings_of, proof_object
from loadmaster.report.text import print_error, print_proof
from tests.loader.reference import differences, divided_as
from tools.fuzz.bases import Base, Sound, prints
from tools.fuzz.reference import reference
from tools.fuzz.shards import Draft
from tools.fuzz.state import State, same_config, same_sizes, state_of

OPTIONAL = ("input_scale", "input_global_scale", "g_idx")
"""Ends of the names of components that a checkpoint may leave out."""

WAIVED = r".*(rotary_emb\.inv_freq|[kvq]_scale|weight_shape)|(.*\.)?lm_head\.weight"
"""Names that some family may leave unread."""

PLAIN = (torch.bfloat16, torch.float16, torch.float32)

Loaded = list[dict[str, torch.Tensor]]
"""Each rank's parameters."""


class OracleError(Exception):
    """The tool is wrong about a checkpoint. ``signature`` is the same for failures that are alike."""

    def __init__(self, signature: str, text: str) -> None:
        super().__init__(f"{signature}: {text}")
        self.signature = signature


def judge(base: Base, layout: ParallelLayout, draft: Draft, folder: Path) -> str:
    """Write a damaged checkpoint to ``folder`` and hold what the tool says of it against what it is.

    Returns:
        In a word, what happened: ``error``, ``refused``, ``proven``.

    Raises:
        OracleError: the tool is wrong.
    """
    state = state_of(base, draft.write(folder, base.folder), folder)
    sound = base.sound(layout)
    same = state.unsound is None and state.tensors == base.tensors and same_config(state, base) and sound is not None
    try:
        proof = prove(build_plan(open_checkpoint(folder), layout))
        _render(lambda console: print_proof(console, proof, 0.0), lambda: dumps(proof_object(proof, 0.0)))
    except LoadmasterError as error:
        _check_error(error)
        if same:
            raise OracleError("harmless-refused", f"nothing of consequence changed, and: {error}") from error
        return "error"
    except Exception as error:
        raise _crash(error) from error
    for finding in proof.findings:
        _check_finding(finding)
    if not proof.proven:
        found = errors(proof.findings)
        if same:
            raise OracleError("harmless-refused", f"nothing of consequence changed, and: {found[0]}")
        if all(f.code.startswith("law-") for f in found):
            raise OracleError("only-a-law", f"no finding names the cause: {found[0]}")
        return "refused"
    if state.unsound:
        raise OracleError("unsound-proven", state.unsound)
    try:
        _check_proven(base, layout, state, sound, proof, folder)
    except LoadmasterError as error:
        raise OracleError("proven-not-loaded", str(error)) from error
    except OracleError:
        raise
    except Exception as error:
        raise _crash(error) from error
    return "proven"


def _crash(error: Exception) -> OracleError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/loadmaster/" in f.filename or "/tools/" in f.filename] or list(frames)
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
    text = "".join(traceback.format_exception(error)[-6:])
    return OracleError(f"crash {type(error).__name__} in {where}", text)


def _render(text: Callable[[Console], None], as_json: Callable[[], str]) -> None:
    text(Console(file=io.StringIO(), width=100))
    json.loads(as_json())


def _check_finding(finding: Finding) -> None:
    if finding.code not in CATALOGUE or not finding.message.strip():
        raise OracleError("finding-malformed", repr(finding))


def _check_error(error: LoadmasterError) -> None:
    if not error.message.strip():
        raise OracleError("error-without-message", repr(error))
    for finding in findings_of(error):
        _check_finding(finding)
    try:
        _render(lambda c: print_error(c, error, findings_of(error)), lambda: dumps(failure_object(error, 0.0)))
    except Exception as failure:
        raise _crash(failure) from failure


# Proven ---------------------------------------------------------------------------------------------------------------


def _check_proven(
    base: Base, layout: ParallelLayout, state: State, sound: Sound | None, proof: Proof, folder: Path
) -> None:
    plan = proof.plan
    again = Plan.from_json(plan.to_json())
    if again != plan or any(again.rank(r).specs != plan.rank(r).specs for r in range(plan.num_ranks)):
        raise OracleError("json-differs", "the plan is another one after a turn through JSON")
    added = state.tensors.keys() - base.tensors.keys()
    missing = base.tensors.keys() - state.tensors.keys()
    altered = {n for n in state.tensors.keys() & base.tensors.keys() if state.tensors[n] != base.tensors[n]}
    tied = any("tied" in w.reason for w in proof.waivers)  # a head that is stored, and said to be left unread
    loaded = [load_rank(proof.require_proven(), r, num_readers=1).tensors for r in range(plan.num_ranks)]
    if sound is not None:
        if same_config(state, base):
            _check_names(base, state, sound, added, missing, altered, proof.findings)
        touched = beside(missing | altered | added, base.tensors)
        if tied:
            touched |= {n for n in base.tensors if n.endswith("lm_head.weight")}
        _check_untouched(sound, loaded, touched, state, base)
        if same_config(state, base) and altered:
            unsure = beside(missing | added, base.tensors)
            _check_touched(base, layout, state, sound, loaded, altered, unsure, folder, proof.findings)
    for rank, tensors in enumerate(loaded):
        expected = reference(folder, divided_as(layout, proof), rank, tied=tied)
        if expected is not None and (found := differences(tensors, expected)):
            raise OracleError("reference-differs", f"rank {rank}: {found[:4]}")


def _check_names(
    base: Base,
    state: State,
    sound: Sound,
    added: set[str],
    missing: set[str],
    altered: set[str],
    findings: tuple[Finding, ...],
) -> None:
    """Nothing that is needed may be missing or of another shape; what is left over is waived or at least mentioned."""
    reshaped = {n for n in altered if state.tensors[n].shape != base.tensors[n].shape}
    lost = {n for n in (missing | reshaped) & sound.read if not n.endswith(OPTIONAL)}
    lost -= {n for n in reshaped if {state.tensors[n].shape, base.tensors[n].shape} == {(), (1,)}}
    if lost:
        raise OracleError("loss-proven", f"needed, and missing or of another shape: {sorted(lost)[:4]}")
    said = " ".join(f"{f.tensor} {f.message} {f.hint}" for f in findings)
    stray = {n for n in added if not n.endswith(OPTIONAL) and not re.fullmatch(WAIVED, n) and n not in said}
    if stray:
        raise OracleError("stray-proven", f"left over, and not reported: {sorted(stray)[:4]}")


def beside(names: set[str], all_names: Iterable[str]) -> set[str]:
    """Return tensors together with the other components of their modules, those of all experts: one form is for all.

    >>> sorted(beside({"experts.0.w.scale"}, ["experts.0.w.weight", "x.experts.1.w.weight", "y.weight"]))
    ['experts.0.w.scale', 'experts.0.w.weight']
    """

    def module(name: str) -> str:
        return re.sub(r"\.experts\.\d+\.", ".experts.", name.rpartition(".")[0])

    modules = {module(n) for n in names}
    return names | {n for n in all_names if module(n) in modules}


def _check_untouched(sound: Sound, loaded: Loaded, touched: set[str], state: State, base: Base) -> None:
    """Hold every parameter that no touched tensor goes into against the sound checkpoint's."""
    if not same_sizes(state, base):
        return
    if len(loaded) != len(sound.ranks):
        raise OracleError("ranks-differ", f"{len(loaded)} ranks, expected {len(sound.ranks)}")
    for rank, (tensors, expected, made_of) in enumerate(zip(loaded, sound.ranks, sound.made_of, strict=True)):
        found = prints(tensors)
        for name, print_ in expected.items():
            if found.get(name) != print_ and not made_of[name] & touched:
                what = "untouched-differs" if same_config(state, base) else "config-silent"
                raise OracleError(what, f"rank {rank}: {name} is {found.get(name)}, expected {print_}")
        if more := found.keys() - expected.keys() if not touched else None:
            raise OracleError("more-params", f"rank {rank}: {sorted(more)[:4]}")


def _check_touched(
    base: Base,
    layout: ParallelLayout,
    state: State,
    sound: Sound,
    loaded: Loaded,
    altered: set[str],
    unsure: set[str],
    folder: Path,
    findings: tuple[Finding, ...],
) -> None:
    """Hold what altered tensors go into against a sound checkpoint that holds the same values in the usual formats."""
    draft = base.draft()
    for file, arrays in base.shards.items():
        for name in arrays.keys() & altered:
            now, usual = state.tensors[name], base.tensors[name].dtype
            back = now if now.dtype == usual else now.converted(usual)
            again = back.converted(now.dtype) if back and now.dtype != usual else now
            if back is None or again != now or back.shape != base.tensors[name].shape:
                unsure = unsure | {name}
            else:
                draft.put(file, name, back)
    usual_folder = folder.with_name(folder.name + "-usual")
    draft.write(usual_folder, base.folder)
    plan = prove(build_plan(open_checkpoint(usual_folder), layout)).require_proven()
    for rank, tensors in enumerate(loaded):
        usual_tensors = load_rank(plan, rank, num_readers=1).tensors
        for name, made_of in sound.made_of[rank].items():
            if not made_of & altered or made_of & unsure:
                continue
            expected = usual_tensors[name]
            if name not in tensors or (tensors[name].dtype != expected.dtype and expected.dtype not in PLAIN):
                if not findings:
                    raise OracleError("silently-decoded", f"rank {rank}: {name}, and no finding says so")
            elif not _alike(tensors[name], expected):
                raise OracleError("touched-differs", f"rank {rank}: {name} has not the stored values")


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    x, y = (t.to(torch.float64).numpy() for t in (a, b))
    return bool(np.array_equal(x, y, equal_nan=True))
