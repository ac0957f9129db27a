"""A websocket handler that serves the process's memory monitor to a dashboard.

    pip install websockets
    python examples/websocket_memory.py --port 8765

A client sends ``status``, ``history 5`` or ``subscribe 1`` and gets JSON. The handler never
measures anything: it reads the snapshot that the monitor's thread published last, so a hundred
dashboards cost the service nothing. When memory passes the threshold, every client is notified.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from ai_model_optimizations.memory_monitor import (
    ThresholdEvent,
    get_memory_history,
    get_memory_status,
    memory_monitor,
    setup_memory_monitoring,
)

clients: set[ServerConnection] = set()


def _number(text: str, least: float, most: float) -> float:
    value = float(text)
    if not least <= value <= most:
        raise ValueError(f"expected a number from {least:g} to {most:g}, got {text}")
    return value


async def answer(connection: ServerConnection, request: str) -> None:
    """Answer one request; an invalid one gets an ``error`` and the connection stays open."""
    command, _, argument = request.strip().partition(" ")
    try:
        if command == "status":
            await send(connection, "status", get_memory_status())
        elif command == "history":
            minutes = _number(argument or "60", 0.01, 1440)
            await send(connection, "history", get_memory_history(minutes))
        elif command == "subscribe":
            seconds = _number(argument or "1", 0.05, 3600)
            while True:
                await send(connection, "status", get_memory_status())
                await asyncio.sleep(seconds)
        else:
            raise ValueError("expected status, history [minutes] or subscribe [seconds]")
    except ValueError as error:
        await send(connection, "error", str(error))


async def send(connection: ServerConnection, kind: str, data: Any) -> None:
    await connection.send(json.dumps({"type": kind, "data": data}, allow_nan=False))


async def handle(connection: ServerConnection) -> None:
    clients.add(connection)
    try:
        async for request in connection:
            await answer(connection, request if isinstance(request, str) else "")
    except ConnectionClosed:
        pass  # the client has disconnected
    finally:
        clients.discard(connection)


async def warn(event: ThresholdEvent) -> None:
    """Runs on the server's loop, where it was registered."""
    data = {"level": event.level, "memory_mb": event.memory_mb, "threshold_mb": event.threshold_mb}
    broadcast(clients, json.dumps({"type": "threshold", "data": data}))


async def run(host: str, port: int, ready: asyncio.Future[int] | None = None) -> None:
    """Serve until cancelled; `ready` gets the port."""
    memory_monitor.on_threshold(warn)
    memory_monitor.count_connections_with(lambda: len(clients))
    setup_memory_monitoring()
    try:
        async with serve(handle, host, port) as server:
            if ready is not None:
                ready.set_result(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()
    finally:
        memory_monitor.remove_callback(warn)
        memory_monitor.count_connections_with(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
