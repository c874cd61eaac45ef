"""One OpenTelemetry span per request, named by the GenAI semantic conventions.

https://github.com/open-telemetry/semantic-conventions-genai: a span ``{operation} {model}`` of kind CLIENT, since the
model runs in another process. What the conventions have no name for is under ``wootz.``. Prompts and answers
are never recorded.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from wootz.core import MissingExtraError
from wootz.telemetry.record import RequestRecord

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


def start_span(tracer: Tracer, begun: RequestRecord) -> Span:
    operation = OPERATIONS.get(begun.route, "chat")
    return tracer.start_span(
        f"{operation} {begun.model}",
        kind=SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": begun.provider or "wootz",
            "gen_ai.request.model": begun.model,
            "gen_ai.request.stream": begun.stream,
            "wootz.request.id": begun.request_id,
            "wootz.route": begun.route,
        },
    )


def end_span(span: Span, record: RequestRecord) -> None:
    attributes = {
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": [record.finish_reason] if record.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
        "http.response.status_code": record.status,
        "wootz.key.id": record.key_id,
        "wootz.cost_usd": f"{record.cost:f}",
        "wootz.inter_token_latency": record.inter_token_latency,
        "wootz.client_disconnected": record.client_disconnected,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if record.status >= 400:
        span.set_attribute("error.type", record.error_code or str(record.status))
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def tracer_of(provider: trace.TracerProvider | None) -> Tracer:
    """Without a provider of our own, spans go where the process's OpenTelemetry sends them: by default nowhere."""
    return trace.get_tracer("wootz", tracer_provider=provider)
