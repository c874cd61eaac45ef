"""Adapters through a real engine process: listed with their parent, addressed by name, coming and going."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import httpx
import peft
import pytest
import torch
import transformers
from serving import GatewayServer

from wootz.core import Config
from wootz.engine.client import EngineClient
from wootz.providers import EngineModel


@pytest.fixture(scope="module")
def adapters(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("poet", "clerk")):
        torch.manual_seed(number)
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


def test_adapters_are_models_of_their_own(tiny_model_folder, adapters, tmp_path):
    socket = tmp_path / "engine.sock"
    command = [sys.executable, "-m", "wootz.engine.server", "--name", "tiny", "--path", str(tiny_model_folder)]
    command += ["--socket", str(socket), "--config", '{"cache_bytes": 8388608, "threads": 1}']
    command += ["--adapters", json.dumps({"poet": str(adapters / "poet")})]

    def models() -> dict:
        client = EngineClient(socket)
        client.start()
        tiny = EngineModel("tiny", client)
        return {"tiny": tiny, "poet": tiny.adapter("poet")}

    with subprocess.Popen(command) as engine, GatewayServer(tmp_path, models) as server:
        try:
            check(server, adapters)
        finally:
            engine.kill()


def check(server: GatewayServer, adapters) -> None:
    user, admin = (
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        for key in (server.key, server.admin_key)
    )
    while user.get("/readyz").status_code != 200:
        time.sleep(0.05)

    def text(model: str) -> str:
        ask = {"model": model, "prompt": "The sea is", "max_tokens": 12, "temperature": 0}
        answer = user.post("/v1/completions", json=ask).raise_for_status().json()
        assert answer["model"] == model
        return answer["choices"][0]["text"]

    def parents() -> dict:
        return {model["id"]: model["parent"] for model in user.get("/v1/models").json()["data"]}

    assert parents() == {"tiny": None, "poet": "tiny"}
    assert text("tiny") != text("poet")

    load = {"lora_name": "clerk", "lora_path": str(adapters / "clerk")}
    assert user.post("/v1/load_lora_adapter", json=load).status_code == 403
    assert admin.post("/v1/load_lora_adapter", json=load).raise_for_status().json()["parent"] == "tiny"
    assert parents() == {"tiny": None, "poet": "tiny", "clerk": "tiny"}
    assert len({text("tiny"), text("poet"), text("clerk")}) == 3

    def refused(path: str, **body) -> tuple[int, str]:
        answer = admin.post(f"/v1/{path}", json=body)
        return answer.status_code, answer.json()["error"]["message"]

    status, message = refused("load_lora_adapter", **load)
    assert (status, message) == (400, 'there is a model "clerk" already')
    assert refused("load_lora_adapter", lora_name="x", lora_path="/nowhere")[0] == 404
    broken = adapters / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (broken / "adapter_model.safetensors").write_bytes((adapters / "poet/adapter_model.safetensors").read_bytes())
    status, message = refused("load_lora_adapter", lora_name="x", lora_path=str(broken))
    assert status == 400
    assert 'kind "IA3"' in message
    assert refused("load_lora_adapter", lora_name="x", lora_path="x", base_model_name="poet")[0] == 400

    admin.post("/v1/unload_lora_adapter", json={"lora_name": "clerk"}).raise_for_status()
    assert parents() == {"tiny": None, "poet": "tiny"}
    assert user.post("/v1/completions", json={"model": "clerk", "prompt": "x"}).status_code == 404
    assert refused("unload_lora_adapter", lora_name="clerk")[0] == 404
    assert refused("unload_lora_adapter", lora_name="tiny")[0] == 404


def test_a_name_is_one_models_or_one_adapters():
    local = {"source": "file:x", "adapters": {"b": "folder"}}
    assert Config.model_validate({"models": {"a": local}}).models["a"].adapters["b"].name == "folder"
    with pytest.raises(ValueError, match='called "b"'):
        Config.model_validate({"models": {"a": local, "b": {"source": "file:y"}}})
    with pytest.raises(ValueError, match="adapters need a local model"):
        Config.model_validate({"models": {"a": {"base_url": "http://x", "adapters": {"b": "folder"}}}})
