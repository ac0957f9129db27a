"""The websocket example, with real clients over loopback."""

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ai_model_optimizations.memory_monitor import MemoryMonitor

websockets = pytest.importorskip("websockets.asyncio.client")

EXAMPLE = Path(__file__).parents[2] / "examples" / "websocket_memory.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("websocket_memory", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_server(example: ModuleType, client: Callable[[str], Awaitable[None]]) -> None:
    """Runs the example on a free port, and `client` against it."""

    async def both() -> None:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(example.run("127.0.0.1", 0, ready))
        port = await asyncio.wait_for(ready, 30)
        try:
            await asyncio.wait_for(client(f"ws://127.0.0.1:{port}"), 60)
        finally:
            server.cancel()
            with pytest.raises(asyncio.CancelledError):
                await server

    asyncio.run(both())


async def ask(connection: Any, request: str) -> dict[str, Any]:
    await connection.send(request)
    answer: dict[str, Any] = json.loads(await connection.recv())
    return answer


def test_clients_get_the_snapshot_of_the_one_monitor(
    monitor: MemoryMonitor, example: ModuleType
) -> None:
    monitor.configure(check_interval=0.02)

    async def client(address: str) -> None:
        async with websockets.connect(address) as first, websockets.connect(address) as second:
            while monitor.latest.active_connections < 2:  # the next reading sees both
                await asyncio.sleep(0.01)
            status = await ask(first, "status")
            assert status["type"] == "status"
            assert status["data"]["monitoring_active"] is True
            assert status["data"]["current_memory_mb"] > 5
            assert status["data"]["active_connections"] == 2
            history = await ask(second, "history 5")
            timestamps = [entry["timestamp"] for entry in history["data"]]
            assert timestamps == sorted(timestamps) and timestamps

    with_server(example, client)


def test_a_subscriber_gets_one_status_after_another_until_it_leaves(
    monitor: MemoryMonitor, example: ModuleType
) -> None:
    monitor.configure(check_interval=0.02)

    async def client(address: str) -> None:
        async with websockets.connect(address) as connection:
            await connection.send("subscribe 0.05")
            counts = [json.loads(await connection.recv())["data"]["total_snapshots"]]
            while len(set(counts)) < 3:
                counts.append(json.loads(await connection.recv())["data"]["total_snapshots"])
            assert counts == sorted(counts)
        while example.clients:
            await asyncio.sleep(0.01)

    with_server(example, client)


@pytest.mark.parametrize("request_text", ["", "dance", "history x", "history -1", "subscribe nan"])
def test_a_wrong_request_gets_an_error_and_the_connection_stays(
    monitor: MemoryMonitor, example: ModuleType, request_text: str
) -> None:
    async def client(address: str) -> None:
        async with websockets.connect(address) as connection:
            assert (await ask(connection, request_text))["type"] == "error"
            assert (await ask(connection, "status"))["type"] == "status"

    with_server(example, client)


def test_a_handler_reads_and_does_not_measure(monitor: MemoryMonitor, example: ModuleType) -> None:
    monitor.configure(check_interval=1000)

    async def client(address: str) -> None:
        async with websockets.connect(address) as connection:
            while not monitor.snapshots:
                await asyncio.sleep(0.01)
            for _ in range(100):
                await ask(connection, "status")
            assert len(monitor.snapshots) == 1

    with_server(example, client)


def test_all_clients_hear_of_the_threshold_on_the_servers_loop(
    monitor: MemoryMonitor, example: ModuleType
) -> None:
    monitor.configure(check_interval=0.02)

    async def client(address: str) -> None:
        async with websockets.connect(address) as first, websockets.connect(address) as second:
            while len(example.clients) < 2:
                await asyncio.sleep(0.01)
            monitor.configure(memory_threshold_mb=1)
            for connection in (first, second):
                message = json.loads(await connection.recv())
                assert message["type"] == "threshold"
                assert message["data"]["level"] == "critical"

    with_server(example, client)
    assert monitor.errors == 0
