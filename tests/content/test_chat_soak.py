"""Chat under load with reloads: nothing is lost, answers are right, memory stays.

A second's form always; ten minutes with --soak.
"""

import asyncio
import json
import random
import time
from pathlib import Path

import psutil
import pytest
from older_managers import TopicEmbedder

from ai_model_optimizations import OptimizedContentManager

TOPICS = {"refund": "a week", "parcel": "two days", "voucher": "the last step"}


def write(folder: Path, version: int) -> None:
    responses = {name: f"{name}: {text} (version {version})" for name, text in TOPICS.items()}
    new = folder / "new"
    new.write_text(json.dumps({"responses": responses, "settings": {"similarity_threshold": 0.8}}))
    new.replace(folder / "static_responses.json")


@pytest.mark.parametrize("seconds", [1.5, pytest.param(600.0, marks=pytest.mark.soak)])
def test_chat_with_reloads_loses_nothing_and_keeps_memory_flat(
    tmp_path: Path, seconds: float
) -> None:
    write(tmp_path, 0)
    manager = OptimizedContentManager(tmp_path, embedder=TopicEmbedder(*TOPICS), max_size=500)
    end = time.monotonic() + seconds
    process = psutil.Process()
    asked = wrong = 0
    sizes: list[int] = []

    async def user(number: int) -> None:
        nonlocal asked, wrong
        choice = random.Random(number)
        while time.monotonic() < end:
            topic = choice.choice(list(TOPICS))
            message = f"{topic}, please {choice.randrange(3000)}"
            if choice.random() < 0.05:  # a client that leaves
                task = asyncio.ensure_future(manager.find_response_optimized(message))
                await asyncio.sleep(0)
                task.cancel()
                continue
            if choice.random() < 0.2:
                response, source = manager.find_response(message)
            else:
                response, source = await manager.find_response_optimized(
                    message, context=("user", number % 4)
                )
            asked += 1
            # While new content is being embedded by the executor, a plain call may get the default.
            wrong += source != "default" and not response.startswith(topic)
            await asyncio.sleep(0)

    async def editor() -> None:
        version = 0
        while time.monotonic() < end:
            version += 1
            write(tmp_path, version)
            if version % 2:
                await asyncio.to_thread(manager.reload_content)
            await asyncio.sleep(0.2)
            sizes.append(process.memory_info().rss)

    async def main() -> None:
        await manager.warmup()
        await asyncio.gather(editor(), *(user(number) for number in range(16)))
        response, _ = await manager.find_response_optimized("refund at last")
        assert response.startswith("refund")

    asyncio.run(main())
    statistics = manager.get_optimization_statistics()["optimization_stats"]
    assert asked > 20 and wrong == 0
    assert statistics["plain_errors"] == 0
    assert set(statistics["fallbacks"]) <= {"timeout"}
    assert statistics["optimized_queries"] >= asked
    if seconds > 60:  # before that memory has not settled
        settled = sizes[len(sizes) // 4]
        assert max(sizes[len(sizes) // 4 :]) - settled < 32e6
