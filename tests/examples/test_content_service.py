"""The content service, as a process, with real HTTP and websocket clients over loopback."""

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason="the example needs the extra 'service'")
httpx = pytest.importorskip("httpx", reason="the HTTP client of these tests")
websockets = pytest.importorskip("websockets.asyncio.client", reason="the websocket client")

SERVICE = Path(__file__).parents[2] / "examples" / "content_service" / "service.py"
# Like the service, but its model answers slowly, so that SIGTERM finds a question open.
SLOW = """
import sys
sys.path.insert(0, {folder!r})
import uvicorn
from service import create_app
from ai_model_optimizations.testing import FakeEmbedder
app = create_app(embedder=FakeEmbedder(delay=1.0))
uvicorn.run(app, port={port}, timeout_graceful_shutdown=30)
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def started(command: list[str], port: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "default"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
            return process
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError("the service did not start")


@pytest.fixture(scope="module")
def address(minilm_path: Path) -> Iterator[str]:
    """The service in a process of its own, with the real model."""
    port = free_port()
    process = started([sys.executable, str(SERVICE), "--port", str(port)], port)
    yield f"127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)


def ask(address: str, message: str, user: str = "") -> dict[str, Any]:
    answer = httpx.post(
        f"http://{address}/chat", json={"message": message, "user": user}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_http_chat_in_english_and_turkish(address: str) -> None:
    assert ask(address, "I forgot my PASSWORD")["source"] == "keyword"
    assert "Şifrenizi" in ask(address, "ŞİFREMİ unuttum")["response"]
    found = ask(address, "When are the goods that I ordered brought to me?", "anna")
    assert found["source"] in ("semantic", "default")
    assert ask(address, "qwertyuiop {asdf}")["response"].count("{asdf}") == 2
    batch = httpx.post(f"http://{address}/chat/batch", json=["password", "kargo"], timeout=60)
    assert [row["source"] for row in batch.json()] == ["keyword", "keyword"]


def test_wrong_requests_get_a_clear_error(address: str) -> None:
    for body in ({}, {"message": 3}, {"message": "x" * 5000}):
        assert httpx.post(f"http://{address}/chat", json=body).status_code == 422
    assert ask(address, "")["source"] == "default"


def test_letters_that_are_no_unicode_are_a_wrong_request(address: str) -> None:
    for path, body in (
        ("chat", b'{"message": "half an emoji: \\ud83d"}'),
        ("chat", b'{"message": "hello", "user": "\\ud83d"}'),
        ("chat/batch", b'["hello", "\\ud83d"]'),
    ):
        reply = httpx.post(
            f"http://{address}/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 422 and "valid string" in reply.json()["detail"][0]["msg"]


def test_health_metrics_memory_and_statistics(address: str) -> None:
    ask(address, "I forgot my password")
    health = httpx.get(f"http://{address}/health").json()
    assert health["status"] == "ok" and health["model_ready"] is True
    metrics = httpx.get(f"http://{address}/metrics").text
    for name in ("content_optimized_queries_total", "aimo_memory_", 'aimo_cache_hits_total{cache='):
        assert name in metrics, name
    assert httpx.get(f"http://{address}/memory").json()["current_memory_mb"] > 5
    statistics = httpx.get(f"http://{address}/stats").json()
    assert statistics["optimization_stats"]["optimized_queries"] >= 1


def test_websocket_chat_survives_nonsense_and_clients_that_leave(address: str) -> None:
    async def talk() -> None:
        async with websockets.connect(f"ws://{address}/ws") as gone:
            await gone.send(json.dumps({"message": "my order"}))
        async with websockets.connect(f"ws://{address}/ws") as connection:
            await connection.send("no JSON")
            assert "error" in json.loads(await connection.recv())
            await connection.send(json.dumps({"message": "Kargom nerede?", "user": "ali"}))
            assert "Siparişiniz" in json.loads(await connection.recv())["response"]

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_sigterm_lets_an_open_question_be_answered() -> None:
    port = free_port()
    program = SLOW.format(folder=str(SERVICE.parent), port=port)
    process = started([sys.executable, "-c", program], port)

    async def talk() -> Any:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"http://127.0.0.1:{port}/chat"
            open_question = asyncio.create_task(client.post(url, json={"message": "an odd one"}))
            while not open_question.done():
                statistics = (await client.get(f"http://127.0.0.1:{port}/stats")).json()
                if statistics["ai_optimization_stats"]["batch_stats"]["running_texts"]:
                    break
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            return await open_question

    try:
        answer = asyncio.run(talk())
        assert answer.status_code == 200 and answer.json()["source"] in ("default", "semantic")
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_two_workers_map_one_packed_model(minilm_path: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs Linux's /proc")
    port, cache = free_port(), tmp_path / "models"
    command = [sys.executable, str(SERVICE), "--port", str(port), "--workers", "2"]
    process = started([*command, "--model-cache", str(cache)], port)
    try:
        deadline = time.monotonic() + 60
        maps: list[str] = []
        while len(maps) < 2 and time.monotonic() < deadline:
            children = psutil.Process(process.pid).children()
            found = [Path(f"/proc/{child.pid}/maps").read_text() for child in children]
            maps = [text for text in found if str(cache) in text]
            time.sleep(0.1)
        assert len(maps) == 2
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_the_example_is_found_and_its_content_is_valid() -> None:
    spec = importlib.util.spec_from_file_location("content_service", SERVICE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["content_service"] = module  # pydantic looks names up there
    try:
        spec.loader.exec_module(module)
        app = module.create_app(embedder=None)
        assert len(app.state.manager.static_responses) == 8
    finally:
        del sys.modules["content_service"]
