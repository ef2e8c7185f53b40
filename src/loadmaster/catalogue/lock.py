"""The lock: how a plan differs from the one that was locked."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

LOCK: Final[dict[str, Entry]] = {
    "lock-invalid": Entry(
        "the file given with --locked is not a lock",
        "it does not exist, was edited, or was written by a later version",
        "not a lock: ValueError: its version is 2, expected 1",
        "write it again with --write-lock",
    ),
    "lock-commit": Entry(
        "the hub's commit is not the one that was locked",
        "the branch or tag has moved on since the lock was written",
        "the hub's commit is 2222222222222222222222222222222222222222, locked is 1111111111111111111111111111111111111111",
        "give --revision the locked commit; if the change is meant, write the lock again",
    ),
    "lock-shard": Entry(
        "a shard's name, size or header is not the one that was locked",
        "another revision of the checkpoint, a shard that is missing or was added",
        "model-00002-of-00003.safetensors: its size or its header is not the one that was locked",
        "compare the checkpoints with `loadmaster diff`; if the change is meant, write the lock again",
    ),
    "lock-config": Entry(
        "config.json is not the one that was locked",
        "another revision of the checkpoint, or an edited config",
        "config.json: it is not the one that was locked",
        "compare the checkpoints with `loadmaster diff`; if the change is meant, write the lock again",
    ),
    "lock-options": Entry(
        "an option that decides the plan is not the one that was locked",
        "another layout, engine, --dtype or --waive than when the lock was written",
        "pipeline_parallel_size is 4, locked is 2",
        "give the options that the lock was written with, or write it again",
    ),
    "lock-version": Entry(
        "this version makes another plan from the same inputs",
        "loadmaster was updated since the lock was written",
        "loadmaster 0.2.0 makes another plan from the same inputs than 0.1.0, which wrote the lock",
        "run the version that the lock names, or check the new plan and write the lock again",
    ),
}
