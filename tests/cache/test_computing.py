import asyncio
import functools
import threading
import time

import pytest
from helpers import BAD, TableEmbedder, Unreadable, at_angle

from ai_model_optimizations.cache import SmartCache


def texts_embedder():
    return TableEmbedder(
        {
            "How do I pay?": at_angle(1.0),
            "How can I pay?": at_angle(0.95),
            "Where is it?": at_angle(1.0, plane=1),
        }
    )


def test_a_question_is_computed_once_and_its_paraphrase_never():
    asked = []
    cache = SmartCache(embedder=texts_embedder())

    def answer(query):
        asked.append(query)
        return {"answer": query}

    first = cache.get_or_compute("How do I pay?", answer)
    assert cache.get_or_compute("How do I pay?", answer) == first
    assert cache.get_or_compute("How can I pay?", answer) == first
    assert cache.get_or_compute("Where is it?", answer) != first
    assert asked == ["How do I pay?", "Where is it?"]


@pytest.mark.parametrize("threads", [16])
def test_threads_that_ask_at_once_share_one_embedding_and_one_computation(threads):
    embedder = texts_embedder()
    cache = SmartCache(embedder=embedder)
    started = threading.Barrier(threads)
    calls, results = [], []

    def slow(query):
        calls.append(query)
        time.sleep(0.05)
        return [query]

    def ask():
        started.wait()
        results.append(cache.get_or_compute("How do I pay?", slow))

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert calls == ["How do I pay?"] and len(embedder.calls) == 1
    assert results == [["How do I pay?"]] * threads
    stats = cache.stats()
    assert (stats["hits"], stats["exact_hits"], stats["misses"]) == (threads - 1, threads - 1, 1)
    results[0].append("changed")
    assert results[1] == ["How do I pay?"]


def test_who_waits_for_a_value_that_cannot_be_read_computes_it():
    cache = SmartCache(embedder=texts_embedder(), serializer=Unreadable())
    computed, both = [], threading.Barrier(2)

    def answer(query):
        computed.append(query)
        if len(computed) == 1:
            both.wait()
            time.sleep(0.05)  # until the other waits
        return BAD

    leader = threading.Thread(target=cache.get_or_compute, args=("How do I pay?", answer))
    leader.start()
    both.wait()
    assert cache.get_or_compute("How do I pay?", answer) is BAD
    leader.join()

    async def slow(query):
        await asyncio.sleep(0.02)
        return answer(query)

    async def ask_together():
        asked = [cache.aget_or_compute("Where is it?", slow) for _ in range(2)]
        return await asyncio.gather(*asked)

    assert asyncio.run(ask_together()) == [BAD, BAD]
    assert cache.get_or_compute("Where is it?", answer) is BAD  # in place of the dropped one
    assert computed == ["How do I pay?"] * 2 + ["Where is it?"] * 3
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["removed"]) == (0, 5, {"unreadable": 1})


def test_a_failure_goes_to_all_who_wait_and_is_not_stored():
    cache = SmartCache(embedder=texts_embedder())
    entered, release = threading.Event(), threading.Event()
    errors = []

    def fail(query):
        entered.set()
        release.wait(10)
        raise RuntimeError("model is down")

    def ask():
        try:
            cache.get_or_compute("How do I pay?", fail)
        except RuntimeError as error:
            errors.append(str(error))

    workers = [threading.Thread(target=ask) for _ in range(3)]
    workers[0].start()
    entered.wait(10)
    for worker in workers[1:]:
        worker.start()
    time.sleep(0.05)
    release.set()
    for worker in workers:
        worker.join()
    assert errors == ["model is down"] * 3
    assert cache.stats()["misses"] == 3 and cache.stats()["hits"] == 0
    assert cache.get_or_compute("How do I pay?", str.upper) == "HOW DO I PAY?"


def test_a_loop_that_is_closed_over_a_computation_leaves_the_question_to_the_next():
    cache = SmartCache(embedder=texts_embedder())
    loop = asyncio.new_event_loop()
    asking = cache.aget_or_compute("How do I pay?", lambda q: asyncio.sleep(60))
    with pytest.raises(asyncio.TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asking, 0.05))
    loop.close()
    answers = []
    ask = threading.Thread(
        target=lambda: answers.append(cache.get_or_compute("How do I pay?", str.upper)),
        daemon=True,
    )
    ask.start()
    ask.join(10)
    assert answers == ["HOW DO I PAY?"]


