"""One load format, one checkpoint, one rank: what the engine did, and what then stood in the model's parameters.

Needs vLLM and torch, and runs in a process of its own (`isolate`): engines may end theirs.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch

from loadmaster.audit.observed import Attempt
from loadmaster.audit.ranks import Built, Rank, build
from loadmaster.audit.reference import Expected, difference, engine_name, raw
from loadmaster.integrations.vllm.unwritten import is_default, unwritten

Params: TypeAlias = dict[str, torch.Tensor]


def attempt(
    path: Path,
    rank: Rank,
    load_format: str,
    expected: Expected,
    *,
    draft: str | None,
    process: bool = False,
    **engine: Any,
) -> Attempt:
    """Load a checkpoint on one rank, and hold every parameter against what the sound one gives.

    With ``process`` the engine processes the weights too, which may raise; what they hold then means nothing.
    """
    built: Built | None = None
    counted = _Counted()
    log = _Log()
    log.listen()
    try:
        built = build(path, rank, load_format=load_format, draft=draft, **engine)
        log.listen()
        counted.count(built.model)
        before = _initialised(built.params)
        built.write()
        if process:
            built.process()
    except Exception as error:
        return Attempt(
            "raised",
            built=built is not None,
            num_read=counted.number,
            error=type(error).__name__,
            message=tidy(_chain(error), path),
            logged=tuple(tidy(line, path) for line in log.lines),
            raised_in=_deepest(error),
            loader=_loader_of(built.model, counted.last) if built else "",
            num_params=len(built.params) if built else 0,
        )
    found = _Held(built.params, before, expected, _may_stay(built))
    gaps, differences = found.gaps(), found.differences()
    concerned = [*(g[0] for g in gaps), *(n for n, _ in differences)]
    return Attempt(
        "loaded",
        built=True,
        num_read=counted.number,
        logged=tuple(tidy(line, path) for line in log.lines),
        loader=_loader_of(built.model, concerned[0] if concerned else ""),
        gaps=tuple(gaps),
        differences=tuple(differences),
        num_params=len(built.params),
        num_compared=found.num_compared,
        narrowed=found.narrowed,
    )


def _initialised(params: Params) -> Params:
    """Return copies of the parameters that the model initialised itself: those without the pattern."""
    return {n: p.clone() for n, p in params.items() if p.numel() and not unwritten(p).any()}


class _Held:
    """What a model's parameters hold after loading, against what they held ``before`` and what they should.

    ``may_stay`` says of a parameter that nothing need be written to it.
    """

    def __init__(self, params: Params, before: Params, expected: Expected, may_stay: Callable[[str], bool]) -> None:
        self._missing = {n: _missing(p, before.get(n)) for n, p in params.items()}
        self._params, self._before, self._may_stay = params, before, may_stay
        self._unlike: dict[str, str] = {}
        self._alike: set[str] = set()
        self.narrowed = 0
        for native, tensor in expected.items():
            name = engine_name(native, params)
            if name is None:
                self._unlike[native] = "is stored, and the engine has no parameter that holds it"
            elif not (may_stay(name) and self._missing[name]):
                what = difference(params[name], tensor)
                self.narrowed += params[name].element_size() < tensor.element_size()
                if what is None:
                    self._alike.add(name)
                else:
                    self._unlike[name] = what
        self.num_compared = len(self._alike) + len(self._unlike)

    def gaps(self) -> list[tuple[str, int, int]]:
        """Return what was not written, where that is not as it should be."""
        return [
            (name, missing, self._params[name].numel() * self._params[name].element_size())
            for name, missing in self._missing.items()
            if missing and name not in self._alike and not self._may_stay(name) and not self._is_default(name)
        ]

    def differences(self) -> list[tuple[str, str]]:
        """Return what else is other than it should be."""
        told = {name for name, _, _ in self.gaps()}
        return [(name, what) for name, what in self._unlike.items() if name not in told]

    def _is_default(self, name: str) -> bool:
        return name in self._before and name not in self._unlike and is_default(name, self._before[name])


def _missing(param: torch.Tensor, before: torch.Tensor | None) -> int:
    """Return the bytes that have the pattern; of a parameter that was initialised all, if it is still what it was."""
    if before is not None:
        return param.numel() * param.element_size() if torch.equal(raw(param), raw(before)) else 0
    return int(unwritten(param).sum()) if param.numel() else 0


class _Counted:
    """Counts the tensors that a model's own loader takes."""

    def __init__(self) -> None:
        self.number, self.last = 0, ""

    def count(self, model: Any) -> None:
        own = model.load_weights

        def load_weights(weights: Any, *more: Any, **named: Any) -> Any:
            return own(self._each(weights), *more, **named)

        model.load_weights = load_weights

    def _each(self, weights: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.number, self.last = self.number + 1, name
            yield name, tensor


def _may_stay(built: Built) -> Any:
    from loadmaster.integrations.vllm.loader import may_stay

    return may_stay(built.model, built.model_config)


class _Log(logging.Handler):
    """Collects what the engine logs from warnings on. It configures its loggers anew while it builds, so: `listen` again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def listen(self) -> None:
        logger = logging.getLogger("vllm")
        logger.setLevel(logging.WARNING)
        if self not in logger.handlers:
            logger.addHandler(self)


def _chain(error: BaseException | None) -> str:
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__
    return "\n".join(dict.fromkeys(said))


def tidy(text: str, path: Path) -> str:
    """Return a message without what differs from run to run: the checkpoint's folder, addresses, process ids.

    >>> tidy("/tmp/x1/model.safetensors at 0x7f01: pid=4711", Path("/tmp/x1"))
    'CHECKPOINT/model.safetensors at 0x…: pid=…'
    """
    text = text.replace(str(path), "CHECKPOINT")
    text = re.sub(r"0x[0-9a-f]{4,}", "0x…", text)
    text = re.sub(r"pid=\d+", "pid=…", text)
    text = re.sub(r"/\S*?/site-packages/", "", text)
    return re.sub(r"\{('[^'{}]*'(?:, '[^'{}]*')*)\}", _sorted, text)


def _sorted(found: re.Match[str]) -> str:
    return "{" + ", ".join(sorted(found[1].split(", "))) + "}"  # a set's order is another in every process


def _deepest(error: BaseException) -> str:
    """Return the last function of vLLM that an exception came through: ``file: qualified name``."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place = _place(frame.f_code.co_filename, frame.f_code.co_qualname)
        found = place or found
    return found


def _loader_of(model: Any, name: str) -> str:
    """Return the ``load_weights`` that has a tensor or parameter in its care: that of the deepest part of the model above it."""
    owner, module = model, model
    for part in name.split(".")[:-1]:
        module = getattr(module, part, None)
        if not isinstance(module, torch.nn.Module):
            break
        if callable(getattr(type(module), "load_weights", None)) and ".models." in type(module).__module__:
            owner = module
    function = inspect.unwrap(type(owner).load_weights)
    return _place(inspect.getsourcefile(function) or "", function.__qualname__)


def _place(file: str, qualified: str) -> str:
    _, found, rest = file.rpartition("/site-packages/vllm/")
    return f"vllm/{rest}: {qualified.replace('.<locals>', '')}" if found else ""
