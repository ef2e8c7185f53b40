"""Judges an attempt to load: pure functions of the observations.

1. The process did not end, or ended by itself: **hang**, **crash**.
2. The engine raised. Its message (with its causes, and what was logged) must name an affected tensor, parameter or file, and
   say in words what is wrong with it; a name alone is not enough. If it does not: **unclear error**. If it does, but only
   after tensors were read although the headers show the defect: **late error**. Else **refused clearly**. Lines that are
   also logged for the sound checkpoint do not count, here and below.
3. The engine loaded. Every parameter must be completely written and equal that of the sound checkpoint, byte for byte (by
   value, if plain formats are converted). If not: **loaded wrong in silence**, or **with a warning** that names what is
   affected. The verdict is the same if the parameters are equal, but the damaged checkpoint stores another model: then
   the engine read stored tensors and dropped them.
4. Else **loaded right**.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from loadmaster.audit.observed import NOWHERE, Attempt

NO_KERNEL = re.compile(
    r"Failed to find a kernel|No \w+ MoE backend supports|kernel \w+ is not supported|arguments from the 'CPU' backend"
)
"""vLLM's and torch's messages on a machine that they have no kernel for; these say nothing about vLLM's loaders."""
MIN_WORDS = 3
"""How many words, not counting names, an error needs to say what is wrong."""


