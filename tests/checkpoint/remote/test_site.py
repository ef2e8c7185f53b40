"""A checkpoint behind https://: the same as on disk, and what goes wrong is said in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import Checkpoint, open_checkpoint, open_model
from loadmaster.checkpoint.folder import open_source
from loadmaster.checkpoint.remote.folder import RemoteFolder
from loadmaster.checkpoint.remote.http import Http, StatusError
from loadmaster.checkpoint.remote.retry import Retry
from loadmaster.checkpoint.remote.site import SiteFiles
from loadmaster.cli.main import main
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.limits import CONFIG_BYTES
from loadmaster.plan import Plan, build_plan, prove
from tests.checkpoint.remote.site import Site

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def opened(site: Site, url: str | None = None, timeout_s: float = 30.0) -> tuple[Checkpoint, list[float]]:
    """Open a site without waiting; returns the waits between attempts too."""
    waits: list[float] = []
    with Http(retry=Retry(sleep=waits.append), timeout_s=timeout_s) as http:
        files = SiteFiles(url or site.url, http)
        source = RemoteFolder(files, cache=None, progress=lambda done, total: None, say=lambda line: None)
        return open_source(source, files.only), waits


def refusal(site: Site, url: str | None = None) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(site, url)
    return str(refused.value)


def test_a_folder_behind_https_plans_like_the_folder_on_disk(site: Site, folder: Path) -> None:
    there, here = opened(site)[0], open_checkpoint(folder)
    assert (there.digest, there.findings, there.config) == (here.digest, (), here.config)
    assert build_plan(there).hash == build_plan(here).hash
    assert {n for n, _ in site.requests} == {INDEX, "config.json", "hf_quant_config.json", FIRST, SECOND}
    assert len(site.requests) == 5, "one request for each file"
    headers = sum(f.header_bytes for f in here.files)
    asked = sum(int(r.partition("-")[2]) + 1 for _, r in site.requests if r)
    assert headers <= asked <= 1.3 * headers


def test_what_was_read_of_a_site_is_reported_and_its_files_are_not_on_disk(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", site.url]) == 0
    said = capsys.readouterr()
    assert site.url in said.out
    assert said.err.startswith(f"loadmaster inspect: read 2 header(s) of {site.url}: ")
    plan = build_plan(open_model(site.url))
    assert prove(plan).proven
    with pytest.raises(LoadError, match=f"the files of {site.url} are not on disk"):
        _ = plan.model_path
    again = Plan.from_json(plan.to_json())
    assert (again, again.checkpoint.origin) == (plan, plan.checkpoint.origin)


def test_what_reads_every_byte_refuses_a_url(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", site.url]) == 1
    assert "is a URL, and its files have to be on disk" in capsys.readouterr().err
    assert not site.requests


def test_a_url_may_name_the_index_or_one_file(site: Site, folder: Path) -> None:
    assert len(opened(site, site.url + INDEX)[0].files) == 2
    assert [f.name for f in opened(site, site.url + FIRST)[0].files] == [FIRST]
    assert opened(site, site.url + FIRST)[0].digest == open_checkpoint(folder / FIRST).digest
    assert len(opened(site, site.url.rstrip("/"))[0].files) == 2


def test_without_an_index_the_one_file_is_read(site: Site) -> None:
    del site.files[INDEX]
    assert "has neither model.safetensors.index.json nor model.safetensors" in refusal(site)
    site.files["model.safetensors"] = site.files.pop(FIRST)
    assert [f.name for f in opened(site)[0].files] == ["model.safetensors"]


def test_user_password_and_query_are_sent_to_their_host_only_and_never_shown(site: Site) -> None:
    site.faults[FIRST] = ["elsewhere"]
    url = site.url.replace("http://", "http://me:secret@") + "?sig=hidden"
    checkpoint, _ = opened(site, url)
    assert checkpoint.origin.name == checkpoint.origin.url == site.url
    assert site.tokens == {("127.0.0.1", "Basic bWU6c2VjcmV0"), ("localhost", None)}
    assert site.queries == {"sig=hidden", ""}
    site.faults[SECOND] = ["403"]
    said = refusal(site, url)
    assert "HTTP status 403" in said
    assert "secret" not in said
    assert "hidden" not in said


@pytest.mark.parametrize(
    "faults", [["short"], ["500", "502"], ["drop", "short", "429"], ["500"] * 4], ids=lambda f: "+".join(f)
)
def test_what_fails_for_the_moment_is_repeated_ever_later(faults: list[str], site: Site, folder: Path) -> None:
    site.faults[FIRST] = list(faults)
    checkpoint, waits = opened(site)
    assert checkpoint.digest == open_checkpoint(folder).digest
    assert len(waits) == len(faults)
    assert all(0.5 * 0.5 * 2**i <= w <= 0.5 * 2**i for i, w in enumerate(waits))


def test_a_connection_is_kept_over_parts_redirects_and_refusals(site: Site) -> None:
    site.faults["config.json"] = ["ok", "elsewhere", "ok", "ok", "404"]
    with Http(retry=Retry(sleep=lambda seconds: None)) as client:
        for _ in range(3):
            client.read_range(f"{site.url}config.json", 0, 100)
        with pytest.raises(StatusError):
            client.read_whole(f"{site.url}config.json", CONFIG_BYTES)
        client.read_whole(f"{site.url}config.json", CONFIG_BYTES)
    assert site.num_connections == 2, "one for each host"


def test_a_server_says_when_to_come_back(site: Site) -> None:
    site.faults[FIRST] = ["after 7"]
    assert opened(site)[1] == [7.0]
    site.faults[FIRST] = ["after 3600"]
    assert "HTTP status 503" in refusal(site)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (["500"] * 5, ["HTTP status 500", "try again later"]),
        (["drop"] * 5, ["the connection to", "failed 5 times", "check the network"]),
        (["short"] * 5, ["failed 5 times"]),
        (["401"], ["HTTP status 401", "user:password@host"]),
        (["400"], ["HTTP status 400", "check the URL"]),
        (["whole"], ["sends the whole file instead of the requested range", "supports range requests"]),
        (["no-range"], ["states no range and size"]),
        (["shifted"], ["were requested, and the server sent bytes 1 to"]),
        (["zipped"], ["compresses its answer (gzip)"]),
        (["around"] * 6, ["redirects more than 5 times"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else None,
)
def test_a_server_that_fails_is_one_error_that_says_what_to_do(faults: list[str], says: list[str], site: Site) -> None:
    site.faults[FIRST] = faults
    said = refusal(site)
    assert all(s in said for s in says), said
    assert site.url + FIRST in said


def test_a_slow_server_is_one_error(site: Site) -> None:
    site.faults[FIRST] = ["slow"] * 5
    with pytest.raises(CheckpointError, match="failed 5 times"):
        opened(site, timeout_s=0.1)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    from loadmaster.checkpoint.remote.http import _target

    assert _target("https://a/x", "https://b/y?sig=1") == "https://b/y?sig=1"
    with pytest.raises(CheckpointError, match="redirects to http://b/y, which is not https"):
        _target("https://a/x", "http://b/y?sig=1")


def test_a_shard_that_the_index_names_and_the_site_lacks_is_a_finding(site: Site) -> None:
    del site.files[SECOND]
    checkpoint, _ = opened(site)
    assert [(f.code, f.file) for f in checkpoint.findings] == [("shard-missing", SECOND)]
    assert len(checkpoint.files) == 1


@pytest.mark.parametrize("fault", ["another", "grown"])
def test_a_file_that_changes_between_two_requests_is_a_finding(fault: str, site: Site) -> None:
    del site.files[INDEX]  # without an index the first request is for few bytes, so a long header takes two
    import json

    header = {f"layer.{i}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(200)}
    text = json.dumps(header).encode()
    site.files["model.safetensors"] = len(text).to_bytes(8, "little") + text + bytes(200)
    assert not [f for f in opened(site)[0].findings if f.file == "model.safetensors"]
    site.faults["model.safetensors"] = ["ok", "ok", fault]  # the first is the question whether there is such a file
    (found,) = [f for f in opened(site)[0].findings if f.file == "model.safetensors"]
    assert (found.code, found.message) == ("shard-unreadable", "it changed between two requests")


def test_a_file_that_is_no_shard_is_found_as_on_disk(site: Site, folder: Path) -> None:
    site.files[FIRST] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    site.files[SECOND] = b""
    assert [f.code for f in opened(site)[0].findings] == ["file-lfs-pointer", "file-empty"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/model", ["ftp://host/model: ftp:// is not supported", "hub id"]),
        ("https://huggingface.co/owner/name/tree/v2", ["is a page of the hub", "owner/name --revision v2"]),
        ("https://huggingface.co/owner/name", ["is a page of the hub", "give its hub id: owner/name"]),
    ],
)
def test_a_url_that_is_no_folder_of_files_is_refused_before_it_is_read(url: str, says: list[str]) -> None:
    with pytest.raises(CheckpointError) as refused:
        open_model(url)
    assert all(s in str(refused.value) for s in says), refused.value
