"""``/metrics`` for Prometheus. Reading it asks no worker and takes no lock, so it does not hold the engine up.

What vLLM measures too has vLLM's name after the prefix, and its labels. What only this server has always begins with
``loadmaster:``.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from fastapi import FastAPI, Request, Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from loadmaster import __version__
from loadmaster.engine import Statistics
from loadmaster.server.observations import Histogram, Observations
from loadmaster.server.service import Service

Kind = Literal["counter", "gauge", "histogram"]

OWN: Final = "loadmaster"


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric: its name without prefix (nor ``_total``), what it counts, and its labels besides those of all metrics."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


SHARED: Final = (
    Declared("num_requests_running", "gauge", "Requests that the engine is computing."),
    Declared("num_requests_waiting", "gauge", "Requests that wait for their first batch, or again after a preemption."),
    Declared("kv_cache_usage_perc", "gauge", "The share of the KV cache's pages that is in use, 0 to 1."),
    Declared(
        "cache_config_info", "gauge", "The KV cache: page size and number of pages.", ("block_size", "num_gpu_blocks")
    ),
    Declared("prefix_cache_queries", "counter", "Prompt tokens that were looked up in the KV cache."),
    Declared("prefix_cache_hits", "counter", "Prompt tokens that were found there."),
    Declared("num_preemptions", "counter", "How often a request gave up its pages to others."),
    Declared("prompt_tokens", "counter", "Prompt tokens of requests that had their first token."),
    Declared("prompt_tokens_cached", "counter", "Those of them that were in the KV cache already."),
    Declared("generation_tokens", "counter", "Tokens that were generated."),
    Declared(
        "request_success", "counter", "Answers that ended, by reason (abort: the client left).", ("finished_reason",)
    ),
    Declared("spec_decode_num_drafts", "counter", "How often drafts of a request were verified."),
    Declared("spec_decode_num_draft_tokens", "counter", "Draft tokens that were verified."),
    Declared("spec_decode_num_accepted_tokens", "counter", "Draft tokens that were right."),
    Declared(
        "spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "The same, by their place among the drafts.",
        ("position",),
    ),
    Declared("time_to_first_token_seconds", "histogram", "From the request to its first token."),
    Declared("inter_token_latency_seconds", "histogram", "Between two outputs of an answer."),
    Declared("request_time_per_output_token_seconds", "histogram", "The mean time between the tokens of an answer."),
    Declared("e2e_request_latency_seconds", "histogram", "From the request to the end of its answer."),
    Declared("request_queue_time_seconds", "histogram", "From the engine's queue to the first batch."),
    Declared("request_inference_time_seconds", "histogram", "From the first batch to the last token."),
    Declared("request_prefill_time_seconds", "histogram", "From the first batch to the first token."),
    Declared("request_decode_time_seconds", "histogram", "From the first token to the last."),
    Declared("request_prompt_tokens", "histogram", "Prompt tokens of an answer."),
    Declared("request_generation_tokens", "histogram", "Generated tokens of an answer."),
    Declared("request_max_num_generation_tokens", "histogram", "Generated tokens of a request's longest answer."),
    Declared("request_prefill_kv_computed_tokens", "histogram", "Prompt tokens that were computed, not cached."),
    Declared("request_params_n", "histogram", "The parameter n of requests."),
    Declared("request_params_max_tokens", "histogram", "The parameter max_tokens of requests."),
)
"""What vLLM has too. All have the labels ``model_name`` and ``engine``, which is 0."""

ONLY_HERE: Final = (
    Declared("build_info", "gauge", "The version of this server.", ("version", "python")),
    Declared("model_info", "gauge", "The model that is served.", ("model_name", "max_model_len")),
    Declared("ready", "gauge", "1 if requests are accepted."),
    Declared("http_requests_in_flight", "gauge", "HTTP requests that are being answered."),
    Declared(
        "http_requests", "counter", "HTTP requests that are over, by outcome.", ("route", "method", "status", "outcome")
    ),
    Declared("rank_seconds", "counter", "How a rank spent its time: busy, input, engine.", ("rank", "stage", "state")),
    Declared("rank_batches", "counter", "Batches that a rank computed.", ("rank", "stage")),
    Declared("rank_tokens", "counter", "Tokens that a rank computed.", ("rank", "stage")),
    Declared("load_bytes", "gauge", "Bytes of its plan that a rank has loaded.", ("rank", "stage")),
    Declared("load_total_bytes", "gauge", "Bytes of its plan that a rank loads in all.", ("rank", "stage")),
    Declared("load_seconds", "gauge", "Seconds that loading has taken."),
    Declared("load_bytes_per_second", "gauge", "The mean rate of loading, of all ranks."),
    Declared("kv_cache_pages", "gauge", "Pages of the KV cache."),
    Declared("kv_cache_pages_used", "gauge", "Pages that requests use."),
    Declared("kv_cache_pages_used_max", "gauge", "The most pages that were in use at a time."),
)
"""What only this server has. Its names begin with ``loadmaster:``, whatever the prefix."""

Value = float | Histogram | Mapping[tuple[str, ...], float]
"""A metric's value; or one for each combination of its labels."""


