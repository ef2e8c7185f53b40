"""The lock: what was planned, in a small file that is kept with a deployment, and what differs from it today.

It holds the digest of every shard's header and of the config, the layout and the other options that decide a plan, the
version that planned, and the plan's hash. It names no folder: a lock that was written on one machine is checked on another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from loadmaster.errors import PlanError, clip
from loadmaster.findings import Finding, joined
from loadmaster.plan.hash import PLAN_VERSION
from loadmaster.plan.plan import Plan

LOCK_NAME = "loadmaster.lock"
LOCK_VERSION = 1
"""Raised whenever the meaning of a lock's fields changes."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What was planned.

    ``shards`` gives by file name the SHA-256 of its name, size and header; ``config`` that of config.json with sorted keys.
    ``options`` are the layout and what else decides a plan, as JSON values. ``version`` is the package's, ``plan_version``
    that of its plans. ``model`` and ``commit`` are the hub's, of a model that was planned from there.
    """

    version: str
    plan_version: int
    plan_hash: str
    config: str
    shards: Mapping[str, str]
    options: Mapping[str, Any]
    model: str | None = None
    commit: str | None = None

    def to_json(self) -> str:
        """Return the lock as the text of its file: keys sorted, so that two locks can be compared line by line."""
        value = {
            "lock_version": LOCK_VERSION,
            "loadmaster": self.version,
            "plan_version": self.plan_version,
            "plan_hash": self.plan_hash,
            "config_sha256": self.config,
            "model": self.model,
            "commit": self.commit,
            "options": dict(self.options),
            "shards": dict(self.shards),
        }
        return json.dumps(value, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str) -> Lock:
        """Return the lock that `to_json` wrote.

        Raises:
            PlanError: the text is not a lock of this version.
        """
        try:
            value = orjson.loads(text)
            if value["lock_version"] != LOCK_VERSION:
                raise ValueError(f"its version is {value['lock_version']!r}, expected {LOCK_VERSION}")
            shards, options = value["shards"], value["options"]
            texts = (value["loadmaster"], value["plan_hash"], value["config_sha256"], *shards.values())
            of_hub = (value.get("model"), value.get("commit"))
            if not all(isinstance(t, str) for t in (*texts, *(t for t in of_hub if t is not None))) or not isinstance(
                options, dict
            ):
                raise ValueError("a field has another type")
            return cls(
                version=value["loadmaster"],
                plan_version=int(value["plan_version"]),
                plan_hash=value["plan_hash"],
                config=value["config_sha256"],
                shards=shards,
                options=options,
                model=of_hub[0],
                commit=of_hub[1],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"not a lock: {type(error).__name__}: {clip(str(error))}",
                hint="write it again with `loadmaster plan … --write-lock`",
                code="lock-invalid",
            ) from error


def lock_of(plan: Plan, version: str) -> Lock:
    """Return the lock of a plan, made by ``version`` of the package."""
    config = json.dumps(plan.config, sort_keys=True).encode()
    origin = plan.checkpoint.origin
    return Lock(
        version=version,
        plan_version=PLAN_VERSION,
        plan_hash=plan.hash,
        config=hashlib.sha256(config).hexdigest(),
        shards={f.name: f.digest for f in plan.checkpoint.files},
        options={
            **plan.layout.as_json(),
            "target": plan.target.name,
            "dtype": plan.explicit_dtype,
            "waive": [[w.pattern, w.reason] for w in plan.waive],
        },
        model=origin.name if origin.kind == "hub" else None,
        commit=origin.commit,
    )


def check_lock(locked: Lock, today: Lock) -> tuple[Finding, ...]:
    """Return an error for each difference between what was locked and what is planned today.

    A plan that differs although no input does is the package's doing, and names both versions.
    """
    findings = [*_commit(locked, today), *_shards(locked, today), *_config(locked, today), *_options(locked, today)]
    if not findings and locked.plan_hash != today.plan_hash:
        made = f"loadmaster {today.version} makes another plan from the same inputs"
        message = f"{made} than {locked.version}, which wrote the lock"
        hint = "run the version that the lock names, or check the new plan and write the lock again"
        findings.append(Finding("lock-version", "error", message, hint=hint))
    return tuple(findings)


def _commit(locked: Lock, today: Lock) -> Iterator[Finding]:
    """Compare the hub's commits, where both are known: two with the same headers can differ in their payload."""
    if locked.commit is not None and today.commit is not None and locked.commit != today.commit:
        message = f"the hub's commit is {today.commit}, locked is {locked.commit}"
        yield Finding(
            "lock-commit", "error", message, hint="give --revision the locked commit, or write the lock again"
        )


def _shards(locked: Lock, today: Lock) -> Iterator[Finding]:
    changed: list[Finding] = []
    for name in sorted({*locked.shards, *today.shards}):
        was, now = locked.shards.get(name), today.shards.get(name)
        if was != now:
            what = (
                "it is not in the lock"
                if was is None
                else "it is in the lock, and was not read"
                if now is None
                else "its size or its header is not the one that was locked"
            )
            hint = "`loadmaster diff` shows what changed; if it is meant, write the lock again"
            changed.append(Finding("lock-shard", "error", what, file=name, hint=hint))
    yield from joined(changed)


def _config(locked: Lock, today: Lock) -> Iterator[Finding]:
    if locked.config != today.config:
        hint = "`loadmaster diff` shows the keys that changed; if they are meant, write the lock again"
        yield Finding("lock-config", "error", "it is not the one that was locked", file="config.json", hint=hint)


def _options(locked: Lock, today: Lock) -> Iterator[Finding]:
    for name in sorted({*locked.options, *today.options}):
        was, now = locked.options.get(name), today.options.get(name)
        if was != now:
            message = f"{name} is {clip(json.dumps(now), 80)}, locked is {clip(json.dumps(was), 80)}"
            hint = "give the options that the lock was written with, or write it again"
            yield Finding("lock-options", "error", message, hint=hint)