class Verdict(Enum):
    """What an engine did, the most harmful verdict first."""

    SILENT = "loaded wrong in silence"
    WARNED = "loaded wrong with a warning"
    HANG = "hang"
    CRASH = "crash"
    UNCLEAR = "unclear error"
    LATE = "late error"
    CLEAR = "refused clearly"
    RIGHT = "loaded right"
    NOT_RUN = "not run"

    @property
    def harm(self) -> int:
        """Rank by harm, 0 the worst."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Judgement:
    """A verdict and the observation that it is based on, in a clause or two."""

    verdict: Verdict
    evidence: str


def judge(
    seen: Attempt, subjects: Sequence[str], *, is_sound: bool, harmless: bool = False, num_params: int | None = None
) -> Judgement:
    """Return the verdict on one attempt.

    ``subjects`` are the names that the defect affects. A sound checkpoint (``is_sound``) has none, and if the engine cannot
    build its model, or has it under names that are not known here, the verdict is that it was not run. ``harmless``: the
    damaged checkpoint still holds the sound one's model. ``num_params`` is the number of parameters of the sound one's model,
    if known.
    """
    if seen.outcome == "hung":
        return Judgement(Verdict.HANG, "the process did not end")
    if seen.outcome == "crashed":
        return Judgement(Verdict.CRASH, f"the process ended by {seen.error}")
    if seen.outcome == "raised":
        return _raised(seen, subjects, is_sound)
    if is_sound and (nowhere := [name for name, what in seen.differences if what == NOWHERE]):
        more = f", and {len(nowhere) - 1} more" if len(nowhere) > 1 else ""
        return Judgement(Verdict.NOT_RUN, f"the audit does not know what the engine calls {nowhere[0]}{more}")
    return _loaded(seen, subjects, is_sound or harmless, num_params)


def _raised(seen: Attempt, subjects: Sequence[str], is_sound: bool) -> Judgement:
    if not seen.built and (is_sound or NO_KERNEL.search(seen.message)):
        return Judgement(Verdict.NOT_RUN, f"the model cannot be built: {first_line(seen.message)}")
    when = f"after {seen.num_read:,} of the tensors" if seen.num_read else "before any tensor was read"
    error = f"{seen.error}: {first_line(seen.message)}" if seen.message else f"{seen.error}, without a word"
    if not any(names_one(text, subjects) and says_what(text) for text in (seen.message, *seen.logged)):
        return Judgement(Verdict.UNCLEAR, f"{error} ({when})")
    return Judgement(Verdict.LATE if seen.num_read else Verdict.CLEAR, f"{error} ({when})")


def _loaded(seen: Attempt, subjects: Sequence[str], as_sound: bool, num_params: int | None) -> Judgement:
    wrong = [f"{name}: {_share(missing, total)}" for name, missing, total in seen.gaps]
    wrong += [f"{name} {what}" for name, what in seen.differences]
    if not wrong and as_sound:
        extent = f"{seen.num_compared:,} of {seen.num_params:,} parameters compared, all written"
        return Judgement(Verdict.RIGHT, extent)
    if not wrong and num_params not in (None, seen.num_params):
        built = f"the model has {seen.num_params:,} parameters, that of the sound checkpoint {num_params:,}"
        return Judgement(Verdict.NOT_RUN, f"{built}: what became of the defect is not known")
    if not wrong:
        more = f" and {len(subjects) - 2:,} more" if len(subjects) > 2 else ""
        wrong = [f"{', '.join(subjects[:2])}{more}: not what was loaded; the model is that of the sound checkpoint"]
    warned = any(names_one(line, subjects) for line in seen.logged)
    more = f"; and {len(wrong) - 1:,} more parameter{'s' if len(wrong) > 2 else ''}" if len(wrong) > 1 else ""
    return Judgement(Verdict.WARNED if warned else Verdict.SILENT, wrong[0] + more)


def _share(missing: int, total: int) -> str:
    if missing == total:
        return f"none of its {total:,} bytes was written"
    return f"{missing:,} of its {total:,} bytes were not written"


def names_one(text: str, subjects: Sequence[str]) -> bool:
    """Whether a message names something affected: the tensor itself, a parameter of the same module, or the file.

    A message may name the fused parameter that a tensor is part of, so the module above it is enough.

    >>> names_one("no qkv_proj.weight in layers.1.self_attn.qkv_proj.weight", ["model.layers.1.self_attn.k_proj.weight"])
    True
    >>> names_one("layers.2.mlp is odd", ["model.layers.1.self_attn.k_proj.weight"])
    False
    """
    return any(re.search(rf"(?<!\w){pattern}(?![0-9])", text) for name in subjects for pattern in _patterns(name))


def _patterns(name: str) -> tuple[str, ...]:
    """Return patterns for a subject in a message: its name, and the module above it; or only the name if it ends in a dot.

    A draft model's layer has one more module between its number and the rest.
    """
    subject = name.removeprefix("model.")
    parts = subject.rstrip(".").split(".")
    if subject.endswith((".", ".safetensors", ".json")):
        return (re.escape(subject.rstrip(".")),)
    if len(parts) < 3:
        return (re.escape(subject), re.escape(parts[0]))
    first = parts.index("layers") if "layers" in parts else 0
    number, rest = re.escape(".".join(parts[first : first + 2])), parts[first + 2 :]
    last = rest[-2:] if re.search("weight|bias|scale", rest[-1]) else rest[-1:]
    above = [part for part in rest[:-2] if not part.isdecimal()]  # for an expert, the module of its stack
    return tuple(rf"{number}\.(?:\w+\.)*{re.escape('.'.join(part))}" for part in (above, last) if part)


def says_what(text: str) -> bool:
    """Whether a message has more than names: a few words of letters only.

    >>> says_what("'layers.1.self_attn.z_proj.weight'")
    False
    >>> says_what("Attempted to load nested weight 'a.b' into a single parameter 'a'")
    True
    """
    return len(re.findall(r"(?<![\w.'])[A-Za-z]{2,}(?![\w.'])", text)) >= MIN_WORDS


def first_line(message: str, most: int = 240) -> str:
    """Return the first line of a message that is not empty, cut if it is long; pydantic's count of errors is none.

    >>> first_line("1 validation error for ModelConfig\\n  Value error, unknown model type")
    'Value error, unknown model type'
    """
    lines = (text.strip() for text in message.splitlines() if text.strip())
    line = next((text for text in lines if not re.fullmatch(r"\d+ validation errors? for \w+", text)), "")
    return line if len(line) <= most else line[: most - 1] + "…"
