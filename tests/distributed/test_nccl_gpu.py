"""NCCL between ranks: sums, columns side by side, and where it listens. On one GPU the ranks pretend to be on two hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import nccl_rank

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_ranks_add_up_and_listen_on_the_loopback_alone(tmp_path: Path) -> None:
    num_gpus = torch.cuda.device_count()
    ranks = []
    for slot in range(2):
        pretend = (
            {"NCCL_HOSTID": f"host-{slot}"} if num_gpus < 2 else {}
        )  # NCCL refuses ranks that share a GPU of a host
        ranks.append(
            subprocess.Popen(
                [sys.executable, nccl_rank.__file__, str(slot), "2", str(tmp_path / "stage-0"), str(slot % num_gpus)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **pretend},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in ranks:
        said, _ = process.communicate(timeout=120)
        made = json.loads(said.splitlines()[-1])
        assert made["total"] == [[1, 7], [3, 9], [5, 11]]
        assert made["gathered"] == [[0, 1], [0, 1]]
        assert made["empty"] == [0, 6]
        assert made["listening"] == ["127.0.0.1"]
