"""How AdaptiveModelSelector chooses, loads, unloads and steps down, with stand-ins for models."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import (
    AdaptiveModelSelector,
    ClosedError,
    Embedding,
    NoSuitableModelError,
    SpaceMismatchError,
)
from ai_model_optimizations.memory_monitor import memory_monitor
from ai_model_optimizations.testing import FakeEmbedder


class Loader:
    """Counts its calls and makes a FakeEmbedder each time."""

    def __init__(self, seconds: float = 0.0, **arguments: Any) -> None:
        self.calls = 0
        self.seconds = seconds
        self.arguments = arguments

    def __call__(self) -> FakeEmbedder:
        self.calls += 1
        time.sleep(self.seconds)
        return FakeEmbedder(**self.arguments)


@pytest.fixture
def selector() -> Iterator[AdaptiveModelSelector]:
    with AdaptiveModelSelector(profile_seconds=0.01, dwell_seconds=1e-9) as made:
        yield made


@pytest.fixture
def three(selector: AdaptiveModelSelector) -> AdaptiveModelSelector:
    """A quick English model, a slow better one for both languages, a Turkish one."""
    selector.register("quick", FakeEmbedder(space_id="q"), quality=0.6, languages=["en"])
    selector.register("slow", FakeEmbedder(delay=0.03, space_id="s"), quality=0.9, memory_mb=500)
    selector.register(
        "turkish", FakeEmbedder(delay=0.01, space_id="t"), quality=0.8, languages=["tr"]
    )
    for name in selector.names:
        selector.load(name)
    return selector


# ---- choosing ----


def test_the_quickest_suitable_model_is_chosen_and_every_verdict_is_given(
    three: AdaptiveModelSelector,
) -> None:
    choice = three.select("How do I reset my password?")
    assert choice.name == "quick"
    assert choice.space_id == "q"
    assert choice.predicted_ms is not None
    assert list(choice.reasons) == ["quick", "slow", "turkish"]
    assert choice.reasons["quick"] == "chosen: quickest"
    assert choice.reasons["slow"] == "suitable, but 'quick' is preferred"
    assert choice.reasons["turkish"] == "language 'en' is not among ['tr']"


def test_quality_priority_takes_the_best_that_meets_the_limits(
    three: AdaptiveModelSelector,
) -> None:
    assert three.select("What is this?", quality_priority=True).name == "slow"
    choice = three.select("What is this?", quality_priority=True, max_latency_ms=20)
    assert choice.name == "quick"
    assert choice.reasons["slow"].startswith("would take")
    choice = three.select("What is this?", quality_priority=True, max_memory_mb=100)
    assert choice.name == "quick"
    assert choice.reasons["slow"] == "takes 500 MiB, allowed are 100"


def test_language_is_detected_given_or_ignored(three: AdaptiveModelSelector) -> None:
    assert three.select("Siparişim nerede acaba?").name == "turkish"
    assert three.select("hello", language="tr").name == "turkish"
    assert three.select().name == "quick"
    assert three.select(min_quality=0.7).name == "turkish"
    assert three.select(min_quality=0.7, language="de").name == "slow"


def test_a_registered_token_limit_keeps_long_texts_away(selector: AdaptiveModelSelector) -> None:
    selector.register("short", FakeEmbedder(), quality=1, max_tokens=32)
    selector.register("long", FakeEmbedder(), quality=0)
    assert selector.select("few words", quality_priority=True).name == "short"
    choice = selector.select("many words " * 200, quality_priority=True)
    assert choice.name == "long"
    assert "it reads 32" in choice.reasons["short"]


def test_no_suitable_model_is_an_error_that_says_why_for_each(
    three: AdaptiveModelSelector,
) -> None:
    with pytest.raises(NoSuitableModelError) as caught:
        three.select("Where is it?", min_quality=0.85, max_latency_ms=5)
    message = str(caught.value)
    assert "quick: quality 0.6 is below 0.85" in message
    assert "slow: would take" in message
    assert "turkish: language" in message
    with pytest.raises(LookupError, match="no model is registered"):
        AdaptiveModelSelector().select("x")


def test_a_model_that_was_never_loaded_comes_last_and_its_latency_is_unknown(
    selector: AdaptiveModelSelector,
) -> None:
    selector.register("unknown", Loader(), quality=1.0)
    assert selector.select(max_latency_ms=5).predicted_ms is None
    selector.register("known", FakeEmbedder(delay=0.002), quality=0.5)
    selector.load("known")
    choice = selector.select(max_latency_ms=50, quality_priority=True)
    assert choice.name == "known"
    assert "unknown before it is first loaded" in choice.reasons["unknown"]


def test_longer_texts_are_predicted_to_take_longer(selector: AdaptiveModelSelector) -> None:
    class Proportional(FakeEmbedder):
        def encode(self, texts: Any, batch_size: int = 32) -> Any:
            time.sleep(sum(self.count_tokens([texts] if isinstance(texts, str) else texts)) * 5e-4)
            return super().encode(texts, batch_size)

    selector.register("m", Proportional(), quality=1)
    selector.load("m")
    short = selector.select("word " * 10).predicted_ms
    long = selector.select("word " * 150).predicted_ms
    assert short is not None and long is not None
    assert long > short
    profile = selector.profile("m")
    assert profile is not None
    assert profile.tokens == (4, 8, 16, 32, 64, 128, 256)
    assert list(profile.milliseconds) == sorted(profile.milliseconds)


def test_a_custom_detector_takes_the_built_in_ones_place() -> None:
    selector = AdaptiveModelSelector(detect=lambda text: "xx")
    selector.register("xx", FakeEmbedder(), quality=1, languages=["xx"])
    selector.register("en", FakeEmbedder(), quality=2, languages=["en"])
    assert selector.select("This is English", quality_priority=True).name == "xx"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name: "),
        ({"name": 3}, ValueError, "name: "),
        ({"name": "taken"}, ValueError, "name: 'taken' is registered already"),
        ({"quality": "high"}, TypeError, "quality: "),
        ({"quality": float("nan")}, ValueError, "quality: "),
        ({"languages": "en"}, TypeError, "languages: "),
        ({"languages": [3]}, TypeError, "languages: "),
        ({"max_tokens": 0}, ValueError, "max_tokens: "),
        ({"memory_mb": -1}, ValueError, "memory_mb: "),
        ({"model_or_loader": 3}, TypeError, "model_or_loader: "),
    ],
)
def test_bad_registrations_are_refused_by_name(
    selector: AdaptiveModelSelector, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    selector.register("taken", FakeEmbedder(), quality=1)
    complete: dict[str, Any] = {
        "name": "new", "model_or_loader": FakeEmbedder(), "quality": 1.0, **arguments,
    }  # fmt: skip
    with pytest.raises(error, match=f"^{message}"):
        selector.register(**complete)
    assert selector.names == ["taken"]


def test_select_and_use_refuse_what_they_do_not_know(selector: AdaptiveModelSelector) -> None:
    with pytest.raises(TypeError, match="text: expected str"):
        selector.select(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no model 'x' is registered"), selector.use("x"):
        pass
    with pytest.raises(TypeError, match="choice: expected a Selection or a name, got int"):
        selector.use(3).__enter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text: expected str, got NoneType"):
        selector.embed(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"idle_seconds": 0}, ValueError),
        ({"profile_seconds": "0.3"}, TypeError),
        ({"dwell_seconds": -1}, ValueError),
        ({"detect": "en"}, TypeError),
    ],
)
def test_arguments_out_of_range_are_named(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{next(iter(arguments))}: expected"):
        AdaptiveModelSelector(**arguments)


@pytest.mark.parametrize(
    ("requirements", "error"),
    [
        ({"max_latency_ms": 0}, ValueError),  # what is measured is divided by it
        ({"max_latency_ms": float("nan")}, ValueError),
        ({"max_latency_ms": "50"}, TypeError),
        ({"max_memory_mb": -1}, ValueError),
        ({"min_quality": "high"}, TypeError),
        ({"min_quality": float("nan")}, ValueError),
        ({"language": 3}, TypeError),
    ],
)
def test_requirements_that_are_none_are_named(
    selector: AdaptiveModelSelector, requirements: dict[str, Any], error: type[Exception]
) -> None:
    selector.register("a", FakeEmbedder(), quality=1)
    with pytest.raises(error, match=f"^{next(iter(requirements))}: expected"):
        selector.select("text", **requirements)
    assert selector.select("text", max_latency_ms=float("inf")).name == "a"


# ---- loading and unloading ----


def test_a_model_is_loaded_once_however_many_ask(selector: AdaptiveModelSelector) -> None:
    loader = Loader(seconds=0.05)
    selector.register("m", loader, quality=1)
    models: list[object] = []

    def ask() -> None:
        with selector.use("m") as model:
            models.append(model)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loader.calls == 1
    assert len(models) == 16
    assert len(set(map(id, models))) == 1


def test_a_child_forked_during_a_load_loads_for_itself() -> None:
    code = """
