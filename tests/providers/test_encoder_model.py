"""Encoders behind the engine's socket: embeddings and reranking as a client gets them, against transformers."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_encoder import write_tiny_encoder

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.wire import ChatRequest, EmbeddingRequest, RerankRequest
from wootz.engine import EngineClient
from wootz.engine.encoding import EncoderServer
from wootz.models import load_encoder
from wootz.providers.engine_model import EngineModel
from wootz.tokenization import load_tokenizer

TEXTS = ["the work and its license", "a copy of the terms", "nothing", "the licensor grants you a copyright license"]


@asynccontextmanager
async def served(folder: Path):
    """The encoder in a folder, over a real socket."""
    socket = folder / "engine.sock"
    server = EncoderServer(load_encoder(folder).prepare_for_inference(), load_tokenizer(folder))
    listener = await asyncio.start_unix_server(server.talk, str(socket))
    client = EngineClient(socket)
    client.start()
    model = EngineModel("tiny", client)
    try:
        async with asyncio.timeout(60):
            while not await model.ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield model, server
    finally:
        await model.close()
        listener.close()


@torch.inference_mode()
def means(reference: transformers.PreTrainedModel, folder: Path, texts: list[str]) -> torch.Tensor:
    """Mean of the last hidden states, which is what sentence-transformers does where a folder says nothing else."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return torch.stack([reference(**tokenizer(text, return_tensors="pt"))[0][0].mean(0) for text in texts])


async def test_vectors_equal_transformers(tmp_path: Path) -> None:
    reference = write_tiny_encoder(tmp_path)
    async with served(tmp_path) as (model, _):
        answer = await model.embed(EmbeddingRequest(model="tiny", input=TEXTS))
        expected = means(reference, tmp_path, TEXTS)
        got = torch.tensor([item.embedding for item in answer.data])
        torch.testing.assert_close(F.normalize(got, dim=-1), F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
        assert [item.index for item in answer.data] == [0, 1, 2, 3]
        tokens = sum(map(len, transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


async def test_forms_of_input_and_output(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    ids = load_tokenizer(tmp_path).encode(TEXTS[0])
    async with served(tmp_path) as (model, _):
        (plain,) = (await model.embed(EmbeddingRequest(model="tiny", input=TEXTS[0]))).data
        for form in ([TEXTS[0]], ids, [ids]):
            (same,) = (await model.embed(EmbeddingRequest(model="tiny", input=form))).data
            assert same.embedding == pytest.approx(plain.embedding, abs=1e-6)
        request = EmbeddingRequest(model="tiny", input=TEXTS[0], encoding_format="base64")
        (coded,) = (await model.embed(request)).data
        assert isinstance(coded.embedding, str)
        decoded = torch.frombuffer(bytearray(base64.b64decode(coded.embedding)), dtype=torch.float32)
        assert decoded.tolist() == pytest.approx(plain.embedding, abs=1e-6)
        (short,) = (await model.embed(EmbeddingRequest(model="tiny", input=TEXTS[0], dimensions=8))).data
        first = F.normalize(torch.tensor(plain.embedding[:8]), dim=0)
        assert short.embedding == pytest.approx(first.tolist(), abs=1e-5)


async def test_requests_that_come_together_are_computed_together(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    async with served(tmp_path) as (model, server):
        alone = [(await model.embed(EmbeddingRequest(model="tiny", input=text))).data[0].embedding for text in TEXTS]
        before = server.encoding.num_passes
        requests = [EmbeddingRequest(model="tiny", input=TEXTS[number % 4]) for number in range(40)]
        answers = await asyncio.gather(*map(model.embed, requests))
        assert server.encoding.num_passes - before < 20
        for number, answer in enumerate(answers):
            assert answer.data[0].embedding == pytest.approx(alone[number % 4], abs=1e-5)


async def test_a_cross_encoder_ranks_as_in_transformers(tmp_path: Path) -> None:
    reference = write_tiny_encoder(tmp_path, num_labels=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    query = "what may I copy?"
    with torch.inference_mode():
        logits = [reference(**tokenizer(query, text, return_tensors="pt")).logits[0, 0] for text in TEXTS]
    expected = torch.stack(logits).sigmoid()
    async with served(tmp_path) as (model, _):
        answer = await model.rerank(RerankRequest(model="tiny", query=query, documents=[*TEXTS], return_documents=True))
        assert [result.index for result in answer.results] == expected.argsort(descending=True).tolist()
        for result in answer.results:
            assert result.relevance_score == pytest.approx(expected[result.index].item(), abs=1e-5)
            assert result.document is not None
            assert result.document.text == TEXTS[result.index]
        best = await model.rerank(RerankRequest(model="tiny", query=query, documents=[*TEXTS], top_n=2))
        assert [result.index for result in best.results] == [result.index for result in answer.results[:2]]


async def test_without_a_head_vectors_are_compared(tmp_path: Path) -> None:
    reference = write_tiny_encoder(tmp_path)
    vectors = means(reference, tmp_path, ["a license", *TEXTS])
    expected = F.cosine_similarity(vectors[1:], vectors[:1])
    async with served(tmp_path) as (model, _):
        answer = await model.rerank(RerankRequest(model="tiny", query="a license", documents=[*TEXTS]))
        for result in answer.results:
            assert result.relevance_score == pytest.approx(expected[result.index].item(), abs=1e-5)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["fine", ""]}, "input"),
        ({"input": [5, 100_000]}, "input"),
        ({"input": "word " * 100}, "input"),
        ({"input": "fine", "dimensions": 33}, "dimensions"),
        ({"input": ["x"] * 2049}, "input"),
    ],
    ids=["empty", "empty among others", "unknown token", "too long", "too many dimensions", "too many"],
)
async def test_bad_input_is_refused_and_others_are_served(tmp_path: Path, request_: dict, param: str) -> None:
    write_tiny_encoder(tmp_path)
    async with served(tmp_path) as (model, _):
        bad, good = await asyncio.gather(
            model.embed(EmbeddingRequest(model="tiny", **request_)),
            model.embed(EmbeddingRequest(model="tiny", input="fine")),
            return_exceptions=True,
        )
        assert isinstance(bad, BadRequestError)
        assert bad.param == param
        assert not isinstance(good, BaseException)


async def test_an_encoder_does_not_write(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path)
    async with served(tmp_path) as (model, _):
        request = ChatRequest.model_validate({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
        with pytest.raises(UnsupportedError, match="cannot write"):
            async for _ in model.chat(request):
                pass
