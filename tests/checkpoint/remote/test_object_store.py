"""A checkpoint in an object store, against a server that speaks S3."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import Checkpoint, open_checkpoint, open_model
from loadmaster.checkpoint.folder import open_source
from loadmaster.checkpoint.remote.folder import RemoteFolder
from loadmaster.checkpoint.remote.object_store import ObjectFiles
from loadmaster.cli.main import main
from loadmaster.errors import CheckpointError
from loadmaster.plan import build_plan
from tests.checkpoint.bucket import Bucket

SECOND = "model-00002-of-00002.safetensors"


def refusal(url: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_model(url)
    return str(refused.value)


def test_a_prefix_plans_like_the_folder_on_disk(bucket: Bucket, folder: Path) -> None:
    there, here = open_model(bucket.url), open_checkpoint(folder)
    assert (there.digest, there.findings, there.config) == (here.digest, (), here.config)
    assert build_plan(there).hash == build_plan(here).hash
    assert (there.origin.kind, there.origin.name, there.origin.is_local) == ("s3", bucket.url, False)


def test_a_bucket_of_google_is_read_by_the_same_requests(
    bucket: Bucket, folder: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's store has an interface like S3's, which the client uses: the server is the same, without signatures."""
    account = tmp_path / "account.json"
    keys = {
        "gcs_base_url": endpoint,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    account.write_text(json.dumps(keys))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    bucket.publish()
    there, here = open_model("gs://bucket/models/it"), open_checkpoint(folder)
    assert (there.digest, there.findings, there.origin.kind) == (here.digest, (), "gs")
    assert "gs://bucket/nothing has no objects" in refusal("gs://bucket/nothing")


def test_kept_headers_are_those_of_the_same_object(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", bucket.url]) == 0
    assert main(["inspect", f"{bucket.url}/"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert "in 2 request(s)" in first
    assert "2 of them from the cache: 0.0 KiB in 0 request(s)" in second


def test_a_url_may_name_one_object(bucket: Bucket, folder: Path) -> None:
    assert open_model(f"{bucket.url}/{SECOND}").digest == open_checkpoint(folder / SECOND).digest
    assert "does not exist" in refusal(f"{bucket.url}/other.safetensors")


def test_a_missing_object_is_a_finding_and_an_empty_prefix_an_error(bucket: Bucket) -> None:
    bucket.delete(SECOND)
    assert [(f.code, f.file) for f in open_model(bucket.url).findings] == [("shard-missing", SECOND)]
    assert "s3://bucket/nothing has no objects" in refusal("s3://bucket/nothing")
    assert "s3://nobody/x" in refusal("s3://nobody/x")
    assert "s3:///x names no bucket" in refusal("s3:///x")


def opened(files: ObjectFiles) -> Checkpoint:
    return open_source(RemoteFolder(files, cache=None, progress=lambda done, total: None, say=lambda line: None))


def test_an_object_that_changes_after_the_listing_is_a_finding(bucket: Bucket, folder: Path) -> None:
    class Changed(ObjectFiles):
        def listing(self) -> Any:
            listed = super().listing()
            bucket.put(SECOND, (folder / SECOND).read_bytes()[:-1] + b"\1")
            return listed

    found = opened(Changed(bucket.url)).findings
    assert [(f.code, f.file) for f in found] == [("shard-unreadable", SECOND)]
    assert "not the object that was listed" in found[0].message


def test_a_store_that_cannot_be_reached_is_one_error_that_says_what_to_set(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError) as refused:
        opened(ObjectFiles(bucket.url, retry={"max_retries": 0, "retry_timeout": timedelta(seconds=1)}))
    assert f"{bucket.url} cannot be read: " in str(refused.value)
    assert "AWS_ENDPOINT_URL" in str(refused.value)


def test_without_obstore_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    said = refusal("gs://bucket/model")
    assert "needs the package obstore" in said
    assert "loadmaster[stores]" in said
