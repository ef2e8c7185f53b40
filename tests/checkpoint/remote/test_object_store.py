"""A checkpoint in an object store, against a server that speaks S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.conftest import Tiny

pytest.importorskip("moto", reason="the S3 server of the tests")

SECOND = "model-00002-of-00002.safetensors"


@dataclass
class Bucket:
    """A bucket with a model under ``models/it/``, and the client that fills it."""

    client: Any
    url: str = "s3://bucket/models/it"

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=f"models/it/{name}", Body=content)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket="bucket", Key=f"models/it/{name}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def folder(tiny: Tiny) -> Path:
    return tiny("llama")


@pytest.fixture
def bucket(endpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    made = Bucket(client)
    for path in folder.iterdir():
        made.put(path.name, path.read_bytes())
    made.put("original/params.json", b"{}")
    yield made
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    client.delete_bucket(Bucket="bucket")


def refusal(url: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_model(url)
    return str(refused.value)


def test_a_prefix_plans_like_the_folder_on_disk(bucket: Bucket, folder: Path) -> None:
    there, here = open_model(bucket.url), open_checkpoint(folder)
    assert (there.digest, there.findings, there.config) == (here.digest, (), here.config)
    assert build_plan(there).hash == build_plan(here).hash
    assert (there.origin.kind, there.origin.name, there.origin.is_local) == ("s3", bucket.url, False)


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
