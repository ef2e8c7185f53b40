"""The metrics: their names and kinds are vLLM's where vLLM has them, and their values are what happened."""

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from loadmaster.server import observations
from loadmaster.server.metrics import ONLY_HERE, SHARED
from loadmaster.server.observations import Histogram
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, eventually, serving

VLLM: dict[str, Any] = json.loads((Path(__file__).parent / "golden/vllm_metrics.json").read_text())

GUIDE = Path("docs/guides/serve.md")


def values(url: str) -> dict[str, float]:
    """Return all samples by name and labels, without the labels that all have."""
    found = {}
    for family in parse_text(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k not in ("model_name", "engine"))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def names(families: Iterable[Metric]) -> set[str]:
    return {sample.name for family in families for sample in family.samples}


def ask(url: str, **body: Any) -> None:
    httpx.post(f"{url}/v1/completions", json={"prompt": "ab", "max_tokens": 3, **body})


def test_names_kinds_and_labels_are_those_of_vllm() -> None:
    for declared in SHARED:
        if declared.name == "cache_config_info":
            continue  # vLLM makes its labels from the fields of a config when it starts
        theirs = VLLM["metrics"][f"vllm:{declared.name}"]
        assert (declared.kind, list(declared.labels)) == (theirs["kind"], theirs["labels"]), declared.name


def test_what_only_this_server_has_has_no_name_of_vllm() -> None:
    assert not {f"vllm:{declared.name}" for declared in ONLY_HERE} & set(VLLM["metrics"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (observations.LATENCY_BUCKETS, "REQUEST_LATENCY_BUCKETS"),
        (observations.FIRST_TOKEN_BUCKETS, "TIME_TO_FIRST_TOKEN_BUCKETS"),
        (observations.TOKEN_BUCKETS, "INTER_TOKEN_LATENCY_BUCKETS"),
        (observations.CHOICES_BUCKETS, "REQUEST_PARAMS_N_BUCKETS"),
    ],
)
def test_buckets_are_those_of_vllm(ours: tuple[float, ...], theirs: str) -> None:
    assert list(ours) == VLLM["buckets"][theirs]


@pytest.mark.parametrize("prefix", ["loadmaster", "vllm"])
def test_the_endpoint_has_every_declared_metric_with_its_kind(model_path: Path, prefix: Any) -> None:
    with serving(FakeEngine(), model_path, Settings(metrics_prefix=prefix)) as url:
        kinds = {family.name: family.type for family in parse_text(httpx.get(f"{url}/metrics").text)}
    declared = {f"{prefix}:{d.name}": d.kind for d in SHARED} | {f"loadmaster:{d.name}": d.kind for d in ONLY_HERE}
    assert kinds == declared


def test_requests_and_tokens_are_counted(model_path: Path) -> None:
    with serving(FakeEngine(delay_s=0.001), model_path) as url:
        ask(url)
        ask(url, n=2, prompt="abcd", max_tokens=1, stream=True)
        ask(url, max_tokens=-1)
        httpx.get(f"{url}/nothing/at/all")
        found = values(url)
    assert found["loadmaster:prompt_tokens_total{}"] == 2 + 2 * 4
    assert found["loadmaster:generation_tokens_total{}"] == 3 + 2
    assert found["loadmaster:request_success_total{finished_reason=length}"] == 3
    assert found["loadmaster:time_to_first_token_seconds_count{}"] == 3
    assert found["loadmaster:inter_token_latency_seconds_count{}"] == 2
    assert found["loadmaster:request_generation_tokens_bucket{le=1.0}"] == 2
    assert found["loadmaster:request_generation_tokens_sum{}"] == 5
    assert found["loadmaster:request_params_n_bucket{le=1.0}"] == 1
    requests = {k.partition("{")[2]: v for k, v in found.items() if "http_requests_total" in k}
    assert requests == {
        "method=POST,outcome=finished,route=/v1/completions,status=200}": 2,
        "method=POST,outcome=refused,route=/v1/completions,status=400}": 1,
        "method=GET,outcome=refused,route=other,status=404}": 1,
    }