import os, threading, time
from ai_model_optimizations import AdaptiveModelSelector
from ai_model_optimizations.testing import FakeEmbedder
parent, began = os.getpid(), threading.Event()
def load():
    began.set()
    time.sleep(0.5 if os.getpid() == parent else 0)
    return FakeEmbedder()
selector = AdaptiveModelSelector(idle_seconds=0.05, profile_seconds=0.01)
selector.register("m", load, quality=1)
thread = threading.Thread(target=selector.load, args=("m",))
thread.start()
began.wait()
child = os.fork()
if child == 0:
    with selector.use("m") as model:
        assert model.encode("a").shape == (8,)
    while selector.loaded:  # by the child's own janitor
        time.sleep(0.01)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
thread.join()
selector.close()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    subprocess.run(command, check=True, timeout=60)


def test_a_failed_load_is_raised_and_tried_again(selector: AdaptiveModelSelector) -> None:
    answers: list[Any] = [OSError("not yet"), FakeEmbedder()]

    def load() -> FakeEmbedder:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    selector.register("m", load, quality=1)
    with pytest.raises(OSError, match="not yet"):
        selector.load("m")
    assert selector.loaded == []
    selector.load("m")
    assert selector.loaded == ["m"]


def test_a_model_in_use_is_never_unloaded(selector: AdaptiveModelSelector) -> None:
    selector.register("m", Loader(), quality=1)
    with selector.use("m") as model:
        assert selector.release_memory() == []
        assert selector.unload("m")
        assert selector.loaded == ["m"]
        assert model.encode("a").shape == (8,)
    assert selector.loaded == []
    assert not selector.unload("m")