def test_a_question_that_asks_itself_does_not_wait_for_itself():
    cache = SmartCache(embedder=texts_embedder())
    inner = cache.get_or_compute(
        "How do I pay?", lambda q: cache.get_or_compute(q, lambda q: "inner") + "!"
    )
    assert inner == "inner!"


def test_contexts_compute_apart():
    cache = SmartCache(embedder=texts_embedder())
    values = [
        cache.get_or_compute("How do I pay?", lambda q, c=c: c, context=c) for c in ("a", "b", "a")
    ]
    assert values == ["a", "b", "a"]


def test_an_embedding_may_be_given():
    cache = SmartCache()
    assert cache.get_or_compute("How do I pay?", str.upper, embedding=at_angle(1.0))
    assert (
        cache.get_or_compute("How to pay?", str.lower, embedding=at_angle(1.0)) == "HOW DO I PAY?"
    )
    with pytest.raises(TypeError, match="embedder"):
        cache.get_or_compute("Another?", str.upper)


def test_a_coroutine_that_asks_its_own_question_computes_it():
    question = "How do I pay?"
    cache = SmartCache(embedder=texts_embedder())

    async def ask_again(question):
        return await cache.aget_or_compute(question, str.upper)

    async def ask_in_a_task(question):
        return await asyncio.create_task(ask_again(question))

    async def ask_in_a_thread(question):
        return await asyncio.to_thread(cache.get_or_compute, question, str.upper)

    async def main():
        for ask in (ask_again, ask_in_a_task, ask_in_a_thread):
            cache.clear()
            answer = await asyncio.wait_for(cache.aget_or_compute(question, ask), 10)
            assert answer == question.upper()
            assert cache.get(question).exact

    asyncio.run(main())


def test_a_decorated_function_takes_its_text_by_name_too():
    cache = SmartCache(embedder=texts_embedder())

    @cache.cached(context=lambda question, language="en": language)
    def answer(question, language="en"):
        return f"{question} {language}"

    @cache.cached
    async def answer_async(question):
        return question.upper()

    assert answer(question="How do I pay?", language="de") == "How do I pay? de"
    assert answer("How do I pay?", "de") == answer(language="de", question="How do I pay?")
    assert asyncio.run(answer_async(question="How do I pay?")) == "HOW DO I PAY?"
    assert cache.stats()["exact_hits"] == 2
    with pytest.raises(TypeError, match="answer takes a text"):
        answer(language="de")


class EndedEmbedder:
    def encode(self, texts):
        return next(iter(()))


@pytest.mark.parametrize("embedding", [None, at_angle(1.0)], ids=["the embedder", "the function"])
def test_a_stop_iteration_ends_who_awaits_the_answer(embedding):
    cache = SmartCache(embedder=EndedEmbedder())

    async def main():
        answer = cache.aget_or_compute("How?", EndedEmbedder().encode, embedding=embedding)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(answer, 5)

    asyncio.run(main())


def test_a_stop_iteration_in_a_thread_ends_the_coroutine_that_waits_for_it():
    cache = SmartCache()
    asked = threading.Event()

    def ended(question):
        asked.set()
        time.sleep(0.2)
        return next(iter(()))

    def ask():
        with pytest.raises(StopIteration):
            cache.get_or_compute("How?", ended, embedding=at_angle(1.0))

    async def main():
        first = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.to_thread(asked.wait)
        second = cache.aget_or_compute("How?", ended, embedding=at_angle(1.0))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(second, 5)
        await first

    asyncio.run(main())


def test_a_coroutine_function_is_sent_to_the_async_form():
    async def answer(question):
        raise AssertionError("it was called")

    cache = SmartCache(embedder=texts_embedder())
    with pytest.raises(TypeError, match="aget_or_compute"):
        cache.get_or_compute("How do I pay?", answer)
    assert len(cache) == 0