def test_a_client_that_leaves_is_an_aborted_answer(model_path: Path) -> None:
    with serving(FakeEngine(endless=True), model_path) as url:
        body = {"prompt": "ab", "max_tokens": 50, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        eventually(lambda: values(url)["loadmaster:request_success_total{finished_reason=abort}"] == 1)


def test_invented_methods_and_paths_make_no_new_series(model_path: Path) -> None:
    with serving(FakeEngine(), model_path) as url:
        before = len(values(url))
        for i in range(5):
            httpx.request(f"INVENTED{i}", f"{url}/invented/{i}")
        assert len(values(url)) <= before + 2  # one for them, one for /metrics itself


def test_the_engines_figures_are_shown(model_path: Path) -> None:
    """They are those that `FakeEngine.statistics` returns."""
    with serving(FakeEngine(), model_path) as url:
        found = values(url)
    expected = {
        "num_requests_waiting{}": 2,
        "kv_cache_usage_perc{}": 0.25,
        "cache_config_info{block_size=16,num_gpu_blocks=100}": 1,
        "prefix_cache_queries_total{}": 9,
        "prefix_cache_hits_total{}": 4,
        "num_preemptions_total{}": 3,
        "spec_decode_num_drafts_total{}": 4,
        "spec_decode_num_draft_tokens_total{}": 8,
        "spec_decode_num_accepted_tokens_total{}": 5,
        "spec_decode_num_accepted_tokens_per_pos_total{position=0}": 3,
        "spec_decode_num_accepted_tokens_per_pos_total{position=1}": 2,
        "rank_seconds_total{rank=1,stage=1,state=busy}": 4,
        "rank_seconds_total{rank=0,stage=0,state=input}": 2,
        "load_bytes{rank=0,stage=0}": 500,
        "load_bytes_per_second{}": 500,
        "ready{}": 1,
    }
    assert {name: found[f"loadmaster:{name}"] for name in expected} == expected


def test_metrics_are_there_while_the_model_loads(model_path: Path) -> None:
    with serving(
        FakeEngine(state="loading", loaded=(200, 1000)), model_path, Settings(api_keys=("k",)), ready=False
    ) as url:
        found = values(url)
    assert (found["loadmaster:ready{}"], found["loadmaster:load_bytes{rank=0,stage=0}"]) == (0, 100)


@pytest.mark.parametrize("version", ["1.0.0", "1.0.0;escaping=underscores", "1.0.0;escaping=allow-utf-8"])
def test_the_client_chooses_the_format(model_path: Path, version: str) -> None:
    accept = f"application/openmetrics-text;version={version},text/plain;q=0.5"
    with serving(FakeEngine(), model_path) as url:
        httpx.get(f"{url}/health")  # no request is counted before the first has ended
        plain = httpx.get(f"{url}/metrics")
        opened = httpx.get(f"{url}/metrics", headers={"Accept": accept})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert names(parse_openmetrics(opened.text)) == names(parse_text(plain.text))


def test_a_histogram_counts_values_up_to_the_end_of_a_bucket() -> None:
    found = Histogram((1, 2))
    for value in (0.5, 1.0, 1.5, 5.0, None):
        found.observe(value)
    assert (list(found.cumulative()), found.sum) == ([("1.0", 2), ("2.0", 3), ("+Inf", 4)], 8.0)


def test_observing_a_token_takes_microseconds() -> None:
    """The limit is a hundred times what it takes, so that a busy machine passes."""
    histogram = Histogram(observations.TOKEN_BUCKETS)
    begin = time.process_time()
    for _ in range(100_000):
        histogram.observe(0.3)
    assert (time.process_time() - begin) / 100_000 < 50e-6


def test_the_guide_lists_every_metric() -> None:
    listed = set(re.findall(r"^\| `(?:…:|loadmaster:)(\w+)`", GUIDE.read_text(), re.MULTILINE))
    assert listed == {d.name for d in (*SHARED, *ONLY_HERE)}
