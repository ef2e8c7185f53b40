"""One load of one checkpoint on one rank: what the engine did, and what the model's parameters then held.

Needs vLLM and torch, and runs in a separate process (`isolate`), because engines may end theirs.
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

from loadmaster.audit.observed import NOWHERE, Attempt
from loadmaster.audit.ranks import Built, Rank, build
from loadmaster.audit.reference import Expected, difference, engine_name, raw
from loadmaster.integrations.vllm.built_model import expert_sizes
from loadmaster.integrations.vllm.unwritten import is_default, unwritten

Params: TypeAlias = dict[str, torch.Tensor]


def attempt(
    path: Path,
    rank: Rank,
    load_format: str,
    expected: Expected,
    *,
    named: Callable[[tuple[int, int] | None], Expected | None] = lambda sizes: None,
    draft: str | None,
    process: bool = False,
    **engine: Any,
) -> Attempt:
    """Load a checkpoint on one rank, and compare every parameter with that of the sound checkpoint.

    ``named`` returns what is expected by the engine's names, where its parameters are described, given the sizes of experts that
    its kernels want (`build_plan`); it is asked if ``expected`` has names that the engine does not have. With ``process`` the
    engine also processes the weights, which may raise; the parameters are then meaningless.
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
    held = _Held(built.params, before, expected, _may_stay(built))
    if held.has_unknown and (by_name := named(expert_sizes(built.model))) is not None:
        held = _Held(built.holding(by_name), before, by_name, _may_stay(built))
    gaps, differences = held.gaps(), held.differences()
    concerned = [*(g[0] for g in gaps), *(n for n, _ in differences)]
    return Attempt(
        "loaded",
        built=True,
        num_read=counted.number,
        logged=tuple(tidy(line, path) for line in log.lines),
        loader=_loader_of(built.model, concerned[0] if concerned else ""),
        gaps=tuple(gaps),
        differences=tuple(differences),
        num_params=held.num_params,
        num_compared=held.num_compared,
        narrowed=held.narrowed,
    )


def _initialised(params: Params) -> Params:
    """Return copies of the parameters that the model initialised itself: those without the pattern."""
    return {n: p.clone() for n, p in params.items() if p.numel() and not unwritten(p).any()}


class _Held:
    """What a model's parameters hold after loading, compared with what they held ``before`` and what they should hold.

    ``may_stay`` says which parameters need not be written.
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
                self._unlike[native] = NOWHERE
            elif not (may_stay(name) and self._missing[name]):
                what = difference(params[name], tensor)
                self.narrowed += params[name].element_size() < tensor.element_size()
                if what is None:
                    self._alike.add(name)
                else:
                    self._unlike[name] = what
        self.num_compared = len(self._alike) + len(self._unlike)
        self.num_params = len(params)

    @property
    def has_unknown(self) -> bool:
        """Whether the engine has something expected under a name that is not known here, or lacks it."""
        return NOWHERE in self._unlike.values()

    def gaps(self) -> list[tuple[str, int, int]]:
        """Return the parameters that should have been written and were not."""
        return [
            (name, missing, self._params[name].numel() * self._params[name].element_size())
            for name, missing in self._missing.items()
            if missing and name not in self._alike and not self._may_stay(name) and not self._is_default(name)
        ]

    def differences(self) -> list[tuple[str, str]]:
        """Return the other parameters that hold something wrong."""
        unwritten_names = {name for name, _, _ in self.gaps()}
        return [(name, what) for name, what in self._unlike.items() if name not in unwritten_names]

    def _is_default(self, name: str) -> bool:
        return name in self._before and name not in self._unlike and is_default(name, self._before[name])


def _missing(param: torch.Tensor, before: torch.Tensor | None) -> int:
    """Return how many bytes have the pattern; all of an initialised parameter that did not change."""
    if before is not None:
        return param.numel() * param.element_size() if torch.equal(raw(param), raw(before)) else 0
    return int(unwritten(param).sum()) if param.numel() else 0


class _Counted:
    """Counts the tensors that a model's own loader reads."""

    def __init__(self) -> None:
        self.number, self.last = 0, ""

    def count(self, model: Any) -> None:
        original = model.load_weights

        def load_weights(weights: Any, *more: Any, **named: Any) -> Any:
            return original(self._each(weights), *more, **named)

        model.load_weights = load_weights

    def _each(self, weights: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.number, self.last = self.number + 1, name
            yield name, tensor


def _may_stay(built: Built) -> Any:
    from loadmaster.integrations.vllm.built_model import may_stay

    return may_stay(built.model, built.model_config)


class _Log(logging.Handler):
    """Collects the engine's warnings and errors. The engine resets its loggers while it builds, so call `listen` again."""

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
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    return "\n".join(dict.fromkeys(messages))


def tidy(text: str, path: Path) -> str:
    """Return a message without the parts that differ between runs: the checkpoint's folder, addresses, process ids.

    >>> tidy("/tmp/x1/model.safetensors at 0x7f01: pid=4711", Path("/tmp/x1"))
    'CHECKPOINT/model.safetensors at 0x…: pid=…'
    """
    text = text.replace(str(path), "CHECKPOINT")
    text = re.sub(r"0x[0-9a-f]{4,}", "0x…", text)
    text = re.sub(r"pid=\d+", "pid=…", text)
    text = re.sub(r"/\S*?/site-packages/", "", text)
    return re.sub(r"\{('[^'{}]*'(?:, '[^'{}]*')*)\}", _sorted, text)


def _sorted(match: re.Match[str]) -> str:
    return "{" + ", ".join(sorted(match[1].split(", "))) + "}"  # a set's order differs between processes


def _deepest(error: BaseException) -> str:
    """Return the last function of vLLM that an exception passed through: ``file: qualified name``."""
    deepest = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        deepest = _location(frame.f_code.co_filename, frame.f_code.co_qualname) or deepest
    return deepest


def _loader_of(model: Any, name: str) -> str:
    """Return the ``load_weights`` that loads a tensor or parameter: that of the deepest module above it."""
    owner, module = model, model
    for part in name.split(".")[:-1]:
        module = getattr(module, part, None)
        if not isinstance(module, torch.nn.Module):
            break
        if callable(getattr(type(module), "load_weights", None)) and ".models." in type(module).__module__:
            owner = module
    function = inspect.unwrap(type(owner).load_weights)
    return _location(inspect.getsourcefile(function) or "", function.__qualname__)


def _location(file: str, qualified: str) -> str:
    """Return where a function of vLLM is; nothing for one of another package."""
    import vllm

    path, package = Path(file), Path(vllm.__file__).parent
    if not path.is_relative_to(package):
        return ""
    return f"vllm/{path.relative_to(package).as_posix()}: {qualified.replace('.<locals>', '')}"
