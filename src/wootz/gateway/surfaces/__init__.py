"""Other protocols at the front door, each over any model: see `wootz.gateway.surfaces.surface`."""

from __future__ import annotations

from fastapi import APIRouter

from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces import messages, responses


def routers(gateway: Gateway) -> list[APIRouter]:
    """One for each surface."""
    return [responses.router(gateway), messages.router(gateway)]