class Metrics(Collector):
    """Collects all metrics of a service, as Prometheus' client library asks for them."""

    def __init__(self, service: Service) -> None:
        self._service, self._prefix = service, service.settings.metrics_prefix
        self._shared = {"model_name": service.names[0], "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        """Yield every declared metric with its value now."""
        service = self._service
        statistics = service.engine.statistics()
        values = {**_of_engine(statistics, service.engine.capacity.block_size), **_of_requests(service.observations)}
        for declared in SHARED:
            yield _family(f"{self._prefix}:{declared.name}", declared, self._shared, values[declared.name])
        own = _own(service, statistics)
        for declared in ONLY_HERE:
            yield _family(f"{OWN}:{declared.name}", declared, {}, own[declared.name])


def add_metrics_route(app: FastAPI, service: Service) -> None:
    """Add ``/metrics``, in the format that the client accepts: Prometheus' text or OpenMetrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(service))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        if content_type.startswith("application/openmetrics-text"):
            # Other escapes replace the colon too, which every format allows in names.
            encode = partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8)
        text = await asyncio.to_thread(encode, registry)  # a few milliseconds, in which streams go on
        return Response(text, headers={"Content-Type": content_type})


def _of_engine(statistics: Statistics, block_size: int) -> dict[str, Value]:
    counters, num_pages = statistics.counters, statistics.num_pages
    return {
        "num_requests_running": statistics.num_running,
        "num_requests_waiting": statistics.num_waiting,
        "kv_cache_usage_perc": statistics.num_used_pages / num_pages if num_pages else 0.0,
        "cache_config_info": {(str(block_size), str(num_pages)): 1.0},
        "prefix_cache_queries": counters.prompt_tokens,
        "prefix_cache_hits": counters.cached_tokens,
        "num_preemptions": counters.preemptions,
        "spec_decode_num_drafts": counters.drafted_spans,
        "spec_decode_num_draft_tokens": counters.drafted_tokens,
        "spec_decode_num_accepted_tokens": counters.accepted_tokens,
        "spec_decode_num_accepted_tokens_per_pos": {(str(i),): n for i, n in enumerate(counters.accepted_at)},
    }


def _of_requests(seen: Observations) -> dict[str, Value]:
    return {
        "prompt_tokens": seen.prompt_tokens,
        "prompt_tokens_cached": seen.cached_tokens,
        "generation_tokens": seen.output_tokens,
        "request_success": {(reason,): n for reason, n in dict(seen.finish_reasons).items()},
        "time_to_first_token_seconds": seen.first_token,
        "inter_token_latency_seconds": seen.inter_token,
        "request_time_per_output_token_seconds": seen.per_token,
        "e2e_request_latency_seconds": seen.e2e,
        "request_queue_time_seconds": seen.queue,
        "request_inference_time_seconds": seen.inference,
        "request_prefill_time_seconds": seen.prefill,
        "request_decode_time_seconds": seen.decode,
        "request_prompt_tokens": seen.prompt_length,
        "request_generation_tokens": seen.output_length,
        "request_max_num_generation_tokens": seen.longest_output,
        "request_prefill_kv_computed_tokens": seen.computed_length,
        "request_params_n": seen.num_choices,
        "request_params_max_tokens": seen.max_tokens,
    }


def _own(service: Service, statistics: Statistics) -> dict[str, Value]:
    engine, loading = service.engine, service.engine.loading()
    ranks = [((str(u.rank), str(u.stage)), u) for u in statistics.stages]
    states = (("busy", "busy_s"), ("input", "input_s"), ("engine", "engine_s"))
    return {
        "build_info": {(__version__, platform.python_version()): 1.0},
        "model_info": {(service.names[0], str(engine.max_model_len)): 1.0},
        "ready": float(service.is_ready and not service.is_draining),
        "http_requests_in_flight": len(service.records.running),
        "http_requests": dict(service.observations.http_requests),
        "rank_seconds": {(*rank, state): getattr(usage, name) for rank, usage in ranks for state, name in states},
        "rank_batches": {rank: usage.num_batches for rank, usage in ranks},
        "rank_tokens": {rank: usage.num_tokens for rank, usage in ranks},
        "load_bytes": {(str(r.rank), str(r.stage)): r.loaded_bytes for r in loading.ranks},
        "load_total_bytes": {(str(r.rank), str(r.stage)): r.total_bytes for r in loading.ranks},
        "load_seconds": loading.seconds,
        "load_bytes_per_second": loading.bytes_per_s,
        "kv_cache_pages": statistics.num_pages,
        "kv_cache_pages_used": statistics.num_used_pages,
        "kv_cache_pages_used_max": statistics.most_used_pages,
    }


_FAMILIES: Final[Mapping[Kind, type[Any]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(name: str, declared: Declared, common: Mapping[str, str], value: Value) -> Metric:
    family = _FAMILIES[declared.kind](name, declared.help, labels=[*common, *declared.labels])
    labels = list(common.values())
    if isinstance(value, Histogram):
        family.add_metric(labels, list(value.cumulative()), value.sum)
    elif isinstance(value, Mapping):
        for own, number in value.items():
            family.add_metric([*labels, *own], number)
    else:
        family.add_metric(labels, value)
    assert isinstance(family, Metric)
    return family
