"""Where a checkpoint can be: the hub's stand-in and its client, a site, and a bucket in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.bucket import Bucket
from tests.checkpoint.remote.site import Site
from tests.checkpoint.standin import StandIn, folder_files
from tests.conftest import Tiny


@pytest.fixture
def hub() -> Iterator[StandIn]:
    """A stand-in for the hub, with nothing on it."""
    with StandIn().serving() as made:
        yield made


@pytest.fixture
def cache(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the hub's client in this process asks the stand-in, and retries without waiting."""
    from huggingface_hub import constants, file_download

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    return folder


@pytest.fixture
def folder(tiny: Tiny) -> Path:
    """A checkpoint of two shards with an index."""
    return tiny("llama")


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    """The checkpoint behind a range server."""
    with Site(folder_files(folder)).serving() as made:
        yield made


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    pytest.importorskip("moto", reason="the S3 server of the tests")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(endpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The checkpoint in an object store, whose client finds it by its environment variables."""
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