def test_a_new_user_revokes_an_unload_that_waits(selector: AdaptiveModelSelector) -> None:
    loader = Loader()
    selector.register("m", loader, quality=1)
    with selector.use("m"):
        selector.unload("m")
        with selector.use("m"):
            pass
        assert selector.loaded == ["m"]
    assert selector.loaded == ["m"]
    assert loader.calls == 1


def test_release_memory_unloads_what_is_idle_and_can_be_loaded_again(
    selector: AdaptiveModelSelector,
) -> None:
    selector.register("loader", Loader(seconds=0.02), quality=1)
    selector.register("owned", FakeEmbedder(), quality=1)
    selector.load("loader")
    selector.load("owned")
    assert selector.release_memory({"an": "event"}) == ["loader"]
    assert selector.loaded == ["owned"]  # it is its owner's
    predicted = selector.select(min_quality=1, max_latency_ms=1e4)
    assert predicted.name == "owned"
    reasons = selector.select(max_latency_ms=15).reasons
    assert "loading included" in reasons["loader"]
    selector.load("loader")
    assert sorted(selector.loaded) == ["loader", "owned"]


def test_the_memory_monitors_alarm_unloads_what_is_idle_and_spares_what_is_in_use(
    selector: AdaptiveModelSelector,
) -> None:
    selector.register("idle", Loader(), quality=1)
    selector.register("busy", Loader(), quality=1)
    selector.load("idle")
    memory_monitor.on_threshold(selector.release_memory)
    memory_monitor.configure(memory_threshold_mb=1, cooldown=1000)
    try:
        with selector.use("busy"):
            memory_monitor._tick()
            assert selector.loaded == ["busy"]
    finally:
        memory_monitor._set_up()


def test_an_idle_model_goes_by_itself() -> None:
    loader = Loader()
    with AdaptiveModelSelector(idle_seconds=0.05, profile_seconds=0.01) as selector:
        selector.register("m", loader, quality=1)
        with selector.use("m"):
            time.sleep(0.15)
            assert selector.loaded == ["m"]
        for _ in range(400):
            if not selector.loaded:
                break
            time.sleep(0.01)
        assert selector.loaded == []
        assert selector.profile("m") is not None


def test_close_unloads_and_refuses() -> None:
    selector = AdaptiveModelSelector(idle_seconds=60, profile_seconds=0.01)
    selector.register("m", Loader(), quality=1)
    selector.load("m")
    selector.close()
    assert selector.loaded == []
    with pytest.raises(ClosedError):
        selector.load("m")
    assert not [t for t in threading.enumerate() if t.name == "aimo-selector"]
    selector.close()


