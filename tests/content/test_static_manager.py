"""OptimizedContentManager by itself, on a content file."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from older_managers import TopicEmbedder

import ai_model_optimizations
from ai_model_optimizations import (
    OptimizedContentManager,
    create_optimized_content_manager,
    find_optimized_response,
    process_batch_queries,
)
from ai_model_optimizations.content import matcher
from ai_model_optimizations.errors import ContentFileError

PASSWORD = ("Reset it under Settings, Security.", "keyword")


@pytest.fixture
def embedder() -> TopicEmbedder:
    return TopicEmbedder("security", "parcel", "deliver", "hello")


@pytest.fixture
def manager(content_dir: Path, embedder: TopicEmbedder) -> OptimizedContentManager:
    return OptimizedContentManager(content_dir, embedder=embedder)


def counted(manager: OptimizedContentManager) -> dict[str, Any]:
    statistics: dict[str, Any] = manager.get_optimization_statistics()["optimization_stats"]
    return statistics


ASKED = [
    ("I forgot my PASSWORD", PASSWORD),
    ("ŞİFREMİ unuttum", PASSWORD),
    ("Kargom nerede?", ("Parcels arrive within two days.", "keyword")),
    ("tell me about security", (PASSWORD[0], "semantic")),
    ("what do you think of {rain}?", ("No idea about what do you think of {rain}?", "default")),
    ("", ("No idea about ", "default")),
]


def test_keywords_then_meaning_then_the_default_in_all_forms(
    manager: OptimizedContentManager, embedder: TopicEmbedder
) -> None:
    messages, expected = [m for m, _ in ASKED], [answer for _, answer in ASKED]
    assert [manager.find_response(message) for message in messages] == expected
    for _ in range(2):  # computed, then cached

        async def talk() -> None:
            for message, answer in ASKED:
                assert await manager.find_response_optimized(message) == answer
                assert manager.find_response(message) == answer  # inside the running loop
            assert await manager.process_batch_queries(messages) == expected

        asyncio.run(talk())
        manager.clear_optimized_caches()
    manager.toggle_optimizations(False)
    assert [manager.find_response(message) for message in messages] == expected
    assert counted(manager)["bypassed_queries"] == len(ASKED)
    assert counted(manager)["fallbacks"].keys() == {"blank"}
    categories = [batch for batch in embedder.batches if "hello" in batch]
    assert len(categories) == 1  # the category texts are embedded once


def test_the_kill_switch_turns_the_caches_off_and_nothing_else(
    content_dir: Path, embedder: TopicEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "cache")
    manager = OptimizedContentManager(content_dir, embedder=embedder, ttl=59)
    for _ in range(2):
        assert [manager.find_response(message) for message, _ in ASKED] == [a for _, a in ASKED]
    assert counted(manager)["cache_hits"] == 0


def test_a_huge_message_is_answered_by_its_keywords_or_the_default(
    manager: OptimizedContentManager, embedder: TopicEmbedder
) -> None:
    assert manager.find_response("word " * 10_000 + "password") == PASSWORD
    response, source = manager.find_response("security " * 10_000)
    assert source == "default" and len(response) < 1100
    assert embedder.batches == []
    assert counted(manager)["fallbacks"] == {"too long": 2}


@pytest.mark.parametrize("wrong", [None, 3, b"password", ["password"]])
def test_a_message_that_is_no_string_is_a_clear_error(
    manager: OptimizedContentManager, wrong: Any
) -> None:
    with pytest.raises(TypeError, match="user_message: expected str, got"):
        manager.find_response(wrong)
    with pytest.raises(TypeError, match="user_message: expected str, got"):
        asyncio.run(manager.find_response_optimized(wrong))
    with pytest.raises(TypeError, match="user_message: expected str, got"):
        asyncio.run(manager.process_batch_queries(["password", wrong]))


def test_changed_content_answers_without_a_restart_and_a_broken_file_does_not(
    content_dir: Path, manager: OptimizedContentManager
) -> None:
    path = content_dir / "static_responses.json"
    document = json.loads(path.read_text())
    assert manager.find_response("my password") == PASSWORD
    assert manager.find_response("tell me about security")[1] == "semantic"
    path.write_text('{"responses": ')
    with pytest.raises(ContentFileError, match="line 1: not JSON"):
        manager.reload_content()
    assert manager.find_response("my password") == PASSWORD
    document["responses"]["password"]["message"] = "Call us about security."
    path.write_text(json.dumps(document))
    deadline = time.monotonic() + 60
    while manager.find_response("my password") == PASSWORD and time.monotonic() < deadline:
        time.sleep(0.02)
    assert manager.find_response("my password") == ("Call us about security.", "keyword")
    assert manager.find_response("tell me about security")[0] == "Call us about security."
    assert manager.static_responses["password"]["message"] == "Call us about security."
    assert manager.get_stats()["content_reloads"] == 1
    path.unlink()
    while not manager.get_stats()["content_reload_errors"] and time.monotonic() < deadline:
        manager.find_response("my password")
        time.sleep(0.02)
    assert manager.find_response("my password")[0] == "Call us about security."


def test_reload_content_takes_the_new_content_at_once(
    content_dir: Path, manager: OptimizedContentManager
) -> None:
    manager.find_response("tell me about security")
    (content_dir / "static_responses.json").write_text('{"responses": {"a": "Security is all."}}')
    manager.reload_content()
    assert manager.find_response("tell me about security") == ("Security is all.", "semantic")


def test_without_a_model_keywords_still_answer_and_the_rest_is_counted(content_dir: Path) -> None:
    manager = OptimizedContentManager(content_dir, embedder="no-such-model-anywhere")
    assert manager.find_response("my password") == PASSWORD
    for _ in range(2):
        assert manager.find_response("tell me about security")[1] == "default"
    found = counted(manager)
    assert found["fallback_count"] == 2 and found["cache_hits"] == 0  # nothing of it was kept


def until(
    manager: OptimizedContentManager, message: str, answer: tuple[str, str]
) -> tuple[str, str]:
    """Ask again and again, as users do; a minute at most."""
    deadline = time.monotonic() + 60
    while (found := manager.find_response(message)) != answer and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_changed_keywords_answer_without_a_model_too(content_dir: Path) -> None:
    manager = OptimizedContentManager(content_dir, embedder="no-such-model-anywhere")
    assert manager.find_response("tell me about security")[1] == "default"
    changed = {"responses": {"password": {"message": "Call us.", "keywords": ["password"]}}}
    (content_dir / "static_responses.json").write_text(json.dumps(changed))
    assert until(manager, "my password", ("Call us.", "keyword")) == ("Call us.", "keyword")


def test_changed_content_that_could_not_be_embedded_is_tried_again(
    content_dir: Path, embedder: TopicEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher, "_RETRY_SECONDS", 0.0)
    manager = OptimizedContentManager(content_dir, embedder=embedder)
    assert manager.find_response("tell me about security")[1] == "semantic"
    embedder.fail_on = {"Security is all."}
    (content_dir / "static_responses.json").write_text('{"responses": {"a": "Security is all."}}')
    deadline = time.monotonic() + 60
    while not manager.get_stats()["content_reload_errors"] and time.monotonic() < deadline:
        assert manager.find_response("my password") == PASSWORD
        time.sleep(0.02)
    embedder.fail_on = set()
    new = ("Security is all.", "semantic")
    assert until(manager, "tell me about security", new) == new


def test_a_model_that_loads_slowly_holds_up_no_loop(content_dir: Path) -> None:
    gate = threading.Event()

    def load() -> TopicEmbedder:
        assert gate.wait(60)
        return TopicEmbedder("security")

    manager = OptimizedContentManager(content_dir, embedder=load, loop_budget=0.05)

    async def talk() -> None:
        assert manager.find_response("tell me about security")[1] == "default"
        gate.set()
        await manager.warmup()
        assert manager.find_response("tell me about security")[1] == "semantic"

    asyncio.run(talk())


def test_managers_of_one_configuration_share_model_and_caches(
    content_dir: Path, embedder: TopicEmbedder
) -> None:
    managers = [OptimizedContentManager(content_dir, embedder=embedder) for _ in range(5)]
    managers.append(OptimizedContentManager(str(content_dir), embedder=embedder))
    for manager in managers:
        manager.find_response("tell me about security")
    assert sum("tell me about security" in batch for batch in embedder.batches) == 1
    assert [counted(manager)["cache_hits"] for manager in managers] == [0, 1, 1, 1, 1, 1]
    assert len({id(manager.memory_monitor) for manager in managers}) == 1
    stricter = OptimizedContentManager(content_dir, embedder=embedder, ttl=60)
    stricter.find_response("tell me about security")
    assert counted(stricter)["cache_hits"] == 0


def test_the_statistics_have_the_shape_that_services_read(
    manager: OptimizedContentManager,
) -> None:
    manager.find_response("my password")
    statistics = manager.get_optimization_statistics()
    assert set(statistics) == {"optimization_stats", "ai_optimization_stats", "base_stats"}
    assert statistics["optimization_stats"]["optimized_queries"] == 1
    assert statistics["optimization_stats"]["cache_hits"] == 0
    assert statistics["ai_optimization_stats"]["semantic_cache_stats"]["hit_rate"] == 0.0
    assert statistics["base_stats"]["total_responses"] == 3
    json.dumps(statistics)
    assert manager.get_stats()["optimization_stats"]["keyword_answers"] == 1


def test_the_module_functions(
    content_dir: Path, embedder: TopicEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = create_optimized_content_manager(str(content_dir), embedder=embedder)
    assert isinstance(manager, OptimizedContentManager)
    answer = asyncio.run(find_optimized_response("my password", manager=manager))
    assert answer == PASSWORD
    monkeypatch.chdir(content_dir.parent)
    assert asyncio.run(find_optimized_response("my password")) == PASSWORD
    assert asyncio.run(process_batch_queries(["my password"] * 2)) == [PASSWORD] * 2
    for name in ("OptimizedContentManager", "OptimizedContentMixin", "process_batch_queries"):
        assert name in ai_model_optimizations.__all__


def test_a_folder_without_content_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no content file"):
        OptimizedContentManager(tmp_path)
    with pytest.raises(TypeError, match="content_dir: expected a path, got int"):
        OptimizedContentManager(3)  # type: ignore[arg-type]


def test_the_real_model_finds_answers_by_meaning_in_english(
    tmp_path: Path, minilm_path: Path
) -> None:
    responses = {
        "password": "You can reset your password under Settings, Security.",
        "delivery": "Your order is delivered within two working days.",
        "refund": "We refund what you paid within a week after the goods came back.",
        "hours": "Our shop is open from nine to six, Monday to Saturday.",
    }
    path = tmp_path / "static_responses.json"
    path.write_text(json.dumps({"responses": responses}))
    manager = OptimizedContentManager(path, embedder=str(minilm_path))
    for message, name in [
        ("I can't log in, how do I change my password?", "password"),
        ("When will my order be delivered?", "delivery"),
        ("How do I get my money back, a refund?", "refund"),
    ]:
        assert manager.find_response(message) == (responses[name], "semantic"), message
    assert manager.find_response("Who won the football world cup in 1974?")[1] == "default"


def test_each_category_answers_from_what_is_near_in_its_own_language(minilm_path: Path) -> None:
    """English is not held to the threshold of Turkish, which this model takes for all alike."""
    content = Path(__file__).parents[2] / "examples" / "content_service" / "content"
    manager = OptimizedContentManager(content, embedder=str(minilm_path))
    for message, name in [
        ("When are you open?", "hours"),
        ("what time do you close", "hours"),
        ("when will my order arrive", "delivery"),
        ("can I return this", "refund"),
        ("I can't get into my account", "password"),
    ]:
        answer = (manager.static_responses[name]["message"], "semantic")
        assert manager.find_response(message) == answer, message
    for message in ("tell me a joke", "do you sell shoes", "kaç yaşındasın", "bana fıkra anlat"):
        assert manager.find_response(message)[1] == "default", message


def test_a_threshold_lies_above_what_comes_near_from_other_categories() -> None:
    rows = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.5, 0, 0.866], [0, 0, 1]], np.float32)
    thresholds = matcher.calibrated_thresholds(rows, np.array([0, 1, 3, 3]), 4)
    assert thresholds.tolist() == pytest.approx([0.75, 0.75, 0.45, 0.5], abs=1e-3)
    many = np.random.default_rng(0).standard_normal((2500, 4)).astype(np.float32)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    names = np.arange(2500) // 2
    cosines = np.where(names[:, None] == names[None, :], -1.0, many @ many.T).max(axis=1)
    expected = np.clip(cosines.reshape(-1, 2).max(axis=1), 0.45, 0.75)
    assert matcher.calibrated_thresholds(many, names, 1250) == pytest.approx(expected, abs=1e-6)


def test_a_child_of_a_fork_answers(content_dir: Path, embedder: TopicEmbedder) -> None:
    import os
    import warnings

    manager = OptimizedContentManager(content_dir, embedder=embedder)
    asyncio.run(manager.find_response_optimized("tell me about security"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: what we test
        child = os.fork()
    if child == 0:
        manager.clear_optimized_caches()
        answer = asyncio.run(manager.find_response_optimized("security, tell me"))
        os._exit(0 if answer[1] == "semantic" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