def test_a_wrong_threshold_is_an_error_before_anything_is_looked_up_or_embedded():
    embedder = texts_embedder()
    cache = SmartCache(embedder=embedder)
    cache.get_or_compute("How do I pay?", str.upper)
    for question in ("How do I pay?", "Where do I pay?"):
        with pytest.raises(ValueError, match="threshold"):
            cache.get_or_compute(question, str.upper, threshold=85)
        with pytest.raises(ValueError, match="threshold"):
            asyncio.run(cache.aget_or_compute(question, str.upper, threshold=85))
    assert len(embedder.calls) == 1 and cache.stats()["lookups"] == 1


def test_shadow_mode_answers_nothing_and_remembers_what_it_would_have():
    cache = SmartCache(embedder=texts_embedder(), mode="shadow")
    assert cache.get_or_compute("How do I pay?", lambda q: "one") == "one"
    assert cache.get_or_compute("How do I pay?", lambda q: "two") == "two"
    assert cache.get("How can I pay?") is None
    assert cache.get_semantic_similar(at_angle(1.0)) is None
    assert cache.get_many(["How can I pay?"]) == [None]
    stats = cache.stats()
    assert stats["hits"] == 0 and stats["shadow_hits"] == 4 and stats["misses"] == 5
    log = cache.shadow_hits()
    assert [(hit.query, hit.candidate) for hit in log[:2]] == [
        ("How do I pay?", "How do I pay?"),
        ("How can I pay?", "How do I pay?"),
    ]
    assert len(cache) == 1


class Shop:
    def __init__(self, name):
        self.name = name

    def pay(self, text):
        return f"{self.name}: {text}"


def inner_function(name):
    def answer(text):
        return f"{name}: {text}"

    return answer


@pytest.mark.parametrize(
    "make",
    [
        lambda name: lambda text: f"{name}: {text}",
        inner_function,
        lambda name: functools.partial(lambda name, text: f"{name}: {text}", name),
        lambda name: Shop(name).pay,
    ],
    ids=["lambda", "inner function", "partial", "method"],
)
def test_functions_of_one_name_do_not_answer_for_each_other(make):
    cache = SmartCache(embedder=texts_embedder())
    here, there = make("here"), make("there")
    for _ in range(2):
        for name, function in (("here", here), ("there", there)):
            assert cache.cached(function)("Where is it?") == f"{name}: Where is it?"


def test_a_function_that_is_decorated_again_finds_its_answers():
    cache = SmartCache(embedder=texts_embedder())
    shop = Shop("here")
    for _ in range(3):
        assert cache.cached(shop.pay)("Where is it?") == "here: Where is it?"
        assert cache.cached(lambda text: text.upper())("Where is it?") == "WHERE IS IT?"
        assert cache.cached(str.lower)("Where is it?") == "where is it?"
    assert cache.stats()["puts"] == 3
    with pytest.raises(TypeError, match="cached takes a function"):
        cache.cached(5)


def test_a_decorated_function_answers_from_the_cache_and_only_for_itself():
    cache = SmartCache(embedder=texts_embedder())
    asked = []

    @cache.cached
    def pay(text):
        """Pays."""
        asked.append(text)
        return "pay"

    @cache.cached(ttl=None, tags=["other"])
    def other(text):
        return "other"

    assert [pay("How do I pay?"), pay("How can I pay?"), other("How do I pay?")] == [
        "pay",
        "pay",
        "other",
    ]
    assert asked == ["How do I pay?"] and pay.__name__ == "pay" and pay.__doc__ == "Pays."
    name = f"{pay.__module__}.{pay.__qualname__}"
    assert cache.get("How do I pay?", context=(name, "")).source == name
    assert cache.invalidate(tag=name) == 1 and cache.invalidate(tag="other") == 1


def test_other_arguments_of_a_decorated_function_need_a_context():
    cache = SmartCache(embedder=texts_embedder())

    @cache.cached
    def plain(text, language="en"):
        return language

    @cache.cached(context=lambda text, language="en": language)
    def by_language(text, language="en"):
        return language

    assert plain("How do I pay?") == "en"
    with pytest.raises(TypeError, match="context"):
        plain("How do I pay?", "tr")
    languages = [by_language("How do I pay?", language) for language in ("en", "tr", "en")]
    assert languages == ["en", "tr", "en"]


