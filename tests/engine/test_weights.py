"""Which form of weights is chosen for a device, its arithmetic and its memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadmaster.engine import weights
from loadmaster.engine.weights import RunPlan, plan_to_run

WITHOUT = "processor\t: 0\nflags\t\t: fpu sse2 avx2 f16c fma\n"
WITH = "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n"


def plan(dtype: str | None, target: str) -> Any:
    """A model of 4 GiB in BF16 that is stored in half of that."""
    num_bytes = (2 << 30) if target == "native" else (8 << 30) if dtype == "F32" else (4 << 30)
    return SimpleNamespace(
        dtype=dtype or "BF16", num_ranks=1, target=target, rank=lambda _: SimpleNamespace(num_bytes=num_bytes)
    )


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def choose(cpuinfo: str, free_gib: int = 64, **options: Any) -> RunPlan:
        monkeypatch.setattr(weights, "free_bytes", lambda: free_gib << 30)
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        return plan_to_run(plan, cpuinfo=tmp_path / "cpuinfo", **options)

    return choose


@pytest.mark.parametrize(
    ("cpuinfo", "options", "dtype", "target"),
    [
        (WITHOUT, {"device": "cpu"}, "F32", "native-decoded"),
        (WITH, {"device": "cpu"}, "BF16", "native-decoded"),
        ("", {"device": "cpu"}, "BF16", "native-decoded"),
        (WITHOUT, {"device": "cuda"}, "BF16", "native"),
        (WITHOUT, {"device": "cuda", "weights": "decoded"}, "BF16", "native-decoded"),
        (WITHOUT, {"device": "cpu", "weights": "stored"}, "F32", "native"),
        (WITHOUT, {"device": "cpu", "dtype": "BF16"}, "BF16", "native-decoded"),
        (WITHOUT, {"device": "cpu", "free_gib": 8}, "BF16", "native"),
        (WITHOUT, {"device": "cpu", "free_gib": 8, "weights": "decoded"}, "F32", "native-decoded"),
    ],
)
def test_weights_are_decoded_once_where_that_is_faster_and_fits(
    choose: Any, cpuinfo: str, options: dict[str, Any], dtype: str, target: str
) -> None:
    run = choose(cpuinfo, **options)
    assert (run.plan.dtype, run.plan.target) == (dtype, target)


def test_the_choice_says_why(choose: Any) -> None:
    assert choose(WITHOUT, device="cpu").choice == "computing in F32, weights decoded (this CPU cannot compute in BF16)"
    assert (
        choose(WITH, device="cpu", free_gib=4).choice
        == "computing in BF16, weights as stored (decoded they take 4.00 GiB, and 4.00 GiB are free)"
    )
    assert choose(WITH, device="cuda").choice == "computing in BF16, weights as stored"
