"""A model on many machines: replicas of its engine as a Ray Serve deployment, spoken to as one `LanguageModel`.

    ray.init()                                     # or the address of a cluster
    model = deploy("mine", Path("my-model"), config, replicas=4)
    async for chunk in model.chat(request): …
    await model.close()                            # the deployment stays; serve.shutdown() ends it

Each replica is a Ray actor with an engine process of its own, and Ray starts, watches and restarts them. A prompt goes
to the replica that has its beginning (`wootz.providers.prefix_routing`), as Ray's router asks `PrefixRouter` to choose.
The folder of the model must be there on every machine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from wootz.app.connect import local_model
from wootz.core import Config, LanguageModel, UnavailableError, WootzError
from wootz.core.errors import MissingExtraError
from wootz.core.wire import ChatChunk, ChatRequest, Completion, CompletionRequest
from wootz.engine.client import error_of
from wootz.engine.protocol import Failed
from wootz.providers.prefix_routing import PrefixRouting

try:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.handle import DeploymentHandle
    from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
except ImportError as error:
    raise MissingExtraError("replicas on a cluster", "ray", str(error.name)) from None

MOST_UNDER_WAY = 256
"""Requests of one replica; its engine queues those that do not run."""


class PrefixRouter(RequestRouter):
    """Ray's question, answered by `PrefixRouting`. Each process that asks has its own, and what it sent in mind."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.routing = PrefixRouting(**kwargs)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one that was chosen, then all others: Ray turns to those while the first is full."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        first = self.routing.choose(pending_request.kwargs.get("prompt", ""), replicas)
        return [[replicas.pop(first)], list(replicas.values())]  # pyright: ignore[reportArgumentType]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self.routing.sent(pending_request.kwargs.get("prompt", ""), replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.routing.done(replica_id)


class Replica:
    """The actor: one engine process, and the way to it. Requests and chunks pass as JSON."""

    async def __init__(self, path: str, config: str) -> None:
        self.stack = AsyncExitStack()
        models = local_model(Config.model_validate_json(config), Path(path))
        (self.model,) = (await self.stack.enter_async_context(models)).values()

    async def chat(self, request: str, *, prompt: str) -> AsyncGenerator[str | dict[str, Any], None]:
        async for piece in self._answer(self.model.chat(ChatRequest.model_validate_json(request))):
            yield piece

    async def complete(self, request: str, *, prompt: str) -> AsyncGenerator[str | dict[str, Any], None]:
        async for piece in self._answer(self.model.complete(CompletionRequest.model_validate_json(request))):
            yield piece

    async def _answer(self, chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[str | dict[str, Any], None]:
        """Each chunk; or what went wrong, in a form that is an error again on the other side."""
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk.model_dump_json()
        except WootzError as error:
            yield {"status": error.status, "message": str(error), "code": error.code, "param": error.param}

    async def check_health(self) -> None:
        """Ray replaces a replica whose engine has gone."""
        if not await self.model.ready():
            raise RuntimeError("the engine is gone")

    async def __del__(self) -> None:
        await self.stack.aclose()


def deploy(
    name: str, path: Path, config: Config, *, replicas: int = 1, actor_options: dict[str, Any] | None = None
) -> RayModel:
    """Start the replicas (or change their number) on the cluster that `ray.init` has joined, and wait for them.

    ``actor_options`` says what each needs (``{"num_gpus": 1}``), in Ray's words.
    """
    deployment = serve.deployment(
        Replica,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=MOST_UNDER_WAY,
        ray_actor_options=actor_options or {},
        request_router_config=RequestRouterConfig.model_validate(
            {"request_router_class": "wootz.app.replicas:PrefixRouter"}
        ),
    )
    application = deployment.bind(str(path.absolute()), config.model_dump_json())  # pyright: ignore
    handle = serve.run(application, name=name, route_prefix=None)
    return RayModel(name, handle)


class RayModel(LanguageModel):
    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self.name, self.handle = name, handle

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        prompt = "\n".join(message.model_dump_json(exclude_none=True) for message in request.messages)
        async for piece in self._ask("chat", request.model_dump_json(exclude_unset=True), prompt):
            yield ChatChunk.model_validate_json(piece).model_copy(update={"model": self.name})

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        prompt = request.prompt if isinstance(request.prompt, str) else str(request.prompt)
        async for piece in self._ask("complete", request.model_dump_json(exclude_unset=True), prompt):
            yield Completion.model_validate_json(piece).model_copy(update={"model": self.name})

    async def _ask(self, method: str, request: str, prompt: str) -> AsyncGenerator[str, None]:
        """The pieces of an answer. A replica that dies meanwhile is a retryable error."""
        pieces = self.handle.options(method_name=method, stream=True).remote(request, prompt=prompt)
        try:
            async for piece in pieces:  # pyright: ignore[reportGeneralTypeIssues] (with stream=True it is a generator)
                if isinstance(piece, dict):
                    raise error_of(Failed("", **piece))
                yield piece
        except RayError:
            gone = "a replica went away while it answered; try again"
            raise UnavailableError(gone, code="engine_restarted") from None
        finally:
            pieces.cancel()
