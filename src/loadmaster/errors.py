"""All errors that users see, in one tree.

    LoadmasterError
    ├── InputError                exit 1: something is wrong with checkpoint, config or layout
    │   ├── CheckpointError       files, headers, index
    │   ├── ConfigError           config.json
    │   ├── FamilyError           a model family from another package
    │   ├── LayoutError           an impossible parallel layout
    │   ├── PlanError             a plan that is not proven; carries its findings
    │   └── UnsupportedError      valid, but not supported yet; says what is
    ├── UsageError                exit 2: the command line alone
    ├── LoadError                 exit 3: reading or placing failed; names file, tensor and rank
    ├── RunError                  exit 3: a stage failed while running
    ├── RequestError              one request is refused; the engine goes on
    └── ArgumentError             a function of the library was called with an argument that it cannot take

A user's fault raises one of these with what, where, evidence and hint; ``assert`` is for bugs of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadmaster.findings import Finding


class LoadmasterError(Exception):
    """Base of all errors that a user can cause or fix. ``hint`` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


def clip(text: str, most: int = 200) -> str:
    """Return at most ``most`` characters of untrusted text, for an error message.

    >>> clip("abc", 3), clip("abcdef", 3)
    ('abc', 'abc… (6 characters)')
    """
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


class InputError(LoadmasterError):
    """The checkpoint, config or layout is wrong.

    ``code`` is the code of the finding that reports this error. Where ``findings`` are given, they are reported instead.
    """

    code = "checkpoint-missing"

    def __init__(
        self, message: str, *, hint: str | None = None, findings: tuple[Finding, ...] = (), code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.findings = findings
        self.code = code or type(self).code


class CheckpointError(InputError):
    """Files, headers or the index are not a valid checkpoint."""


class ConfigError(InputError):
    """config.json is missing, malformed, or lacks what the architecture needs."""

    code = "config-invalid"


class FamilyError(InputError):
    """A model family from another package cannot be used; the message names the distribution and the entry point."""

    code = "plugin-broken"


class LayoutError(InputError):
    """The parallel layout is impossible for this model; the hint names legal sizes."""

    code = "layout-stages"


class PlanError(InputError):
    """A plan is not proven. ``proof`` is the `loadmaster.plan.Proof`, with its figures, where there is one."""

    code = "plan-invalid"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        findings: tuple[Finding, ...] = (),
        code: str | None = None,
        proof: Any = None,
    ) -> None:
        super().__init__(message, hint=hint, findings=findings, code=code)
        self.proof = proof


class UnsupportedError(InputError):
    """The input is valid, but this version does not support what was asked."""

    code = "unsupported"


class UsageError(LoadmasterError):
    """The command line contradicts itself."""

    exit_code = 2


class LoadError(LoadmasterError):
    """Loading failed: a short read, a changed file, a disagreement between ranks. The model is unusable."""

    exit_code = 3


class RunError(LoadmasterError):
    """A running stage failed or was lost."""

    exit_code = 3


class RequestError(LoadmasterError):
    """A request is refused (too long, malformed); the engine goes on serving others."""

    exit_code = 1


class ArgumentError(LoadmasterError, ValueError):
    """A function of the library was called with an argument that it cannot take; the message names the argument."""

    exit_code = 2
