"""An HTTP server that ends without a failed request.

A client learns that a connection ends from the answer before (``connection: close``); one that finds its connection
closed under a request it has just sent has seen a failure. So, when it is to end, the server

1. says 503 at ``/readyz`` and ``connection: close`` with every answer, and for ``server.drain_notice_seconds`` goes on
   as before: a load balancer needs that long to notice;
2. accepts no more connections, but still answers on those that are there. Where another process has the socket already
   (`hand_over`) it waits until idle ones are past their time (`KEEP_ALIVE_SECONDS`);
3. lets running answers finish for ``server.drain_seconds``, and cuts what is left.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from wootz.gateway import Gateway

KEEP_ALIVE_SECONDS = 5
"""An idle connection is closed after that long; clients know it from every other server."""
LOOK_SECONDS = 0.02


class Server(uvicorn.Server):
    """``ready`` is the file descriptor to tell when connections are accepted."""

    def __init__(self, options: uvicorn.Config, gateway: Gateway, *, notice: float, ready: int | None = None) -> None:
        super().__init__(options)
        self._gateway, self._notice, self._ready = gateway, notice, ready
        self._patience = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to us: uvicorn's own handling would end the process before the lifespan is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            os.write(self._ready, b"1")
            os.close(self._ready)

    def stop(self) -> None:
        """Nobody goes on with it."""
        if self._gateway.draining:
            self.should_exit = True
            return
        self._say_so()
        asyncio.get_running_loop().call_later(self._notice, self._stop_accepting)

    def hand_over(self) -> None:
        """Another process accepts on the same socket."""
        self._say_so()
        self._patience = KEEP_ALIVE_SECONDS + 1.0
        self._stop_accepting()

    def _say_so(self) -> None:
        self._gateway.draining = True
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers = [*self.server_state.default_headers, close]

    def _stop_accepting(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while self.server_state.connections and loop.time() < until:  # noqa: ASYNC110 (nothing there tells us)
            await asyncio.sleep(LOOK_SECONDS)
        await super().shutdown(sockets)
