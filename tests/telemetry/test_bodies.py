"""Stored bodies: off unless switched on, without secrets, bounded, gone when their days are over or their user asks."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_bodies import some_master_key
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import func, select

from wootz.core.wire import ChatRequest, ChunkChoice, CompletionChoice, Delta, EmbeddingRequest
from wootz.store import Database
from wootz.telemetry import BodyStore, KeepBodies, Ledger, StoredBody, Telemetry
from wootz.telemetry.bodies import bodies
from wootz.telemetry.redaction import redact, redact_json

CANARY = "the-heron-flies-at-noon"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def telemetry(database: Database, spans: InMemorySpanExporter) -> AsyncIterator[Telemetry]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    keep = KeepBodies(BodyStore(database, some_master_key()), 7, 4096)
    telemetry = Telemetry(Ledger(database), {}, tracer_provider=provider, keep_bodies=keep)
    yield telemetry
    await telemetry.close()


def chat(text: str, **fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": text}], **fields})


async def answer(
    telemetry: Telemetry, request_id: str, request, *choices, user: str | None = None
) -> StoredBody | None:
    observation = telemetry.observe(
        request_id=request_id, route="/v1/chat/completions", key_id=None, model="m", provider="x", stream=True,
        user=user, body=request,
    )  # fmt: skip
    for choice in choices:
        if observation.body is not None:
            observation.body.add(choice)
    record = await observation.end()
    keep = telemetry.keep_bodies
    return await keep.store.get(record) if keep is not None else None


def said(text: str, index: int = 0, **delta: object) -> ChunkChoice:
    return ChunkChoice(index=index, delta=Delta(content=text, **delta))  # type: ignore[arg-type]


async def test_nothing_is_kept_unless_it_is_switched_on(database: Database) -> None:
    telemetry = Telemetry(Ledger(database), {})
    assert await answer(telemetry, "r1", chat("hello"), said("hi")) is None
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(bodies)) == 0
    await telemetry.close()


async def test_what_was_asked_and_answered_is_kept(telemetry: Telemetry) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "look_up", "arguments": '{"q": '}}
    kept = await answer(
        telemetry, "r1", chat("héllo", temperature=0.5),
        said("", reasoning_content="hm"), said("hi "), said("there"), said("other", index=1),
        said("", tool_calls=[call]), said("", tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
    )  # fmt: skip
    assert kept is not None
    asked = json.loads(kept.request)
    assert (asked["messages"][0]["content"], asked["temperature"]) == ("héllo", 0.5)
    first = {"index": 0, "reasoning": "hm", "content": "hi there", "call 0": "look_up", "arguments 0": '{"q": 1}'}
    assert json.loads(kept.answer) == [first, {"index": 1, "content": "other"}]


async def test_plain_completions_and_embeddings_too(telemetry: Telemetry) -> None:
    kept = await answer(telemetry, "r1", EmbeddingRequest(model="m", input="text"), CompletionChoice(text="on"))
    assert kept is not None
    assert (json.loads(kept.request)["input"], json.loads(kept.answer)) == ("text", [{"index": 0, "text": "on"}])


async def test_a_secret_that_came_in_pieces_is_blacked_out(telemetry: Telemetry) -> None:
    kept = await answer(
        telemetry, "r1", chat("key sk-wootz-abcdefgh12345678"), said("sk-wootz-"), said("abcdefgh12345678")
    )
    assert kept is not None
    assert "abcdefgh" not in kept.request + kept.answer
    assert "[api key]" in kept.request
    assert "[api key]" in kept.answer


async def test_a_body_is_bounded(telemetry: Telemetry) -> None:
    kept = await answer(telemetry, "r1", chat("ä" * 10**6), *(said("ö" * 100) for _ in range(1000)))
    assert kept is not None
    assert len(kept.request.encode()) < 4200
    assert len(kept.answer.encode()) < 4200
    assert "cut" in kept.request


async def test_texts_that_databases_refuse_are_kept_all_the_same(telemetry: Telemetry) -> None:
    kept = await answer(telemetry, "r1", chat("nul \0"), said("nul \0 and half a pair \ud800"))
    assert kept is not None
    assert "half a pair" in kept.answer


async def test_no_body_reaches_spans_logs_or_metrics(
    telemetry: Telemetry, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "wootz")
    kept = await answer(telemetry, "r1", chat(CANARY), said(CANARY))
    assert kept is not None
    assert CANARY in kept.request
    told = "".join(span.to_json() for span in spans.get_finished_spans()) + caplog.text
    assert CANARY not in told + telemetry.metrics_text().decode() + str(await telemetry.ledger.get("r1"))


async def test_bodies_go_when_their_days_are_over(telemetry: Telemetry) -> None:
    assert telemetry.keep_bodies is not None
    store = telemetry.keep_bodies.store
    assert await answer(telemetry, "r1", chat("hello")) is not None
    now = datetime.now(UTC)
    assert await store.sweep(now + timedelta(days=6.9)) == 0
    assert await store.sweep(now + timedelta(days=7.1)) == 1
    assert await store.get(await telemetry.ledger.get("r1")) is None


# --- redaction ------------------------------------------------------------------------------------------------

SECRETS = {
    "sk-wootz-VbX9kq3L0aZr5tYw": "[api key]",  # wootz: no secret
    "sk-ant-api03-abcdefghijklmnop": "[api key]",
    "AKIAIOSFODNN7EXAMPLE": "[api key]",
    "ghp_abcdefghijklmnopqrstuvwxyz012345": "[api key]",
    "Authorization: Bearer abcdef1234567890": "Authorization: [bearer token]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl": "[token]",
    "ann.o'hara+x@mail.example.co.uk": "ann.o'[e-mail]",
    "4111 1111 1111 1111": "[card number]",
    "5500-0000-0000-0004": "[card number]",
    "postgres://bob:hunter22@db.test/x": "postgres://[secret]@db.test/x",  # wootz: no secret
    '{"password": "hunter2222"}': '{"[secret]"}',
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----": "[private key]",
}
HARMLESS = [
    "order 4111 1111 1111 1112",
    "1700000000000 milliseconds",
    "skill sk-1",
    "a@b",
    "version 1.2.3.4.5.6.7.8.9.0.1.2.3.4",
    "the bearer of news",
    "https://example.test/a:b",
]


AROUND = ("{}", "see ({}), please", "前{}后", "a\n{}\nb")


def runs_together(expected: str, around: str) -> bool:
    """A secret that is found by the word before it is none where that word is a part of another."""
    return around == "前{}后" and expected[0] != "["


@pytest.mark.parametrize(
    ("text", "expected", "around"),
    [(*pair, around) for pair in SECRETS.items() for around in AROUND if not runs_together(pair[1], around)],
)
def test_secrets_are_blacked_out(text: str, expected: str, around: str) -> None:
    assert redact(around.format(text)) == around.format(expected)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_stay(text: str) -> None:
    assert redact(text) == text


@given(
    st.text(max_size=50),
    st.sampled_from(["sk-wootz-VbX9kq3L0aZr5tYw", "4111111111111111"]),  # wootz: no secret
    st.integers(0, 200),
)
def test_a_cut_leaves_no_half_of_a_secret(before: str, secret: str, cut: int) -> None:
    assert secret[:8] not in str(redact_json(f"{before} {secret} after", cut)).replace(before, "")


@pytest.mark.parametrize(
    "part", ["a@", "sk-", "1 ", "eyJ", "-----BEGIN PRIVATE KEY-----", "password=", "://a:b", "a.b@c."]
)
def test_a_text_made_to_be_slow_is_not(part: str) -> None:
    """Seconds here would be minutes on the server: what backtracks does so in the square of this length."""
    assert redact(part * 20_000)


def test_images_become_a_note_of_their_size() -> None:
    image = "data:image/png;base64," + "A" * 4000
    assert redact_json({"url": image}, 100) == {"url": "[image/png, 3,016 bytes]"}
