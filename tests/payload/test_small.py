"""Small weights of one kind are checked together, and come to what each comes to alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.payload import survey_payload, verify, verify_payload
from loadmaster.payload.roles import Role
from loadmaster.payload.sketch import Samples, sketches_of
from loadmaster.payload.tally import Tally


def alone(tensor: Any, dtype: str) -> Tally:
    """Look at one tensor by itself."""
    tally = Tally(Samples(len(tensor), dtype, Role.WEIGHT))
    tally.look(tensor, 0, dtype, Role.WEIGHT)
    return tally


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64", "F8_E4M3", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "I32"])
@pytest.mark.parametrize("size", [8, 136, 1024])
def test_sketches_are_those_of_each_alone(dtype: str, size: int) -> None:
    """Random bytes, of which some are NaN; zeros; negative zeros; a run of zeros, which needs a closer look."""
    tensors = np.random.default_rng(size).integers(0, 256, (40, size)).astype(np.uint8)
    tensors[3:6] = 0
    tensors[5, 7::8] = 0x80
    tensors[7, : size // 2] = 0
    tensors[8] = tensors[9]
    sketches = sketches_of(tensors, dtype)
    assert len(sketches) == 40
    for tensor, sketch in zip(tensors, sketches, strict=True):
        tally = alone(tensor, dtype)
        assert tally.samples is not None
        expected = tally.samples.sketch()
        if sketch is not None:
            assert sketch._replace(amplitude=None) == expected._replace(amplitude=None)
            assert sketch.amplitude == pytest.approx(expected.amplitude)
            assert not tally.faults and tally.all_zero == (sketch.hole is not None)
    assert sketches[4] is not None or dtype == "F8_E8M0"
    assert sketches[20:].count(None) < 20 or dtype in ("F16", "F8_E4M3", "F8_E5M2FNUZ", "F8_E8M0")


def test_the_same_is_found_whether_they_are_checked_together_or_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 weights of four values: one has a NaN, one is zero, one a copy of another."""
    values = np.random.default_rng(1).normal(size=(200, 2, 2)).astype(np.float32)
    values[3, 1, 0], values[4], values[6] = np.nan, 0, values[7]
    save_file({f"model.layers.{n}.w.weight": v for n, v in enumerate(values)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    survey = survey_payload(open_checkpoint(tmp_path))
    together = verify_payload(survey)
    assert {(f.code, f.tensor) for f in together.findings} >= {
        ("value-not-finite", "model.layers.3.w.weight"),
        ("value-all-zero", "model.layers.4.w.weight"),
    }
    monkeypatch.setattr(verify, "FEWEST", 1000)
    assert verify_payload(survey).findings == together.findings
