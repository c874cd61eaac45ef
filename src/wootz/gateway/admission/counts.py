"""How full the models with a capacity are: for Prometheus (an autoscaler goes by the depth of queues), and for
administrators at ``GET /admin/admission``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from wootz.gateway.admission.queue import ModelQueue

GAUGES = {
    "places": "Requests that the model is given at a time.",
    "running": "Requests that have a place.",
    "waiting": "Requests that wait for one.",
}
COUNTERS = {"waited": "Requests that had to wait.", "refused": "Requests that were sent away (429 overloaded)."}


class QueueState(BaseModel):
    model: str
    places: int = Field(description="Requests at a time; as learnt, where it is learnt.")
    running: int
    waiting: int
    waited: int = Field(description="Requests that had to wait, since the start.")
    refused: int = Field(description="Requests that were sent away, since the start.")
    retry_after: float = Field(description="Seconds until the queue would be empty, at the rate of late.")


class QueueStates(BaseModel):
    data: list[QueueState]


def state_of(queue: ModelQueue) -> QueueState:
    return QueueState(
        model=queue.name,
        places=queue.capacity.places,
        running=queue.running,
        waiting=queue.waiting,
        waited=queue.num_waited,
        refused=queue.num_refused,
        retry_after=queue.retry_after(),
    )


class QueueCollector(Collector):
    def __init__(self, queues: Mapping[str, ModelQueue]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        states = [state_of(queue) for queue in self._queues.values()]
        for family, texts in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, text in texts.items():
                metric = family(f"wootz_admission_{field}", text, labels=["model"])
                for state in states:
                    metric.add_metric([state.model], getattr(state, field))
                yield metric


def add_routes(router: APIRouter, queues: Mapping[str, ModelQueue]) -> None:
    @router.get("/admin/admission")
    async def list_queues() -> QueueStates:
        """Models with a capacity: how many are worked on, how many wait."""
        return QueueStates(data=[state_of(queue) for queue in queues.values()])
