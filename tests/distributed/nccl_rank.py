"""One rank of `test_nccl_gpu`: ``python nccl_rank.py SLOT SIZE MEETING GPU``. Prints what it has, as JSON."""

from __future__ import annotations

import json
import os
import sys

import psutil
import torch

from loadmaster.distributed.nccl import NcclGroup


def main() -> None:
    slot, size, meeting, gpu = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    device = torch.device("cuda", gpu)
    group = NcclGroup(slot, size, meeting, device)
    x = torch.arange(6.0, device=device).view(2, 3).t() + slot  # not contiguous
    total = group.all_reduce(x)
    gathered = group.all_gather(torch.full((2, 1), float(slot), device=device))
    empty = group.all_gather(torch.empty(0, 3, device=device))
    listening = {
        c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr
    }
    made = {
        "total": total.tolist(),
        "gathered": gathered.tolist(),
        "empty": list(empty.shape),
        "listening": sorted(listening),
    }
    print(json.dumps(made), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
