"""One OpenTelemetry span per request, named by the GenAI semantic conventions; under it, its stages and attempts.

https://github.com/open-telemetry/semantic-conventions-genai: a span ``{operation} {model}`` of kind CLIENT, since the
model runs in another process. What the conventions have no name for is under ``wootz.``. Prompts and answers
are never recorded.

All of it is made when the request has ended, out of its record. Tokens are told of once, on the request's own
span: those of an attempt are under ``wootz.``, so that who sums up ``gen_ai.usage`` counts none of them twice.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from wootz.core import MissingExtraError
from wootz.telemetry.record import AttemptRecord, RequestRecord

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def otlp_provider(endpoint: str, service_name: str) -> TracerProvider:
    """Export in the background, over OTLP/HTTP. Raises `MissingExtraError` without the extra ``otlp``."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise MissingExtraError("telemetry", "otlp", str(error.name)) from None
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def is_exported(tracer: Tracer) -> bool:
    """Else nobody need describe anything."""
    return not (
        isinstance(tracer, trace.ProxyTracer) and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    )


def leave_span(tracer: Tracer, record: RequestRecord) -> None:
    """A child of the span that is current."""
    begun, operation = record.started_at.timestamp(), OPERATIONS.get(record.route, "chat")
    span = tracer.start_span(
        f"{operation} {record.model}",
        kind=SpanKind.CLIENT,
        start_time=_nanoseconds(begun),
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": record.provider or "wootz",
            "gen_ai.request.model": record.model,
            "gen_ai.request.stream": record.stream,
            "wootz.request.id": record.request_id,
            "wootz.route": record.route,
        },
    )
    if not span.is_recording():  # It is not sampled.
        return
    _set(
        span,
        {
            "wootz.deployment": record.deployment,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": record.cache_write_tokens or None,
            "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens or None,
            "gen_ai.response.finish_reasons": [record.finish_reason] if record.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
            "http.response.status_code": record.status,
            "wootz.key.id": record.key_id,
            "wootz.team.id": record.team_id,
            "wootz.cost_usd": f"{record.cost:f}",
            "wootz.priced": record.priced,
            "wootz.price": record.price,
            "wootz.lane": record.lane,
            "wootz.cache": record.cache,
            "wootz.tools": record.tools or None,
            "wootz.guarantee": record.guarantee,
            "wootz.arithmetic": record.arithmetic,
            "wootz.queue_time": record.queue_time,
            "wootz.inter_token_latency": record.inter_token_latency,
            "wootz.client_disconnected": record.client_disconnected,
            **{f"wootz.tag.{name}": value for name, value in record.tags.items()},
        },
    )
    if record.status >= 400:
        _fail(span, record.error_code or str(record.status))
    _add_children(tracer, span, record)
    span.end(_nanoseconds(begun + record.duration))


def _add_children(tracer: Tracer, parent: Span, record: RequestRecord) -> None:
    context = trace.set_span_in_context(parent)
    begun, whole = record.started_at.timestamp(), record.duration

    def child(name: str, kind: SpanKind, start: float, end: float | None, attributes: dict[str, Any]) -> None:
        span = tracer.start_span(name, context, kind, start_time=_nanoseconds(begun + start))
        _set(span, attributes)
        if attributes.get("error.type"):
            _fail(span, attributes["error.type"])
        span.end(_nanoseconds(begun + (whole if end is None else end)))

    for stage in record.timeline.spans:
        named = {f"wootz.{name}": value for name, value in stage.attributes.items()}
        child(f"wootz.{stage.name}", SpanKind.INTERNAL, stage.start, stage.end, named)
    operation = OPERATIONS.get(record.route, "chat")
    for attempt in record.timeline.attempts:
        attributes = _attempt(attempt, operation)
        child(f"{operation} {attempt.deployment}", SpanKind.CLIENT, attempt.start, attempt.end, attributes)


def _attempt(attempt: AttemptRecord, operation: str) -> dict[str, Any]:
    first = attempt.first_token
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": attempt.provider,
        "gen_ai.request.model": attempt.deployment,
        "gen_ai.response.time_to_first_chunk": None if first is None else first - attempt.start,
        "error.type": attempt.error_code,
        "wootz.attempt.input_tokens": attempt.prompt_tokens,
        "wootz.attempt.output_tokens": attempt.completion_tokens,
        "wootz.attempt.cost_usd": f"{attempt.cost:f}",
        "wootz.attempt.price": attempt.price,
        "wootz.attempt.secret_version": attempt.secret_version,
    }


def _set(span: Span, attributes: dict[str, Any]) -> None:
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


def _nanoseconds(moment: float) -> int:
    return round(moment * 10**9)


def tracer_of(provider: trace.TracerProvider | None) -> Tracer:
    """Without a provider of our own, spans go where the process's OpenTelemetry sends them: by default nowhere."""
    return trace.get_tracer("wootz", tracer_provider=provider)
