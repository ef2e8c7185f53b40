"""What a launcher (torchrun, or plain environment variables) says about this process: it is one rank of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadmaster.errors import ConfigError

KEY = "LOADMASTER_KEY"
SHORTEST_KEY = 16
"""The fewest characters of a key."""

PORT = "LOADMASTER_PORT"

JOIN_WITHIN_S = 600.0
"""How long ranks wait for each other at the start."""


@dataclass(frozen=True, slots=True)
class Launch:
    """This process is rank ``rank`` of ``num_ranks``, the ``local_rank``-th of ``num_local_ranks`` on its host.

    Rank 0 listens at ``address``, an address of its host, and ``port``; the others connect to it. ``key`` is the secret that
    all of them have.
    """

    rank: int
    num_ranks: int
    local_rank: int
    num_local_ranks: int
    address: str
    port: int
    key: bytes = field(repr=False)
    join_within_s: float = JOIN_WITHIN_S

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """Read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them.

        Returns None if the variables are missing, or name only one process. LOCAL_RANK and LOCAL_WORLD_SIZE may be missing
        where each host has one rank. torchrun itself listens at MASTER_PORT, so under torchrun the port is the next one;
        LOADMASTER_PORT names another.

        Raises:
            ConfigError: a value is not valid, or LOADMASTER_KEY is missing or too short.
        """
        names = ("RANK", "MASTER_ADDR", "WORLD_SIZE")
        if any(name not in environment for name in names) or environment["WORLD_SIZE"] == "1":
            return None
        num_ranks = _number(environment, "WORLD_SIZE", 1, 1 << 20)
        rank = _number(environment, "RANK", 0, num_ranks - 1)
        num_local_ranks = _number(environment, "LOCAL_WORLD_SIZE", 1, num_ranks, default=1)
        local_rank = _number(environment, "LOCAL_RANK", 0, num_local_ranks - 1, default=0)
        if PORT in environment:
            port = _number(environment, PORT, 1, 65535)
        else:
            port = _number(environment, "MASTER_PORT", 1, 65534) + ("TORCHELASTIC_RUN_ID" in environment)
        key = environment.get(KEY, "")
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"a launcher started this as rank {rank} of {num_ranks}, and {KEY} "
                + (f"has {len(key)} characters, expected at least {SHORTEST_KEY}" if key else "is not set"),
                hint=f"processes that connect over the network prove that they have the same secret: set {KEY} to the same "
                "value on all hosts, for example the output of `openssl rand -hex 32`",
            )
        return cls(rank, num_ranks, local_rank, num_local_ranks, environment["MASTER_ADDR"], port, key.encode())

    def ranks_here(self) -> range:
        """Return the ranks on this process's host, which a launcher numbers one after another."""
        first = max(self.rank - self.local_rank, 0)
        return range(first, min(first + self.num_local_ranks, self.num_ranks))

    @property
    def rendezvous(self) -> str:
        """Where rank 0 listens."""
        return f"{self.address}:{self.port}"


def _number(environment: Mapping[str, str], name: str, least: int, most: int, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise ConfigError(
            f"the environment variable {name} is {'missing' if text is None else repr(text[:20])}, expected a number from "
            f"{least} to {most}",
            hint="torchrun sets it; without torchrun set it yourself, or unset RANK and WORLD_SIZE to run on this host alone",
        )
    return int(text)
