"""Streaming: which bytes are read, how far ahead, and whose memory they lie in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loadmaster.checkpoint import LocalStore, open_checkpoint
from loadmaster.errors import LoadError, UnsupportedError
from loadmaster.integrations.vllm import stream
from loadmaster.integrations.vllm.stream import CHUNK_BYTES, LOCKED_BYTES, stream_tensors
from tests.conftest import Tiny
from tests.plan.damage import read_shards


class Counting(LocalStore):
    """Counts the bytes that are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.lock = 0, threading.Lock()

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        with self.lock:
            self.asked += sum(b.nbytes for b in buffers)
        super().readinto(name, start, buffers)


def test_all_tensors_come_in_file_order_byte_for_byte_and_are_read_once(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("glm-5.1-fp8"))
    stored = {n: t for tensors in read_shards(checkpoint.path).values() for n, t in tensors.items()}
    with Counting(checkpoint.path) as store:
        ids = range(len(checkpoint.table))
        read = list(stream_tensors(checkpoint, ids, store, staging_bytes=2**20, num_readers=2))
        assert store.asked == checkpoint.table.payload_bytes
    assert [n for n, _ in read] == checkpoint.table.names
    for name, tensor in read:  # all kept, none overwritten
        assert (tensor.dtype, tensor.shape) == (stored[name].dtype, stored[name].shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), stored[name].reshape(-1).view(torch.uint8))
    assert len({t.untyped_storage().data_ptr() for _, t in read if t.numel()}) == len([t for _, t in read if t.numel()])


def test_only_what_is_asked_for_is_read(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    with Counting(checkpoint.path) as store:
        names = [n for n, _ in stream_tensors(checkpoint, [1, 5], store, staging_bytes=1, num_readers=1)]
        assert names == [checkpoint.table.names[1], checkpoint.table.names[5]]
        assert store.asked == int(checkpoint.table.nbytes[[1, 5]].sum())


def test_no_more_is_read_ahead_than_the_budget(tmp_path: Path) -> None:
    save_file({f"t{i}": torch.full((256,), i, dtype=torch.float32) for i in range(8)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with Counting(tmp_path) as store:
        tensors = stream_tensors(checkpoint, range(8), store, staging_bytes=3 * 1024, num_readers=2)
        for i, (_, tensor) in enumerate(tensors):
            assert tensor[0] == i
            assert store.asked <= (i + 3) * 1024


def test_memory_is_used_again_once_no_view_of_it_is_left_and_never_before(tmp_path: Path) -> None:
    save_file(
        {f"t{i:03d}": torch.full((4096,), i, dtype=torch.int32) for i in range(64)}, tmp_path / "model.safetensors"
    )
    kept: dict[int, torch.Tensor] = {}
    addresses = []
    with LocalStore(tmp_path) as store:
        tensors = stream_tensors(open_checkpoint(tmp_path), range(64), store, staging_bytes=4 * 2**14, num_readers=2)
        for i, (_, tensor) in enumerate(tensors):
            assert (tensor == i).all()
            addresses.append(tensor.data_ptr())
            if i % 8 == 0:
                kept[i] = tensor.view(64, 64).t()[1:]  # a view keeps what lies under it
    assert all((tensor == i).all() for i, tensor in kept.items())
    assert len({addresses[i] for i in kept}) == len(kept)
    assert len(set(addresses)) < 24


def test_a_tensor_larger_than_budget_and_chunk_comes_whole(tmp_path: Path) -> None:
    large = torch.arange(CHUNK_BYTES // 4 + 7, dtype=torch.int32)
    save_file({"large": large, "small": torch.ones(1)}, tmp_path / "model.safetensors")
    with LocalStore(tmp_path) as store:
        read = dict(stream_tensors(open_checkpoint(tmp_path), [0, 1], store, staging_bytes=1, num_readers=2))
    assert torch.equal(read["large"], large)


def test_the_next_tensor_is_read_while_one_is_used_even_if_both_are_larger_than_the_budget(tmp_path: Path) -> None:
    save_file({f"t{i}": torch.ones(256) for i in range(3)}, tmp_path / "model.safetensors")
    with Counting(tmp_path) as store:
        tensors = stream_tensors(open_checkpoint(tmp_path), range(3), store, staging_bytes=1, num_readers=1)
        next(tensors)
        end = time.monotonic() + 30
        while store.asked < 2 * 1024 and time.monotonic() < end:
            time.sleep(0.001)
        assert store.asked == 2 * 1024


class Card:
    """Stands for CUDA: what is page-locked, and how often the device was waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.locked: dict[int, int] = {}
        self.num_locks = self.num_waits = 0
        monkeypatch.setattr(stream, "page_lock", self.lock)
        monkeypatch.setattr(stream, "page_unlock", self.locked.pop)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def lock(self, address: int, num_bytes: int) -> None:
        assert address not in self.locked
        self.locked[address] = num_bytes
        self.num_locks += 1

    def wait(self) -> None:
        self.num_waits += 1


def test_for_a_gpu_memory_is_page_locked_once_and_waited_for_before_it_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch)
    numbers = LOCKED_BYTES // 4
    save_file(
        {f"t{i}": torch.full((numbers,), i, dtype=torch.int32) for i in range(8)}
        | {"small": torch.ones(1, dtype=torch.int32)},
        tmp_path / "model.safetensors",
    )
    addresses, waits = [], []
    with LocalStore(tmp_path) as store:
        checkpoint = open_checkpoint(tmp_path)
        tensors = stream_tensors(
            checkpoint, range(9), store, staging_bytes=2 * LOCKED_BYTES, num_readers=2, page_locked=True
        )
        for _, tensor in tensors:
            assert (tensor.data_ptr() in card.locked) == (tensor.numel() > 1)
            addresses.append(tensor.data_ptr())
            waits.append(card.num_waits)
            del tensor
    large = addresses[1:] if checkpoint.table.names[0] == "small" else addresses[:8]
    assert card.num_locks == len(set(large)) < 8
    again = next(i for i, address in enumerate(addresses) if address in addresses[:i])
    assert waits[again] > waits[0]
    del tensors
    assert card.locked == {}


def test_a_file_that_changes_is_refused_before_the_first_byte_and_after_the_last(tiny_copy: Tiny) -> None:
    path = tiny_copy("llama")
    checkpoint = open_checkpoint(path)
    ids = range(len(checkpoint.table))
    with LocalStore(path) as store:
        tensors = stream_tensors(checkpoint, ids, store, staging_bytes=2**20, num_readers=1)
        next(tensors)
        os.utime(path / checkpoint.files[0].name)
        with pytest.raises(LoadError, match="changed since its header was read"):
            list(tensors)
        with pytest.raises(LoadError, match="changed since its header was read"):
            next(stream_tensors(checkpoint, ids, store, staging_bytes=2**20, num_readers=1))


def test_a_format_that_torch_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    header = b'{"odd":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0")
    with LocalStore(tmp_path) as store, pytest.raises(UnsupportedError, match="odd is stored as F6_E2M3"):
        next(stream_tensors(open_checkpoint(tmp_path), [0], store, staging_bytes=1, num_readers=1))
