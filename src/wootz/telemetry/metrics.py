"""Prometheus metrics: what was answered (from each record) and how the engines do (from their `Stats`).

Names and units follow https://prometheus.io/docs/practices/naming/. A registry of our own, so that two platforms
in one process (tests, notebooks) don't share counters.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from wootz.engine.protocol import Stats
from wootz.telemetry.record import RequestRecord

Series = TypeVar("Series", bound=MetricWrapperBase)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
INTER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)
DURATION_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REQUEST_USD = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "wootz_requests", "Requests that ended.", ("route", "model", "status"), registry=registry
        )
        self.prompt_tokens = Counter("wootz_prompt_tokens", "Prompt tokens, cached included.", model, registry=registry)
        self.cached_tokens = Counter(
            "wootz_cached_tokens", "Prompt tokens not computed again.", model, registry=registry
        )
        self.completion_tokens = Counter("wootz_completion_tokens", "Tokens answered.", model, registry=registry)
        self.cost = Counter(
            "wootz_cost_usd", "Cost in USD (the ledger is exact; this is a float).", model, registry=registry
        )
        self.cache = Counter(
            "wootz_cache_requests", "Requests by what the caches did.", ("model", "cache"), registry=registry
        )
        self.time_to_first_token = Histogram(
            "wootz_time_to_first_token_seconds", "Until the first token.", model, buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.inter_token_latency = Histogram(
            "wootz_inter_token_latency_seconds", "Mean time between tokens of an answer.", model,
            buckets=INTER_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "wootz_request_duration_seconds", "Whole requests.", ("route", "model"), buckets=DURATION_SECONDS,
            registry=registry,
        )  # fmt: skip
        attempt = ("deployment", "provider", "outcome")
        self.attempts = Counter("wootz_attempts", "Calls of models, by how they ended.", attempt, registry=registry)
        self.attempt_duration = Histogram(
            "wootz_attempt_duration_seconds", "Whole calls of models.", ("deployment",), buckets=DURATION_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.retries = Counter(
            "wootz_retries", "Calls after a request's first: retries, fallbacks, hedges.", model, registry=registry
        )
        self.gateway_seconds = Histogram(
            "wootz_gateway_overhead_seconds", "From arrival to the first call of a model, waiting left out.",
            buckets=OVERHEAD_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "wootz_queue_seconds", "Waiting for a place.", model, buckets=DURATION_SECONDS, registry=registry
        )
        self.unpriced = Counter(
            "wootz_unpriced_requests", "Requests that used tokens whose price is not known.", model, registry=registry
        )
        self.refusals = Counter("wootz_refusals", "Answers in which a model declined.", model, registry=registry)
        self.request_cost = Histogram(
            "wootz_request_cost_usd", "Cost of one request.", ("model", "route"), buckets=REQUEST_USD, registry=registry
        )
        self.guardrail_trips = Counter(
            "wootz_guardrail_trips", "Requests and answers that a guard changed or refused.", ("guard",),
            registry=registry,
        )  # fmt: skip
        self.breakers = Gauge(
            "wootz_breaker_state", "0 closed, 1 half open, 2 open.", ("deployment",), registry=registry
        )
        self.capped_conversations = Counter(
            "wootz_capped_conversations", "Requests refused as their conversation may use no more.", ("limit",),
            registry=registry,
        )  # fmt: skip
        self.rows_lost = Counter(
            "wootz_ledger_rows_lost", "Records that could not be stored (they are in the log).", registry=registry
        )
        self.bodies_lost = Counter(
            "wootz_bodies_lost", "Bodies that could not be encrypted, so were not stored.", registry=registry
        )
        self.work_failures = Counter(
            "wootz_work_failures", "Works beside the answering that failed and were begun again.", ("work",),
            registry=registry,
        )  # fmt: skip
        self.quality_score = Gauge(
            "wootz_quality_score", "Mean grade in the window of the rule quality-drift.", model, registry=registry
        )
        self.quality_drop = Gauge(
            "wootz_quality_drop", "Part of it that is lost to the time before.", model, registry=registry
        )
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], Any] = {}
        self._outcomes = Outcomes()
        self.in_flight = InFlight()
        self.engines = EngineCollector()
        registry.register(self.in_flight)
        registry.register(self.engines)

    def text(self) -> bytes:
        """The exposition, as ``GET /metrics`` answers it (see `CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def count(self, record: RequestRecord) -> None:
        model, of = model_label(record), self.child
        of(self.requests, record.route, model, str(record.status)).inc()
        of(self.prompt_tokens, model).inc(record.prompt_tokens)
        of(self.cached_tokens, model).inc(record.cached_tokens)
        of(self.completion_tokens, model).inc(record.completion_tokens)
        of(self.cost, model).inc(float(record.cost))
        of(self.duration, record.route, model).observe(record.duration)
        if record.cache != "off":
            of(self.cache, model, record.cache).inc()
        if record.time_to_first_token is not None:
            of(self.time_to_first_token, model).observe(record.time_to_first_token)
        if record.inter_token_latency is not None:
            of(self.inter_token_latency, model).observe(record.inter_token_latency)
        if record.cost:
            of(self.request_cost, model, record.route).observe(float(record.cost))
        if record.refused:
            of(self.refusals, model).inc()
        if not record.priced:
            of(self.unpriced, model).inc()
        if record.queue_time is not None:
            of(self.queue_seconds, model).observe(record.queue_time)
        self._count_attempts(record, model)

    def child(self, metric: Series, *labels: str) -> Series:
        """``metric.labels(*labels)``, which locks and checks each time for what is always the same."""
        if (child := self._children.get((metric, labels))) is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child

    def _count_attempts(self, record: RequestRecord, model: str) -> None:
        attempts, of = record.timeline.attempts, self.child
        if not attempts:
            return
        if record.num_attempts > 1:
            of(self.retries, model).inc(record.num_attempts - 1)
        self.gateway_seconds.observe(max(0.0, attempts[0].start - (record.queue_time or 0.0)))
        for attempt in attempts:
            of(self.attempts, attempt.deployment, attempt.provider, self._outcomes.label(attempt.error_code)).inc()
            if attempt.end is not None:
                of(self.attempt_duration, attempt.deployment).observe(attempt.end - attempt.start)


class InFlight(Collector):
    """Requests that are being answered, by `model_label`. Plain numbers, counted where every answer waits for it."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def collect(self) -> Iterable[Metric]:
        metric = GaugeMetricFamily("wootz_requests_in_flight", "Requests being answered.", labels=["model"])
        for model, number in self.counts.items():
            metric.add_metric([model], number)
        yield metric


class Outcomes:
    """Error codes as a label. Remote endpoints word theirs as they like, so only the first few are told apart."""

    MOST = 40

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, error_code: str | None) -> str:
        if error_code is None:
            return "ok"
        if error_code not in self._known:
            if len(self._known) >= self.MOST:
                return "other"
            self._known.add(error_code)
        return error_code


def model_label(record: RequestRecord) -> str:
    """A name that no provider answers to is not a label: anyone could make up a million time series."""
    return "unknown" if record.provider is None else record.model


ENGINE_GAUGES = {
    "running": "Sequences in the running batch.",
    "waiting": "Requests waiting for a place in the batch.",
    "blocks_total": "Cache blocks there are.",
    "blocks_used": "Cache blocks in use.",
    "swap_blocks": "Blocks of host memory for preempted sequences.",
    "swap_blocks_used": "Those in use.",
    "parameters": "Of the model.",
    "asleep": "The level of its sleep, 0 while it is awake.",
    "uptime_seconds": "Since the engine process began.",
}
ENGINE_COUNTERS = {
    "steps": "Forward passes.",
    "prompt_tokens_computed": "Prompt tokens computed.",
    "prompt_tokens_cached": "Prompt tokens found in the cache.",
    "tokens_generated": "Tokens generated.",
    "requests_finished": "Requests that ran to their end.",
    "requests_cancelled": "Requests whose client went away.",
    "preemptions": "Sequences put back to waiting for lack of blocks.",
    "requests_admitted": "Requests that have begun to be computed.",
    "wait_seconds": "Of all of them together, from being submitted to being admitted.",
    "prefix_hits": "Those that found a part of their prompt in the cache.",
    "swapped_out": "Preempted sequences copied to host memory.",
    "swapped_in": "Sequences copied back.",
    "drafts": "Drafts that were checked (speculative decoding).",
    "draft_tokens": "Tokens drafted.",
    "draft_tokens_accepted": "Drafted tokens that were right.",
    "grammars_compiled": "Grammars compiled (structured output).",
    "grammars_reused": "Grammars found compiled already.",
    "tokens_forced": "Generated tokens that a grammar left no choice about.",
}


class EngineCollector(Collector):
    """The engines' own counts, exported as they last said them. A restarted engine's counters begin again at 0."""

    def __init__(self) -> None:
        self.stats: dict[str, Stats | None] = {}

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("wootz_engine_up", "1 while the engine process answers.", labels=["model"])
        for model, stats in self.stats.items():
            up.add_metric([model], 0.0 if stats is None else 1.0)
        yield up
        for family, texts in ((GaugeMetricFamily, ENGINE_GAUGES), (CounterMetricFamily, ENGINE_COUNTERS)):
            for field, text in texts.items():
                metric = family(f"wootz_engine_{field}", text, labels=["model"])
                for model, stats in self.stats.items():
                    if stats is not None:
                        metric.add_metric([model], getattr(stats, field))
                yield metric
