"""One observation: the record, the span and the metrics of a request agree, and come exactly once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families

from wootz.core import MissingExtraError, PriceConfig, RateLimitError, UnavailableError
from wootz.core.wire import PromptTokensDetails, Usage
from wootz.engine.protocol import Stats
from wootz.store import Database
from wootz.telemetry import Ledger, Observation, RequestRecord, Telemetry, observe
from wootz.telemetry import ledger as ledger_module

PRICE = PriceConfig(input=Decimal("0.15"), cached_input=Decimal("0.075"), output=Decimal("0.60"))
USAGE = Usage(
    prompt_tokens=1000,
    completion_tokens=20,
    total_tokens=1020,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=400),
)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def telemetry(database: Database, spans: InMemorySpanExporter) -> AsyncIterator[Telemetry]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(Ledger(database), {"m": PRICE}, tracer_provider=provider)
    yield telemetry
    await telemetry.close()


def begin(telemetry: Telemetry, request_id: str = "r1", **fields: object) -> Observation:
    asked = {"route": "/v1/chat/completions", "key_id": "k1", "model": "m", "provider": "engine", "stream": True}
    return telemetry.observe(request_id=request_id, **{**asked, **fields})  # type: ignore[arg-type]


def samples(telemetry: Telemetry) -> dict[str, float]:
    """Every sample of the exposition, as ``name{label="value"}``, through Prometheus's own parser."""
    found = {}
    for family in text_string_to_metric_families(telemetry.metrics_text().decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_a_request_leaves_one_row_one_span_and_its_metrics(
    telemetry: Telemetry, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.5, 10.6, 10.82, 11.0])  # start, three chunks, end
    monkeypatch.setattr(observe.time, "perf_counter", lambda: next(clock))
    observation = begin(telemetry, user="ann")
    assert samples(telemetry)['wootz_requests_in_flight{model="m"}'] == 1
    observation.chunk(2)
    observation.chunk()
    observation.chunk(3)
    observation.usage(USAGE)
    observation.finish_reason = "stop"
    record = await observation.end()

    assert record == await telemetry.ledger.get("r1")
    assert record.time_to_first_token == pytest.approx(0.5)
    assert record.inter_token_latency == pytest.approx(0.32 / 4)
    assert record.duration == pytest.approx(1.0)
    assert record.cost == Decimal("0.000132")
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (1000, 400, 20)
    assert (record.status, record.error_code, record.finish_reason, record.user) == (200, None, "stop", "ann")

    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.CLIENT, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "engine",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 400,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": pytest.approx(0.5),
        "http.response.status_code": 200,
        "wootz.request.id": "r1",
        "wootz.route": "/v1/chat/completions",
        "wootz.key.id": "k1",
        "wootz.cost_usd": "0.000132000000",
        "wootz.inter_token_latency": pytest.approx(0.08),
        "wootz.client_disconnected": False,
        "wootz.deployment": "m",
        "wootz.price": "models.m.price",
        "wootz.priced": True,
        "wootz.lane": "interactive",
        "wootz.cache": "off",
    }

    found = samples(telemetry)
    assert found['wootz_requests_total{model="m",route="/v1/chat/completions",status="200"}'] == 1
    assert found['wootz_requests_in_flight{model="m"}'] == 0
    assert found['wootz_prompt_tokens_total{model="m"}'] == 1000
    assert found['wootz_cached_tokens_total{model="m"}'] == 400
    assert found['wootz_completion_tokens_total{model="m"}'] == 20
    assert found['wootz_cost_usd_total{model="m"}'] == pytest.approx(0.000132)
    assert found['wootz_time_to_first_token_seconds_sum{model="m"}'] == pytest.approx(0.5)
    assert found['wootz_inter_token_latency_seconds_bucket{le="0.1",model="m"}'] == 1
    assert found['wootz_request_duration_seconds_count{model="m",route="/v1/chat/completions"}'] == 1


