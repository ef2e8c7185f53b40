"""The options of ``vllm serve`` 0.32 and 0.33 as data: how many values each takes, and how it affects a plan.

Users may paste a command line of vLLM with all its options. This table has those that the commands here do not define, each
under one of a few concerns. A concern names the commands that refuse the option; the others ignore it with a note.
`loadmaster.integrations.vllm.carried` reads the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Values = Literal[0, 1, "?", "+"]
"""How many values an option takes: none, one, none or one, one or more."""

PLANNING: Final = frozenset({"plan", "load", "generate", "serve"})
RUNNING: Final = frozenset({"load", "generate", "serve"})


@dataclass(frozen=True, slots=True)
class Concern:
    """The subject of some options, the commands that refuse them, and why.

    ``forwarded``: they are passed to vLLM if it serves.
    """

    about: str
    refused_by: frozenset[str] = frozenset()
    reason: str = ""
    forwarded: bool = True


TUNING: Final = Concern("how vLLM runs")
SERVER: Final = Concern("what vLLM's server offers", frozenset({"serve"}), "the native server does not support it")
ANSWERS: Final = Concern(
    "what vLLM answers",
    frozenset({"generate", "serve"}),
    "the native engine has no such option; it uses what the checkpoint has",
)
HOSTS: Final = Concern(
    "which host and device runs which rank", RUNNING, "all ranks run on this host, on its devices in turn"
)
LAYOUT: Final = Concern("the layout and the loading")
PLAN: Final = Concern("what is planned", PLANNING, forwarded=False)
DOWNLOADS: Final = Concern("where models are downloaded to")
FILES: Final = Concern("which files are read", PLANNING | {"inspect", "verify"}, forwarded=False)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of vLLM.

    ``harmless`` are the values that change nothing. ``reason`` and ``remedy`` say why it is refused and what to do, where
    the concern does not.
    """

    name: str
    values: Values
    concern: Concern
    harmless: frozenset[str] = frozenset()
    reason: str | None = None
    remedy: str | None = None


def _some(concern: Concern, values: Values, names: str) -> Iterator[Option]:
    return (Option(f"--{name}", values, concern) for name in names.split())


def _refused(
    name: str, values: Values, reason: str, remedy: str, *harmless: str, concern: Concern = PLAN
) -> Iterator[Option]:
    yield Option(f"--{name}", values, concern, frozenset(harmless), reason, remedy)


_AS_STORED = "weights are loaded as the checkpoint stores them; quantising while loading is not supported"
_FORMAT = "leave it out: config.json and the headers say how weights are stored"
_FROM_CONFIG = "the plan is made from the checkpoint's own config.json"
_COPY = "change config.json in a copy of the folder that links to the same shards"
_OFFLOAD = "all parameters of a rank are planned in its device's memory"
_MORE_RANKS = "leave it out; if --device-memory reports that parameters do not fit, use more ranks"
_CONTEXT = "context parallelism is not supported"
_ADAPTERS = "adapters are not supported"
_MOVES = "vLLM then moves experts between ranks while it runs, but a plan fixes where they are"
_OVER = "use pipeline, tensor, data or expert parallelism"
_DRAFT = "the draft model is given in one option here"
_MTP = """write --speculative-config '{"method": "mtp"}'"""
_MERGE = "merge the adapter into the checkpoint, or leave it out"

