"""Replicas on a small Ray cluster of this machine."""

from __future__ import annotations

import asyncio

import pytest
from tiny_model import write_tiny_model

from wootz.core import BadRequestError, Config, EngineConfig, ModelConfig, collect_chat
from wootz.core.wire import ChatRequest

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    small = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False, "log_to_driver": False}
    ray.init(**small, _node_ip_address="127.0.0.1")
    try:
        yield
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()


def request(text: str, **fields) -> ChatRequest:
    messages = [{"role": "user", "content": text}]
    usual = {"model": "tiny", "messages": messages, "max_tokens": 5, "temperature": 0}
    return ChatRequest.model_validate(usual | fields)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_prompts_go_to_the_replica_that_has_their_beginning(cluster, tmp_path):
    from wootz.app.replicas import deploy

    folder = write_tiny_model(tmp_path / "tiny")
    engine = EngineConfig(threads=1, cache_bytes=2**23, device="cpu")
    config = Config(home=tmp_path, engine=engine, models={"tiny": ModelConfig(path=folder)})
    model = await asyncio.to_thread(deploy, "tiny", folder, config, replicas=2, actor_options={"num_cpus": 0.5})
    talks = [f"The first words of conversation {number}, which are not those of any other. " * 3 for number in range(4)]
    first = [await collect_chat(model.chat(request(talk))) for talk in talks]
    assert all(answer.model == "tiny" and answer.usage.completion_tokens <= 5 for answer in first)
    # Whichever of the two has it: the second time, all of the prompt's full blocks are found.
    for talk, answer in zip(talks, first, strict=True):
        again = await collect_chat(model.chat(request(talk)))
        assert again.choices[0].message.content == answer.choices[0].message.content
        details = again.usage.prompt_tokens_details
        assert details is not None
        assert details.cached_tokens >= again.usage.prompt_tokens - 17
    # What the engine refuses is refused in its own words.
    with pytest.raises(BadRequestError) as error:
        await collect_chat(model.chat(request("too long " * 4000)))
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