# -- event loops ------------------------------------------------------------------------------


def test_the_async_forms_answer_as_the_others():
    async def main():
        cache = SmartCache(embedder=texts_embedder())
        await cache.aput("How do I pay?", "card", context="c", tags=["t"])
        await cache.aput_many(["Where is it?"], ["here"], context="c")
        assert (await cache.aget("How can I pay?", context="c")).value == "card"
        assert (await cache.aget_semantic_similar(at_angle(0.9), 0.5, "c")).value == "card"
        # Pain 5: the async form read the threshold on another scale.
        assert await cache.aget_semantic_similar(at_angle(0.9), 0.95, "c") is None
        found = await cache.aget_many(["Where is it?", "How can I pay?"], context="c")
        assert [hit.value for hit in found] == ["here", "card"]

    asyncio.run(main())


def test_tasks_that_ask_at_once_share_one_computation():
    calls = []

    async def slow(query):
        calls.append(query)
        await asyncio.sleep(0.05)
        return {"n": len(calls)}

    async def main():
        cache = SmartCache(embedder=texts_embedder())
        return await asyncio.gather(
            *(cache.aget_or_compute("How do I pay?", slow) for _ in range(50))
        )

    assert asyncio.run(main()) == [{"n": 1}] * 50


def test_a_cancelled_caller_does_not_cancel_the_others():
    """Pain 15: a call on the path that hangs is given up by its caller alone."""

    async def main():
        cache = SmartCache(embedder=texts_embedder())
        release = asyncio.Event()

        async def slow(query):
            await release.wait()
            return "done"

        leader = asyncio.create_task(cache.aget_or_compute("How do I pay?", slow))
        await asyncio.sleep(0.05)
        follower = asyncio.create_task(cache.aget_or_compute("How do I pay?", slow))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(leader, 0.05)
        release.set()
        assert await follower == "done"
        assert cache.get("How do I pay?").value == "done"

    asyncio.run(main())


def test_event_loops_and_threads_share_one_computation():
    cache = SmartCache(embedder=texts_embedder())
    calls, results = [], []
    entered = threading.Event()

    async def slow(query):
        calls.append(query)
        entered.set()
        await asyncio.sleep(0.1)
        return "shared"

    def loop():
        results.append(asyncio.run(cache.aget_or_compute("How do I pay?", slow)))

    def plain():
        results.append(cache.get_or_compute("How do I pay?", lambda q: calls.append(q) or "own"))

    threads = [threading.Thread(target=loop)]
    threads[0].start()
    entered.wait(10)
    threads += [threading.Thread(target=target) for target in (loop, plain, plain)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["shared"] * 4 and calls == ["How do I pay?"]


def test_a_loop_that_ends_leaves_its_question_to_others():
    cache = SmartCache(embedder=texts_embedder())
    entered = threading.Event()

    async def for_ever(query):
        entered.set()
        await asyncio.sleep(3600)

    async def give_up():
        task = asyncio.create_task(cache.aget_or_compute("How do I pay?", for_ever))
        await asyncio.to_thread(entered.wait, 10)
        await asyncio.sleep(0.1)
        assert not task.done()

    ender = threading.Thread(target=lambda: asyncio.run(give_up()))
    ender.start()
    entered.wait(10)
    assert cache.get_or_compute("How do I pay?", lambda q: "mine") == "mine"
    ender.join()


def test_an_exception_reaches_every_task():
    async def main():
        cache = SmartCache(embedder=texts_embedder())

        async def fail(query):
            await asyncio.sleep(0.01)
            raise KeyError("down")

        outcomes = await asyncio.gather(
            *(cache.aget_or_compute("How do I pay?", fail) for _ in range(3)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [KeyError] * 3
        assert await cache.aget_or_compute("How do I pay?", lambda q: "plain function") == (
            "plain function"
        )

    asyncio.run(main())


def test_a_decorated_coroutine_function_answers_from_the_cache():
    cache = SmartCache(embedder=texts_embedder())
    calls = []

    @cache.cached
    async def answer(text):
        calls.append(text)
        return "a"

    async def main():
        return [await answer("How do I pay?"), await answer("How can I pay?")]

    assert asyncio.run(main()) == ["a", "a"] and len(calls) == 1
