"""The users' first lines as they were written, over the real default model."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from ai_model_optimizations import (
    AdaptiveModelSelector,
    BatchEmbeddingProcessor,
    ClosedError,
    Embedding,
    EmbeddingModel,
)
from ai_model_optimizations.embedding.encode_call import EncodeCall

TEXTS = [
    "How do I reset my password?",
    "",
    "The card was declined at the shop, although there was money in the account.",
    "Şifremi nasıl değiştirebilirim?",
    "word " * 400,
    *(f"question number {i}: {'why ' * (i % 37)}" for i in range(300)),
]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    try:
        return EmbeddingModel.load()
    except FileNotFoundError:
        pytest.skip("the default model is not on this machine")


def test_the_users_first_lines_run_as_written(model: EmbeddingModel) -> None:
    texts = TEXTS

    async def main() -> None:
        processor = BatchEmbeddingProcessor(batch_size=32)
        vectors = await processor.process_batch(texts)
        assert vectors.shape == (len(texts), 384)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, model.encode(texts))
        assert processor.space_id == model.space_id
        assert processor.ready()
        await processor.aclose()

    asyncio.run(main())


def test_bits_equal_offline_encode_whoever_shares_the_batch(model: EmbeddingModel) -> None:
    offline = model.encode(TEXTS)

    async def main() -> None:
        async with BatchEmbeddingProcessor(
            batch_size=7, max_tokens=300, model=model, workers=2, timeout=None
        ) as processor:
            alone = asyncio.gather(*map(processor.embed, TEXTS))
            together = processor.process_batch(TEXTS[::-1], priority="low")
            vectors, reverse = await asyncio.gather(alone, together)
        assert np.array_equal(np.stack(vectors), offline)
        assert np.array_equal(reverse, offline[::-1])

    asyncio.run(main())


def test_a_text_that_may_not_wait_is_computed_here_with_the_same_bits(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = model.encode("at once")
    threads = []
    encode = EmbeddingModel.encode

    def noting(self, texts, *arguments, **options):  # type: ignore[no-untyped-def]
        threads.append(threading.current_thread())
        return encode(self, texts, *arguments, **options)

    monkeypatch.setattr(EmbeddingModel, "encode", noting)
    processor = BatchEmbeddingProcessor(model=model)
    here = processor.embed_here("at once")
    assert np.array_equal(here, offline)
    assert threads == [threading.current_thread()]
    assert here is not None
    here[:] = 0  # the caller's own
    assert np.array_equal(processor.embed_sync("at once"), offline)  # from the cache
    assert len(threads) == 1
    counted = processor.metrics()
    assert (counted["requests"], counted["successes"], counted["batches"]) == (2, 2, 1)
    processor.close()
    with pytest.raises(ClosedError):
        processor.embed_here("late")


def test_a_batch_of_long_texts_is_tokenized_in_pieces(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    tokenize = EncodeCall._tokenize

    def counting(self, texts, *arguments, **options):  # type: ignore[no-untyped-def]
        pieces.append(len(texts))
        return tokenize(self, texts, *arguments, **options)

    long = [f"{i} {'some words that go on ' * 40}" for i in range(32)]
    expected = model.encode(long)
    monkeypatch.setattr(EncodeCall, "_tokenize", counting)
    with BatchEmbeddingProcessor(model=model, timeout=None) as processor:
        assert np.array_equal(processor.process_batch_sync(long), expected)
        assert pieces == [11, 11, 10]
        pieces.clear()
        processor.process_batch_sync([f"short {i}" for i in range(32)])
        assert pieces == [32]


def test_a_text_that_is_no_unicode_fails_its_caller_alone(model: EmbeddingModel) -> None:
    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            good = asyncio.gather(*map(processor.embed, TEXTS[:20]))
            with pytest.raises(ValueError):
                await processor.embed("lone surrogate \ud800")
            assert np.array_equal(np.stack(await good), model.encode(TEXTS[:20]))

    asyncio.run(main())


def test_the_selector_serves_the_real_model(model: EmbeddingModel) -> None:
    with AdaptiveModelSelector(profile_seconds=0.1) as selector:
        selector.register("minilm", "all-MiniLM-L6-v2", quality=0.6)
        vector = selector.embed(TEXTS[0])
        assert isinstance(vector, Embedding)
        assert vector.space_id == model.space_id
        assert np.array_equal(vector.to_array(), model.encode(TEXTS[0]))
        short = selector.select("few words").predicted_ms
        long = selector.select("word " * 200).predicted_ms
        assert short is not None and long is not None and short < long
