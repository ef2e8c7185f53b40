"""What workers are doing, read without asking them."""

import os
import subprocess
import sys
from pathlib import Path

from loadmaster.workers.pulse import Phase, Pulse, cpu_seconds


def test_another_process_sees_what_a_rank_is_doing() -> None:
    pulse = Pulse.create(3)
    try:
        assert [pulse.get(rank) for rank in range(3)] == [(Phase.IDLE, 0)] * 3
        script = (
            "import sys; from loadmaster.workers.pulse import Phase, Pulse; "
            "Pulse(int(sys.argv[1]), 3).set(1, Phase.COMPUTING, 7)"
        )
        subprocess.run([sys.executable, "-c", script, str(pulse.fd)], pass_fds=[pulse.fd], check=True)
        assert [pulse.get(rank) for rank in range(3)] == [(Phase.IDLE, 0), (Phase.COMPUTING, 7), (Phase.IDLE, 0)]
    finally:
        pulse.close()


def test_cpu_time_grows_with_work_and_is_unknown_of_a_process_that_is_gone(tmp_path: Path) -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    while (now := cpu_seconds(os.getpid())) is not None and now <= before:
        sum(range(100_000))
    assert cpu_seconds(1, tmp_path) is None
