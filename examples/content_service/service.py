"""A chat service over static content in English and Turkish, for HTTP and websocket clients.

    pip install 'ai-model-optimizations[service]'
    python examples/content_service/service.py --port 8000 --workers 2

    curl -s localhost:8000/chat -H 'content-type: application/json' \
        -d '{"message": "How do I reset my password?", "user": "anna"}'

`GET /health`, `GET /metrics` (Prometheus) and `GET /memory` (the monitor's last snapshot) report
its state. On SIGTERM it finishes the questions being answered and takes no new ones. Each worker is
a process with its own counters and caches; all of them map one packed model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import prometheus_client
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ai_model_optimizations import OptimizedContentManager
from ai_model_optimizations.memory_monitor import (
    get_memory_status,
    memory_monitor,
    register_prometheus,
    setup_memory_monitoring,
)

CONTENT = Path(__file__).parent / "content"
LONGEST_MESSAGE = 4000
Message = Annotated[str, Field(max_length=LONGEST_MESSAGE)]


class Question(BaseModel):
    """A client's question; cached answers are kept apart by `user`, and "" shares them."""

    message: Message
    user: str = Field(default="", max_length=100)


class Answer(BaseModel):
    """The answer to a question."""

    response: str
    source: str


def create_app(content: str | os.PathLike[str] | None = None, embedder: Any = None) -> FastAPI:
    """Make the application; `content` and `embedder` are passed to the manager."""
    folder = content or os.environ.get("CONTENT_DIR") or CONTENT
    manager = OptimizedContentManager(folder, embedder=embedder)
    registry = prometheus_client.CollectorRegistry()
    sockets: set[WebSocket] = set()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        setup_memory_monitoring(check_interval=30)
        memory_monitor.count_connections_with(lambda: len(sockets))
        register_prometheus(registry)
        manager.semantic_cache.register_prometheus(registry, "content")
        with contextlib.suppress(Exception):  # without a model, keyword matching still works
            await manager.warmup()
        yield
        memory_monitor.count_connections_with(None)

    app = FastAPI(title="Content service", lifespan=lifespan)
    app.state.manager = manager

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # Omit the input, which may hold what UTF-8 cannot encode, such as half an emoji.
        wrong = [{"loc": list(found["loc"]), "msg": found["msg"]} for found in error.errors()]
        return JSONResponse({"detail": wrong}, status_code=422)

    _add_chat(app, manager, sockets)
    _add_figures(app, manager, registry)
    return app


def _add_chat(app: FastAPI, manager: OptimizedContentManager, sockets: set[WebSocket]) -> None:
    """Add the routes for questions; `sockets` holds the open websockets."""

    async def answer(question: Question) -> Answer:
        context = ("user", question.user) if question.user else ""
        response, source = await manager.find_response_optimized(question.message, context=context)
        return Answer(response=response, source=source)

    @app.post("/chat")
    async def chat(question: Question) -> Answer:
        return await answer(question)

    @app.post("/chat/batch")
    async def chat_batch(questions: list[Message]) -> list[Answer]:
        found = await manager.process_batch_queries(questions)
        return [Answer(response=response, source=source) for response, source in found]

    @app.websocket("/ws")
    async def chat_socket(socket: WebSocket) -> None:
        await socket.accept()
        sockets.add(socket)
        try:
            while True:
                text = await socket.receive_text()
                try:
                    question = Question.model_validate_json(text)
                except ValueError as error:
                    await socket.send_json({"error": str(error)})
                    continue
                await socket.send_text((await answer(question)).model_dump_json())
        except WebSocketDisconnect:
            pass  # the client has disconnected
        finally:
            sockets.discard(socket)


def _add_figures(
    app: FastAPI,
    manager: OptimizedContentManager,
    registry: prometheus_client.CollectorRegistry,
) -> None:
    """Add the routes for operators and their tools."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        statistics = manager.get_optimization_statistics()
        return {
            "status": "ok",
            "pid": os.getpid(),
            "model_ready": statistics["ai_optimization_stats"]["model_ready"],
            "memory_level": memory_monitor.level,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        kind = prometheus_client.CONTENT_TYPE_LATEST
        own = _own_metrics(manager)
        return Response(prometheus_client.generate_latest(registry) + own, media_type=kind)

    @app.get("/memory")
    async def memory() -> dict[str, Any]:
        return get_memory_status()

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return manager.get_optimization_statistics()


def _own_metrics(manager: OptimizedContentManager) -> bytes:
    """The manager's counters in Prometheus' text form."""
    counted = manager.get_optimization_statistics()["optimization_stats"]
    lines = []
    for name in ("optimized_queries", "cache_hits", "fallback_count"):
        lines += [f"# TYPE content_{name}_total counter", f"content_{name}_total {counted[name]}"]
    return ("\n".join(lines) + "\n").encode()


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--content", help="folder of static_responses.json")
    parser.add_argument(
        "--model-cache",
        default=Path.home() / ".cache" / "content-service",
        help="folder for the packed model that all workers map (%(default)s)",
    )
    options = parser.parse_args()
    if options.workers > 1:
        os.environ.setdefault("AIMO_CACHE_DIR", str(options.model_cache))
    if options.content:
        os.environ["CONTENT_DIR"] = options.content
    uvicorn.run(
        "service:create_app",
        factory=True,
        app_dir=str(Path(__file__).parent),
        host=options.host,
        port=options.port,
        workers=options.workers,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