_EVERY: Final = (
    *_some(
        TUNING,
        1,
        "gpu-memory-utilization device-memory-utilization max-model-len seed kv-cache-memory-bytes kv-cache-dtype block-size "
        "num-gpu-blocks-override prefix-caching-hash-algo prefix-cache-retention-interval mamba-cache-dtype "
        "mamba-ssm-cache-dtype mamba-block-size mamba-cache-mode prefix-match-unit replayssm-buffer-len kv-offloading-size "
        "kv-offloading-backend max-num-batched-tokens max-num-scheduled-tokens max-num-seqs max-num-active-seqs "
        "max-num-queued-reqs max-num-queued-tokens long-prefill-token-threshold scheduling-policy scheduler-cls watermark "
        "prefill-schedule-interval stream-interval max-cudagraph-capture-size ir-op-priority moe-backend linear-backend "
        "sparse-indexer-topk-backend attention-backend mamba-backend mamba-ssu-algorithm mamba-cache-philox-rounds "
        "compilation-config attention-config kernel-config additional-config aux-output-config profiler-config "
        "optimization-level performance-mode shutdown-timeout gdn-prefill-backend kda-prefill-backend kda-decode-backend "
        "sleep-mode-backend watchdog-config "
        "distributed-executor-backend distributed-timeout-seconds cpu-distributed-timeout-seconds all2all-backend "
        "ubatch-size dbo-decode-token-threshold dbo-prefill-token-threshold dp-sync-interval dcp-comm-backend "
        "dcp-kv-cache-interleave-size cp-kv-cache-interleave-size elastic-ep-max-dp-size max-parallel-loading-workers "
        "worker-cls worker-extension-cls fault-tolerance-config safetensors-load-strategy "
        "safetensors-prefetch-num-threads safetensors-prefetch-block-size pt-load-map-location code-revision "
        "renderer-num-workers offload-backend offload-num-in-group offload-prefetch-step logging-config "
        "log-level log-config-file show-hidden-metrics-for-version otlp-traces-endpoint per-request-spec-decode-metrics "
        "kv-cache-metrics-sample custom-histogram-buckets jit-monitor-mode api-server-count max-log-len uvicorn-log-level "
        "disable-access-log-for-endpoints max-loras max-lora-rank lora-dtype max-cpu-loras max-lora-cls-labels "
        "limit-mm-per-prompt media-io-kwargs mm-processor-kwargs mm-processor-cache-gb mm-processor-cache-type "
        "mm-hasher-algorithm mm-shm-cache-max-object-size-mb mm-encoder-tp-mode mm-encoder-attn-backend "
        "mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-path mm-encoder-fp8-scale-save-margin "
        "video-pruning-rate video-pruning-method mm-tensor-ipc mm-processor-device mm-ipc-gpu-memory-gb",
    ),
    *_some(
        TUNING,
        0,
        "trust-remote-code enforce-eager enable-prefix-caching enable-chunked-prefill disable-chunked-mm-input "
        "async-scheduling scheduler-reserve-full-isl long-prefill-token-threshold-adaptive disable-hybrid-kv-cache-manager "
        "kv-sharing-fast-prefill swa-bounded-replay enable-mamba-shared-prefix-checkpoint use-replayssm "
        "enable-mamba-cache-stochastic-rounding disable-cascade-attn use-fp64-gumbel enable-trace-replay enable-sleep-mode "
        "sleep-mode-offload-cudagraph enable-cumem-allocator enable-nccl-comm-suspend use-tqdm-on-load numa-bind monokernel "
        "dcp-q-replicate enable-hc-sp enable-batch-sharded-sampling enable-ep-weight-filter enable-dbo "
        "enable-shm-tensor-arena disable-nccl-for-dp-synchronization ray-workers-use-nsight disable-custom-all-reduce "
        "enable-fault-tolerance enable-flashinfer-autotune language-model-only enable-mm-embeds interleave-mm-strings "
        "skip-mm-profiling mm-device-do-normalize allow-deprecated-quantization enable-tower-connector-lora "
        "fully-sharded-loras specialize-active-lora enable-mixed-moe-lora-format enable-moe-shared-loras kv-cache-metrics "
        "cudagraph-metrics enable-layerwise-nvtx-tracing enable-mfu-metrics enable-logging-iteration-details "
        "jit-monitor-verbose disable-log-stats aggregate-engine-logging fail-on-environ-validation enable-log-requests "
        "enable-log-outputs enable-log-deltas log-error-stack disable-uvicorn-access-log",
    ),
    *_some(
        TUNING,
        "+",
        "sleep-preserve-parameter-names numa-bind-nodes numa-bind-cpus kv-cache-dtype-skip-layers cudagraph-capture-sizes "
        "collect-detailed-traces lora-target-modules",
    ),
    *_some(
        SERVER,
        1,
        "host port allowed-local-media-path max-logprobs logprobs-mode io-processor-plugin reasoning-parser "
        "reasoning-parser-plugin reasoning-config structured-outputs-config weight-transfer-config kv-transfer-config "
        "kv-events-config ec-transfer-config ec-manager-config chat-template chat-template-content-format "
        "default-chat-template-kwargs response-role tool-call-parser tool-parser-plugin tool-strict-level tool-server "
        "reasoning-effort-map "
        "sse-keep-alive-interval cohere-format anthropic-disabled-thinking-effort fingerprint-mode fingerprint-value "
        "grpc-port uds allowed-origins allowed-methods allowed-headers ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs "
        "ssl-ciphers root-path middleware h11-max-incomplete-event-size h11-max-header-count watermark-config",
    ),
    *_some(
        SERVER,
        0,
        "enable-return-routed-experts return-sampling-mask enable-prompt-embeds trust-request-chat-template "
        "trust-request-mm-kwargs return-tokens-as-token-ids enable-auto-tool-choice exclude-tools-when-tool-choice-none "
        "enable-prompt-tokens-details enable-per-request-metrics enable-server-load-tracking enable-force-include-usage "
        "enable-tokenizer-info-endpoint cohere-is-reasoning-model tokens-only enable-scale-out allow-credentials "
        "enable-ssl-refresh enable-request-id-headers disable-fastapi-docs enable-offline-docs "
        "enable-flash-late-interaction grpc",
    ),
    *_some(SERVER, "+", "served-model-name api-key allowed-media-domains"),
    *_some(
        ANSWERS,
        1,
        "tokenizer tokenizer-mode tokenizer-revision generation-config override-generation-config pooler-config "
        "diffusion-config",
    ),
    *_some(ANSWERS, 0, "skip-tokenizer-init disable-sliding-window"),
    *_some(ANSWERS, "+", "logits-processors"),
    *_some(
        HOSTS,
        1,
        "nnodes node-rank master-addr master-port data-parallel-rank data-parallel-start-rank data-parallel-size-local "
        "data-parallel-address data-parallel-rpc-port data-parallel-backend data-parallel-supervisor-port "
        "dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s dp-supervisor-probe-failure-threshold device-ids",
    ),
    *_some(
        HOSTS,
        0,
        "headless data-parallel-hybrid-lb data-parallel-external-lb data-parallel-multi-port-external-lb",
    ),
    *_some(
        LAYOUT,
        1,
        "pipeline-parallel-size tensor-parallel-size data-parallel-size expert-placement-strategy eplb-config "
        "engram-config speculative-config dtype",
    ),
    *_some(LAYOUT, 0, "enable-expert-parallel"),
    *_refused("quantization", 1, _AS_STORED, _FORMAT, "None"),
    *_refused("quantization-config", 1, _AS_STORED, _FORMAT),
    *_refused("hf-overrides", 1, _FROM_CONFIG, _COPY, "{}"),
    *_refused("hf-config-path", 1, _FROM_CONFIG, _COPY),
    *_refused("model-class-overrides", 1, _FROM_CONFIG, _COPY),
    *_refused("config-format", 1, _FROM_CONFIG, "give a folder with a config.json", "auto", "hf"),
    *_refused("model-impl", 1, "only vLLM's own model classes are supported", "leave it out", "auto", "vllm"),
    *_refused("runner", 1, "only models that generate are supported", "leave it out", "auto", "generate"),
    *_refused("convert", 1, "the model is planned as stored", "leave it out", "auto", "none"),
    *_refused("mm-encoder-only", 0, "only the language model is planned", "leave it out"),
    *_refused(
        *("load-format", 1, "only safetensors are read", "leave it out"),
        *("auto", "safetensors", "loadmaster", "hf"),
    ),
    *_refused(
        *("model-loader-extra-config", 1, "these options belong to one of vLLM's load formats"),
        "give --waive, --num-readers or --staging instead",
    ),
    *_refused("cpu-offload-gb", 1, _OFFLOAD, _MORE_RANKS, "0", "0.0"),
    *_refused("cpu-offload-params", "+", _OFFLOAD, _MORE_RANKS),
    *_refused("offload-group-size", 1, _OFFLOAD, _MORE_RANKS, "0"),
    *_refused("offload-params", "+", _OFFLOAD, _MORE_RANKS),
    *_refused("decode-context-parallel-size", 1, _CONTEXT, _OVER, "1"),
    *_refused("prefill-context-parallel-size", 1, _CONTEXT, _OVER, "1"),
    *_refused("enable-lora", 0, _ADAPTERS, _MERGE),
    *_refused("lora-modules", "+", _ADAPTERS, _MERGE),
    *_refused("default-mm-loras", 1, _ADAPTERS, _MERGE),
    *_refused("enable-eplb", 0, _MOVES, """--eplb-config '{"num_redundant_experts": N}' alone is supported"""),
    *_refused("enable-elastic-ep", 0, _MOVES, "leave it out"),
    *_refused("spec-method", 1, _DRAFT, _MTP),
    *_refused("spec-model", 1, _DRAFT, _MTP),
    *_refused("spec-tokens", 1, _DRAFT, _MTP),
    *_some(DOWNLOADS, 1, "download-dir"),
    *_refused(
        "hf-token",
        "?",
        "the hub's token is not an option",
        "set HF_TOKEN, or run `hf auth login`",
        concern=FILES,
    ),
    *_refused(
        *("ignore-patterns", "+", "the index and the shards' names decide which files are read"),
        "leave it out: copies in other folders and formats are never read",
        concern=FILES,
    ),
    *_refused("config", 1, "option files are not supported", "give its options on the command line", concern=FILES),
)

OPTIONS: Final[Mapping[str, Option]] = {option.name: option for option in _EVERY}
"""Every option of ``vllm serve`` by name, except ``--model`` and ``--revision``."""

SINCE: Final[Mapping[str, frozenset[str]]] = {
    "0.33": frozenset({"--monokernel", "--reasoning-effort-map", "--sleep-mode-backend", "--watchdog-config"}),
}
"""Version → the options that it added. No described version has removed one."""

SHORT: Final[Mapping[str, str]] = {
    "-q": "--quantization",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-pp": "--pipeline-parallel-size",
    "-tp": "--tensor-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpe": "--data-parallel-external-lb",
    "-dpm": "--data-parallel-multi-port-external-lb",
    "-asc": "--api-server-count",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-dc": "--diffusion-config",
    "-O": "--optimization-level",
}
"""vLLM's short names."""