def test_many_threads_select_use_and_unload_at_once(selector: AdaptiveModelSelector) -> None:
    for i in range(4):
        selector.register(f"m{i}", Loader(space_id=f"{i}"), quality=i)

    def work(seed: int) -> None:
        dice = np.random.default_rng(seed)
        for _ in range(100):
            quality = int(dice.integers(4))
            vector = selector.embed("some text", min_quality=quality)
            assert int(vector.space_id or -1) >= quality
            if dice.random() < 0.2:
                selector.release_memory()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(work, i) for i in range(8)]:
            job.result(60)
    assert all(entry.users == 0 for entry in selector._shelf.entries.values())


# ---- spaces and load ----


def test_what_comes_out_carries_its_space(three: AdaptiveModelSelector) -> None:
    vector = three.embed("Where is my order?")
    assert isinstance(vector, Embedding)
    assert vector.space_id == "q"
    assert vector == FakeEmbedder(space_id="q").vector("Where is my order?").tolist()


def test_a_family_of_two_spaces_is_refused(selector: AdaptiveModelSelector) -> None:
    selector.register("a", FakeEmbedder(space_id="one"), quality=1, family="f")
    selector.register("b", FakeEmbedder(space_id="two"), quality=1, family="f")
    selector.load("a")
    with pytest.raises(SpaceMismatchError, match="family 'f': 'b' makes vectors of space 'two'"):
        selector.load("b")


def test_of_two_spaces_that_load_at_once_one_is_refused(selector: AdaptiveModelSelector) -> None:
    both_load = threading.Barrier(2, timeout=30)

    def loader(space: str) -> Any:
        def load() -> FakeEmbedder:
            both_load.wait()
            return FakeEmbedder(space_id=space)

        return load

    selector.register("a", loader("one"), quality=1, family="f")
    selector.register("b", loader("two"), quality=1, family="f")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(selector.load, name) for name in ("a", "b")]
        errors = [job.exception(60) for job in jobs]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", "SpaceMismatchError"]
    assert len(selector.loaded) == 1


@pytest.fixture
def family(selector: AdaptiveModelSelector) -> AdaptiveModelSelector:
    for name, delay, quality in (("f32", 0.012, 1.0), ("f16", 0.006, 0.99), ("int8", 0.0, 0.98)):
        selector.register(
            name, FakeEmbedder(delay=delay, space_id="base"), quality=quality, family="base"
        )
    selector.register("other", FakeEmbedder(space_id="other"), quality=0.995)
    for name in selector.names:
        selector.load(name)
    return selector


def test_under_load_a_family_steps_down_and_later_up_and_never_leaves_itself(
    family: AdaptiveModelSelector,
) -> None:
    def chosen() -> str:
        return family.select(max_latency_ms=100, quality_priority=True).name

    assert chosen() == "f32"
    for _ in range(20):
        family.observe("f32", 300, 100)
    assert chosen() == "f16"
    reasons = family.select(quality_priority=True).reasons
    assert reasons["f16"] == "chosen: variant of 'f32', which is slow now"
    for _ in range(400):
        family.observe("f16", 300, 100)
    assert chosen() == "int8"  # the last one; "other" is another space
    for _ in range(85):
        family.observe("int8", 10, 100)
    assert chosen() == "f16"
    for _ in range(70):
        family.observe("f16", 10, 100)
    assert chosen() == "f32"


def test_latency_between_the_marks_changes_nothing(family: AdaptiveModelSelector) -> None:
    for _ in range(500):
        family.observe("f32", 110, 100)
        family.observe("f32", 80, 100)
    assert family.select(quality_priority=True).name == "f32"
    for _ in range(19):
        family.observe("f32", 1000, 100)
    assert family.select(quality_priority=True).name == "f32"


def test_the_dwell_time_is_kept() -> None:
    from ai_model_optimizations.selection.load_governor import LoadGovernor

    now = 0.0
    governor = LoadGovernor(30.0, clock=lambda: now)
    for _ in range(20):
        governor.observe(3.0, 5)
    assert governor.step == 1
    for _ in range(100):
        governor.observe(3.0, 5)
    assert governor.step == 1
    now = 31.0
    governor.observe(3.0, 5)
    assert governor.step == 2


def test_use_observes_what_a_block_took(family: AdaptiveModelSelector) -> None:
    for _ in range(30):
        choice = family.select(max_latency_ms=20, quality_priority=True)
        with family.use(choice):
            time.sleep(0.03)
    assert choice.name != "f32"