async def test_span_attributes_have_the_names_of_the_conventions(
    telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    observation = begin(telemetry)
    observation.chunk()
    observation.finish_reason = "stop"
    await observation.end()
    names = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    (span,) = spans.get_finished_spans()
    assert {name for name in span.attributes or {} if name.startswith("gen_ai.")} <= names


@pytest.mark.parametrize(
    ("route", "name"), [("/v1/completions", "text_completion m"), ("/v1/embeddings", "embeddings m")]
)
async def test_a_span_is_named_for_the_operation(
    telemetry: Telemetry, spans: InMemorySpanExporter, route: str, name: str
) -> None:
    await begin(telemetry, route=route).end()
    assert [span.name for span in spans.get_finished_spans()] == [name]


async def test_an_error_gives_its_status_and_code(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    record = await begin(telemetry).end(error=RateLimitError("slow down"))
    assert (record.status, record.error_code) == (429, "rate_limit_exceeded")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "rate_limit_exceeded"


async def test_a_client_that_went_away_is_recorded_as_such(telemetry: Telemetry) -> None:
    record = await begin(telemetry).end(client_disconnected=True)
    assert (record.status, record.client_disconnected) == (499, True)
    assert (record.time_to_first_token, record.inter_token_latency) == (None, None)


async def test_ending_again_changes_nothing(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    observation = begin(telemetry)
    first, second = await asyncio.gather(observation.end(), observation.end(error=UnavailableError("gone")))
    assert first == second == await observation.end(status=500)
    assert first.status == 200
    assert len(spans.get_finished_spans()) == 1
    assert len(await telemetry.ledger.list()) == 1
    assert samples(telemetry)['wootz_requests_in_flight{model="m"}'] == 0


async def test_an_end_that_is_cancelled_still_leaves_the_record(telemetry: Telemetry) -> None:
    observation = begin(telemetry)
    ending = asyncio.create_task(observation.end())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert await observation.end() == await telemetry.ledger.get("r1")


async def test_500_requests_at_once_leave_500_of_everything(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    async def request(n: int) -> RequestRecord:
        observation = begin(telemetry, f"r{n}")
        for _ in range(3):
            await asyncio.sleep(0)
            observation.chunk()
        observation.usage(USAGE)
        return await observation.end()

    records = await asyncio.gather(*(request(n) for n in range(500)))
    assert {row.request_id: row for row in await telemetry.ledger.list(limit=1000)} == {
        record.request_id: record for record in records
    }
    (total,) = await telemetry.ledger.report([])
    assert total.cost == sum(record.cost for record in records)
    assert len(spans.get_finished_spans()) == 500
    found = samples(telemetry)
    assert found['wootz_requests_in_flight{model="m"}'] == 0
    assert found['wootz_prompt_tokens_total{model="m"}'] == total.prompt_tokens == 500_000


async def test_an_answer_is_not_held_up_for_a_dead_database(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAYS", ())
    telemetry = Telemetry(Ledger(Database("postgresql+asyncpg://127.0.0.1:1/nobody-listens")), {})
    record = await begin(telemetry).end()
    assert record.status == 200
    assert samples(telemetry)["wootz_ledger_rows_lost_total{}"] == 1
    assert "row not written" in caplog.text


async def test_names_that_no_provider_answers_to_make_no_time_series(telemetry: Telemetry) -> None:
    for n in range(10):
        await begin(telemetry, f"r{n}", model=f"made-up-{n}", provider=None).end(status=404)
    text = telemetry.metrics_text().decode()
    assert "made-up" not in text
    assert samples(telemetry)['wootz_requests_total{model="unknown",route="/v1/chat/completions",status="404"}'] == 10


async def test_engines_are_seen_as_they_last_reported(telemetry: Telemetry) -> None:
    counts = dict.fromkeys(Stats.__struct_fields__, 0) | {"running": 3, "preemptions": 7, "uptime_seconds": 1.5}
    telemetry.set_engine_stats("m", Stats(**counts))  # type: ignore[arg-type]
    telemetry.set_engine_stats("down", None)
    found = samples(telemetry)
    assert found['wootz_engine_running{model="m"}'] == 3
    assert found['wootz_engine_preemptions_total{model="m"}'] == 7
    assert found['wootz_engine_up{model="m"}'] == 1
    assert found['wootz_engine_up{model="down"}'] == 0
    assert 'wootz_engine_running{model="down"}' not in found
    exported = {name.removeprefix("wootz_engine_").partition("{")[0].removesuffix("_total") for name in found}
    assert set(Stats.__struct_fields__) - {"blocks_total"} <= exported
    assert 'wootz_engine_blocks_total{model="m"}' in found


# --- OTLP -----------------------------------------------------------------------------------------------------


async def test_spans_go_to_the_otlp_endpoint(database: Database) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    telemetry = Telemetry(Ledger(database), {}, otlp_endpoint=endpoint, service_name="wootz-test")
    await begin(telemetry).end()
    await telemetry.close()
    server.shutdown()
    (resource,) = received[0].resource_spans
    assert ("service.name", "wootz-test") in {(a.key, a.value.string_value) for a in resource.resource.attributes}
    assert [span.name for span in resource.scope_spans[0].spans] == ["chat m"]


def test_an_otlp_endpoint_without_the_exporter_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wootz\[otlp\]'"):
        Telemetry(Ledger(Database("sqlite+aiosqlite://")), {}, otlp_endpoint="http://127.0.0.1:1/v1/traces")


def test_the_rooms_import_without_torch() -> None:
    code = "import sys, wootz.store, wootz.telemetry; sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
