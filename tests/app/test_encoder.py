"""`wootz serve` with an encoder: the official client's embeddings, and reranking over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from tiny_encoder import write_tiny_encoder


@pytest.mark.slow
def test_an_encoder_is_served(start, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    write_tiny_encoder(folder)
    platform = start("serve", str(folder), "--name", "tiny", "--port", "0").wait_until_ready()
    assert f"{platform.url}/v1/embeddings" in platform.output  # the example to begin with
    client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key="none")
    answer = client.embeddings.create(model="tiny", input=["the license", "a copy"], dimensions=16)
    assert [len(item.embedding) for item in answer.data] == [16, 16]
    plain = client.embeddings.create(model="tiny", input="the license", encoding_format="float", dimensions=16)
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)
    assert answer.usage.prompt_tokens > 4
    with pytest.raises(openai.BadRequestError, match="cannot write"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])

    body = {"model": "tiny", "query": "a copy", "documents": ["the license", {"text": "a copy"}]}
    ranked = httpx.post(f"{platform.url}/v1/rerank", json=body).raise_for_status().json()
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    bad = httpx.post(f"{platform.url}/v1/rerank", json=body | {"documents": []})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "documents")
