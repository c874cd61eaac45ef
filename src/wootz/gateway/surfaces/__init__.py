"""Other protocols at the front door, each over any model: see `wootz.gateway.surfaces.surface`."""

from __future__ import annotations

from fastapi import APIRouter

from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces import batches, dashscope, dashscope_tasks, files, images, messages, responses, speech
from wootz.gateway.surfaces.batch_worker import working

__all__ = ["routers", "working"]


def routers(gateway: Gateway) -> list[APIRouter]:
    """One for each surface."""
    protocols = (responses, messages, files, batches, dashscope, dashscope_tasks, images, speech)
    return [surface.router(gateway) for surface in protocols]
