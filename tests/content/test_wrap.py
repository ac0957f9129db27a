"""Caches before managers in the older style: the same answers, sooner, and never another's."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from typing import Any

import pytest
from older_managers import (
    ROWS,
    OlderManager,
    OlderManagerWithStats,
    TopicEmbedder,
    WithoutAnything,
    older,
    paraphrases,
)

from ai_model_optimizations import Agreement, OptimizedContentManager, OptimizedContentMixin
from ai_model_optimizations.testing import FakeEmbedder

ODD = ["", "   ", "x" * 20_000, "what about a refund", "nothing known", "ışık İ", "{user_input}"]


def wrap(manager: Any, embedder: Any, **options: Any) -> OptimizedContentManager:
    return OptimizedContentManager.wrap(manager, embedder=embedder, **options)


def counted(manager: OptimizedContentManager) -> dict[str, Any]:
    statistics: dict[str, Any] = manager.get_optimization_statistics()["optimization_stats"]
    return statistics


@pytest.mark.parametrize("how", ["toggled", "AIMO_DISABLE"])
def test_with_the_caches_off_answers_are_the_wrapped_managers(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "AIMO_DISABLE":
        monkeypatch.setenv("AIMO_DISABLE", "cache")
    plain, embedder = older()
    manager = wrap(plain, embedder)
    if how == "toggled":
        manager.toggle_optimizations(False)
    asked: list[Any] = [*ODD, *ODD, 7, None]
    expected = [plain.find_response(message) for message in asked]
    plain.calls.clear()
    assert [manager.find_response(message) for message in asked] == expected

    async def in_a_loop() -> None:
        assert [manager.find_response(message) for message in asked] == expected
        for message, answer in zip(asked, expected, strict=True):
            assert await manager.find_response_optimized(message) == answer
        assert await manager.process_batch_queries(asked) == expected

    asyncio.run(in_a_loop())
    assert len(plain.calls) == 4 * len(asked)
    assert embedder.batches == []


def test_with_the_caches_on_the_first_answers_are_the_same_too() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    assert [manager.find_response(m) for m in ODD] == [plain.find_response(m) for m in ODD]


def test_the_same_text_and_similar_texts_are_answered_once_and_counted_once() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second, third = paraphrases("refund", 3)

    async def talk() -> None:
        for message in (first, first, second, third, second):
            assert await manager.find_response_optimized(message) == ROWS["refund"]

    asyncio.run(talk())
    assert plain.calls == [first]
    found = counted(manager)
    assert found["optimized_queries"] == 5 and found["cache_hits"] == 4
    # A text that was answered by meaning is an exact one from then on.
    assert found["exact_hits"] == 2 and found["semantic_hits"] == 2
    statistics = manager.get_optimization_statistics()
    assert statistics["ai_optimization_stats"]["semantic_cache_stats"]["hit_rate"] == 0.8
    assert statistics["base_stats"] == {"total_queries": 1}


def test_a_context_is_a_wall_for_the_same_text_and_for_similar_ones() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second = paraphrases("refund", 2)

    async def talk() -> None:
        for user in (1, 2):
            for message in (first, second):
                await manager.find_response_optimized(message, context=("user", user))

    asyncio.run(talk())
    assert plain.calls == [first, first]


def test_answers_that_repeat_the_users_words_reach_nobody_else() -> None:
    embedder = TopicEmbedder("name")

    class Greeter:
        def find_response(self, user_message: str) -> tuple[str, str]:
            return f"Welcome! You said: {user_message}", "greeting"

    manager = wrap(Greeter(), embedder)
    for message in ("my name is anna", "my name is berta"):
        assert manager.find_response(message) == (f"Welcome! You said: {message}", "greeting")
    plain, embedder = older()
    manager = wrap(plain, embedder)
    unknown = paraphrases("weather", 3)
    for message in unknown:
        assert manager.find_response(message) == (f"Sorry, I do not know: {message}", "default")
    assert len(manager.semantic_cache) == 0


def test_a_predicate_may_say_more() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder, shareable=lambda message, response, source: False)
    for message in paraphrases("refund", 3):
        manager.find_response(message)
    assert len(plain.calls) == 3 and len(manager.semantic_cache) == 0


@pytest.mark.parametrize("message", ["Where is my card?", b"card", ["card"], 5, None])
def test_what_cannot_be_judged_is_answered_and_kept_for_its_own_text(message: Any) -> None:
    class Manager:
        def find_response(self, user_message: Any) -> tuple[str, str]:
            return "Within five days.", "keyword"

    def raising(message: str, response: str, source: str) -> bool:
        raise LookupError("the predicate fails")

    manager = wrap(Manager(), TopicEmbedder("card"), shareable=raising)
    for _ in range(2):
        assert manager.find_response(message) == ("Within five days.", "keyword")
    assert len(manager.semantic_cache) == 0
    text = isinstance(message, str)
    assert counted(manager)["fallbacks"] == ({"LookupError": 1} if text else {"not a string": 2})
    assert counted(manager)["exact_hits"] == text


def test_quality_priority_takes_no_similar_messages_answer() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second = paraphrases("refund", 2)

    async def talk() -> None:
        for message in (first, second, second):
            await manager.find_response_optimized(message, quality_priority=True)

    asyncio.run(talk())
    assert plain.calls == [first, second]


def test_everything_else_is_the_wrapped_managers() -> None:
    plain, embedder = older(OlderManagerWithStats)
    manager = wrap(plain, embedder)
    assert manager.stats is plain.stats and manager.model_manager is embedder
    assert manager.static_responses is plain.static_responses
    manager.model_manager = embedder
    manager.note = "kept"
    assert plain.note == "kept"  # type: ignore[attr-defined]
    stats = manager.get_stats()
    assert stats["kind"] == "older" and "optimized_queries" in stats["optimization_stats"]
    assert manager.wrapped is plain and OptimizedContentManager.wrap(manager) is manager
    assert "calls" in dir(manager)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = manager.nonsense
    bare = wrap(WithoutAnything(), embedder)
    assert bare.find_response("abc") == ("cba", "reversed")
    assert set(bare.get_stats()) == {"optimization_stats"}


@pytest.mark.parametrize("method", ["reload_content", "clear_cache"])
def test_after_a_reload_no_answer_of_before_is_given(method: str) -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second = paraphrases("refund", 2)
    manager.find_response(first)
    plain.static_responses["responses"] = {"refund": ("Refunds take a day.", "semantic")}
    getattr(manager, method)()
    assert manager.find_response(second) == ("Refunds take a day.", "semantic")
    assert manager.find_response(first) == ("Refunds take a day.", "semantic")


def test_content_that_was_replaced_behind_our_back_is_noticed() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    (message,) = paraphrases("refund", 1)
    manager.find_response(message)
    plain.static_responses = {"responses": {"refund": ("New.", "semantic")}}
    assert manager.find_response(message) == ("New.", "semantic")


def test_an_answer_that_was_computed_before_a_reload_is_not_kept_after_it() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    (message,) = paraphrases("refund", 1)
    original = plain.find_response

    def reloaded_meanwhile(user_message: str) -> tuple[str, str]:
        answer = original(user_message)
        manager.reload_content()
        return answer

    plain.find_response = reloaded_meanwhile  # type: ignore[method-assign]
    manager = wrap(plain, embedder)
    manager.find_response(message)
    assert len(manager.semantic_cache) == 0
    manager.find_response(message)
    assert plain.calls == [message, message]


def test_answers_of_another_form_are_given_on_and_not_kept() -> None:
    class Odd:
        calls = 0

        def find_response(self, user_message: str) -> Any:
            self.calls += 1
            return None if user_message == "none" else [user_message, self.calls, 3]

    odd = Odd()
    manager = wrap(odd, FakeEmbedder())
    assert manager.find_response("none") is None
    assert manager.find_response("list") == ["list", 2, 3]
    assert manager.find_response("list") == ["list", 3, 3]
    assert asyncio.run(manager.process_batch_queries(["none", "x"])) == [None, ["x", 5, 3]]


def test_what_the_wrapped_manager_raises_is_the_callers() -> None:
    class Failing:
        def find_response(self, user_message: str) -> tuple[str, str]:
            raise LookupError("no such thing")

    manager = wrap(Failing(), FakeEmbedder())
    with pytest.raises(LookupError, match="no such thing"):
        manager.find_response("x")

    async def together() -> list[Any]:
        calls = [manager.find_response_optimized("y") for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(e) for e in asyncio.run(together())] == [LookupError] * 3
    assert counted(manager)["plain_errors"] == 4


@pytest.mark.parametrize("inner", ["one", "many", "plain"])
def test_a_manager_may_ask_its_own_wrapper(inner: str) -> None:
    class Recursive:
        def find_response(self, user_message: str) -> tuple[str, str]:
            if user_message == "inner":
                return "answered", "keyword"
            return ask[inner]("inner")

    def ask_for_one(message: str) -> Any:
        return asyncio.run(manager.find_response_optimized(message))

    def ask_for_many(message: str) -> Any:
        return asyncio.run(manager.process_batch_queries([message]))[0]

    manager = wrap(Recursive(), FakeEmbedder(), timeout=5)
    ask = {"one": ask_for_one, "many": ask_for_many, "plain": manager.find_response}
    for outer in ask.values():
        manager.clear_optimized_caches()
        assert outer("outer") == ("answered", "keyword")


def test_a_stop_iteration_of_the_wrapped_manager_ends_who_awaits_it() -> None:
    class Ended:
        def find_response(self, user_message: str) -> tuple[str, str]:
            return next(iter(()))

    manager = wrap(Ended(), FakeEmbedder())

    async def ask() -> None:
        for call in (manager.find_response_optimized("x"), manager.process_batch_queries(["y"])):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await asyncio.wait_for(call, 5)

    asyncio.run(ask())


@pytest.mark.parametrize(
    "embedder",
    [
        FakeEmbedder(fail_on=paraphrases("refund", 4)),
        FakeEmbedder(nan_on=paraphrases("refund", 4)),
        "no-such-model-anywhere",
    ],
    ids=["raises", "NaN", "does not load"],
)
def test_a_failing_optimization_gives_the_plain_answer_and_is_logged_once(
    embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _ = older()
    manager = wrap(plain, embedder)
    messages = paraphrases("refund", 4)
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        for message in messages[:2]:
            assert manager.find_response(message) == ROWS["refund"]
        assert asyncio.run(manager.process_batch_queries(messages[2:])) == [ROWS["refund"]] * 2
    fallbacks = counted(manager)["fallbacks"]
    assert sum(fallbacks.values()) == 4
    ours = [record for record in caplog.records if "an optimization failed" in record.message]
    assert len(ours) == len(fallbacks) and all(record.exc_info for record in ours)


def test_a_model_whose_dimension_changes_is_a_fallback() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second = paraphrases("refund", 2)
    assert manager.find_response(first) == ROWS["refund"]
    embedder.dimension = 8
    embedder.vector = FakeEmbedder(8).vector  # type: ignore[method-assign]
    del plain.model_manager
    plain.find_response = lambda message: ROWS["refund"]  # type: ignore[method-assign]
    assert manager.wrapped is plain
    assert counted(manager)["fallback_count"] == 0
    with pytest.raises(AttributeError):
        manager.find_response(second)  # the bound method of before: its manager lost its model
    assert counted(manager)["fallback_count"] == 1


def test_an_embedder_that_hangs_delays_a_plain_call_in_a_loop_once_and_no_more() -> None:
    plain, _ = older()
    hanging = TopicEmbedder(*ROWS)
    hanging.gate.clear()
    manager = wrap(plain, hanging, loop_budget=0.1, timeout=0.3)

    async def talk() -> None:
        for message in paraphrases("refund", 6):
            assert manager.find_response(message) == ROWS["refund"]
        assert await manager.find_response_optimized("an open question") == ROWS["open"]

    began = time.monotonic()
    asyncio.run(talk())
    took = time.monotonic() - began
    hanging.gate.set()
    assert counted(manager)["fallbacks"] == {"timeout": 7}
    assert took < 30  # six budgets and one timeout at most: nothing waits for ever


def test_a_wrapped_manager_that_hangs_ends_in_a_timeout() -> None:
    gate = threading.Event()

    class Hanging:
        def find_response(self, user_message: str) -> tuple[str, str]:
            gate.wait(60)
            return "late", "semantic"

    manager = wrap(Hanging(), FakeEmbedder(), timeout=0.2)
    try:
        with pytest.raises(TimeoutError, match="no answer within"):
            asyncio.run(manager.find_response_optimized("x"))
    finally:
        gate.set()


def test_coroutines_do_not_block_the_loop_while_the_wrapped_manager_computes() -> None:
    gate = threading.Event()

    class Slow:
        def find_response(self, user_message: str) -> tuple[str, str]:
            assert gate.wait(60)
            return "slow", "semantic"

    manager = wrap(Slow(), FakeEmbedder())

    async def talk() -> tuple[str, str]:
        task = asyncio.create_task(manager.find_response_optimized("x"))
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.set()  # only reached because the loop runs
        return await task

    assert asyncio.run(talk()) == ("slow", "semantic")


def test_many_who_ask_the_same_at_once_are_answered_by_one_computation() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    (message,) = paraphrases("refund", 1)

    async def talk() -> None:
        answers = [manager.find_response_optimized(message) for _ in range(50)]
        assert await asyncio.gather(*answers) == [ROWS["refund"]] * 50

    asyncio.run(talk())
    assert plain.calls == [message]
    assert counted(manager)["optimized_queries"] == 50 and counted(manager)["cache_hits"] == 49


def test_a_client_that_leaves_does_not_take_the_answer_from_others() -> None:
    plain, embedder = older()
    embedder.gate.clear()
    manager = wrap(plain, embedder)
    (message,) = paraphrases("refund", 1)

    async def talk() -> None:
        first = asyncio.create_task(manager.find_response_optimized(message))
        second = asyncio.create_task(manager.find_response_optimized(message))
        await asyncio.sleep(0.05)
        first.cancel()
        embedder.gate.set()
        assert await second == ROWS["refund"]
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(talk())


def test_a_loop_that_closes_with_a_question_open_leaves_the_next_loop_unharmed() -> None:
    plain, embedder = older()
    embedder.gate.clear()
    manager = wrap(plain, embedder)
    (message,) = paraphrases("refund", 1)

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(manager.find_response_optimized(message), 0.05)

    asyncio.run(leave())
    embedder.gate.set()
    assert asyncio.run(manager.find_response_optimized(message)) == ROWS["refund"]


def test_threads_and_loops_may_ask_at_once() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    messages = [*paraphrases("refund", 20), *paraphrases("open", 20)]
    wrong: list[Any] = []

    def ask() -> None:
        for message in messages:
            expected = ROWS["refund" if "refund" in message else "open"]
            for given in (
                manager.find_response(message),
                asyncio.run(manager.find_response_optimized(message)),
            ):
                if given != expected:
                    wrong.append((message, given))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and counted(manager)["optimized_queries"] == 4 * 2 * 40
    assert counted(manager)["fallback_count"] == 0


def test_a_batch_is_one_call_of_the_model_and_keeps_the_order() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    messages = [
        message
        for pair in zip(paraphrases("refund", 8), paraphrases("open", 8), strict=True)
        for message in pair
    ]
    answers = asyncio.run(manager.process_batch_queries([*messages, *messages[:3]]))
    assert answers == [ROWS["refund"], ROWS["open"]] * 8 + [
        ROWS["refund"], ROWS["open"], ROWS["refund"]
    ]  # fmt: skip
    assert [len(batch) for batch in embedder.batches] == [16]
    assert len(plain.calls) == 2
    assert counted(manager)["optimized_queries"] == 19 and counted(manager)["batch_queries"] == 1
    assert asyncio.run(manager.process_batch_queries([])) == []
    with pytest.raises(TypeError, match="messages: expected a sequence"):
        asyncio.run(manager.process_batch_queries("one text"))


def test_wraps_of_one_object_and_of_one_name_share_answers_and_others_do_not() -> None:
    plain, embedder = older()
    (message,) = paraphrases("refund", 1)
    wrap(plain, embedder).find_response(message)  # gone at once, and its caches with it
    first, second = wrap(plain, embedder), wrap(plain, embedder)
    first.find_response(message)
    calls = len(plain.calls)
    second.find_response(message)
    assert len(plain.calls) == calls
    other = OlderManager(embedder, ROWS)
    wrap(other, embedder).find_response(message)
    assert other.calls == [message]
    named = [wrap(OlderManager(embedder, ROWS), embedder, share="bank") for _ in range(2)]
    for manager in named:
        manager.find_response(message)
    assert named[1].wrapped.calls == []


def test_shadow_mode_answers_nothing_and_remembers_what_it_would_have_answered() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder, mode="shadow")
    messages = paraphrases("refund", 3)
    for message in messages:
        manager.find_response(message)
    assert plain.calls == list(messages) and len(manager.semantic_cache.shadow_hits()) == 2


def test_a_subclass_gets_the_caches_by_the_mixin() -> None:
    embedder = TopicEmbedder(*ROWS)

    class Fast(OptimizedContentMixin, OlderManagerWithStats):
        optimization_options = {"embedder": embedder, "similarity_threshold": 0.8}  # noqa: RUF012

    manager = Fast(embedder, ROWS)
    first, second = paraphrases("refund", 2)
    assert manager.find_response(first) == ROWS["refund"]
    assert asyncio.run(manager.find_response_optimized(second)) == ROWS["refund"]
    assert manager.calls == [first]
    assert manager.get_stats()["kind"] == "older"
    assert manager.get_optimization_statistics()["base_stats"]["total_queries"] == 1
    assert manager.reload_content() == "reloaded" and len(manager.semantic_cache) == 0
    manager.clear_cache()
    manager.toggle_optimizations(False)
    manager.find_response(first)
    assert manager.calls == [first, "cleared", first]


@pytest.mark.parametrize("method", ["reload_content", "clear_cache"])
def test_a_subclass_of_a_manager_without_a_method_empties_its_caches_by_it(method: str) -> None:
    class Plain:
        def find_response(self, user_message: str) -> tuple[str, str]:
            return "Within five days.", "keyword"

    class Fast(OptimizedContentMixin, Plain):
        optimization_options = {"embedder": TopicEmbedder("card")}  # noqa: RUF012

    manager = Fast()
    manager.find_response("my card")
    assert len(manager.semantic_cache) == 1
    assert getattr(manager, method)() is None
    assert len(manager.semantic_cache) == 0


def test_what_is_dropped_is_freed() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    manager.find_response("an open question")
    references = [weakref.ref(manager), weakref.ref(plain)]
    del manager, plain
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_what_cannot_be_wrapped_says_so() -> None:
    with pytest.raises(TypeError, match="shareable"):
        OptimizedContentManager.wrap(OlderManager(FakeEmbedder(), {}), shareable=5)  # type: ignore
    class Async:
        async def find_response(self, user_message: str) -> tuple[str, str]:
            return "", ""

    for wrong in (object(), None, Async()):
        with pytest.raises(TypeError, match="find_response"):
            OptimizedContentManager.wrap(wrong)
    with pytest.raises(TypeError, match="unexpected keyword"):
        OptimizedContentManager.wrap(WithoutAnything(), treshold=1)
    with pytest.raises(ValueError, match="timeout: expected seconds above 0, got 0"):
        OptimizedContentManager.wrap(WithoutAnything(), timeout=0)
    manager = OptimizedContentManager.wrap(WithoutAnything(), embedder=FakeEmbedder())
    with pytest.raises(TypeError, match="context"):
        manager.find_response("x", context=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="enabled"):
        manager.toggle_optimizations(1)  # type: ignore[arg-type]


def test_an_invalidated_entry_answers_no_exact_text_either() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder)
    first, second, third = paraphrases("refund", 3)
    for message in (first, second, third):
        assert manager.find_response(message) == ROWS["refund"]
    assert plain.calls == [first]
    (entry,) = manager.semantic_cache
    assert manager.semantic_cache.invalidate(entry=entry.entry) == 1
    assert len(manager._engine.caches.exact) == 0
    manager.find_response(second)
    assert plain.calls == [first, second]


def test_what_a_text_got_by_meaning_is_found_anew_when_the_cache_has_grown() -> None:
    plain, embedder = older()
    manager = wrap(plain, embedder, similarity_threshold=0.5, guard=None)
    refund, other = paraphrases("refund", 2)
    manager.find_response(refund)
    manager.find_response(other)
    lookups = manager.semantic_cache.stats()["lookups"]
    manager.find_response(other)
    assert manager.semantic_cache.stats()["lookups"] == lookups  # remembered
    manager.find_response("open or what")
    manager.find_response(other)
    assert manager.semantic_cache.stats()["lookups"] == lookups + 2  # found anew
    assert plain.calls == [refund, "open or what"]
    manager.find_response(refund)  # its own answer needs no neighbours
    assert manager.semantic_cache.stats()["lookups"] == lookups + 2


def test_neighbours_with_another_answer_keep_a_similar_message_from_its_answer() -> None:
    embedder = TopicEmbedder("refund")
    answers = {"refund a": "A", "refund b": "B", "refund c": "C"}

    class Fickle:
        def find_response(self, user_message: str) -> tuple[str, str]:
            return answers[user_message], "semantic"

    for agreement in (None, Agreement()):
        manager = wrap(Fickle(), embedder, agreement=agreement)
        for message in ("refund a", "refund b"):
            asyncio.run(manager.find_response_optimized(message, quality_priority=True))
        response, _ = manager.find_response("refund c")
        assert response in ("C" if agreement else "AB")
