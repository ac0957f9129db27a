"""Fork, interpreter exit and memory: what only shows in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import asyncio, os, sys, threading, time
import numpy as np
from ai_model_optimizations import BatchEmbeddingProcessor
from ai_model_optimizations.testing import FakeEmbedder
model = FakeEmbedder(delay=0.01)
"""


def script(body: str) -> str:
    """Run a script to its end and return what it printed; anything on stderr is a failure."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_importing_the_package_starts_no_thread_and_imports_no_torch() -> None:
    assert script("""
        assert threading.active_count() == 1
        assert "torch" not in sys.modules
        print("light")
    """) == "light\n"  # fmt: skip


def test_a_forked_child_starts_anew_while_the_parent_goes_on() -> None:
    assert script("""
        processor = BatchEmbeddingProcessor(model=model, batch_size=4)
        answers = []
        texts = [f"{i}" for i in range(200)]
        embed_all = processor.process_batch_sync
        caller = threading.Thread(target=lambda: answers.append(embed_all(texts)))
        caller.start()
        time.sleep(0.1)   # work is running and waiting
        child = os.fork()
        if child == 0:
            assert processor.metrics()["queue_texts"] == 0
            assert np.array_equal(processor.embed_sync("child"), model.vector("child"))
            async def main():
                assert np.array_equal(await processor.embed("again"), model.vector("again"))
            asyncio.run(main())
            processor.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        caller.join()
        assert np.array_equal(answers[0], np.stack([model.vector(text) for text in texts]))
        processor.close()
        print("both")
    """) == "both\n"  # fmt: skip


def test_a_child_forked_while_the_model_is_called_directly_does_not_wait_for_that_call() -> None:
    assert script("""
        os.environ["AIMO_DISABLE"] = "batch"
        model = FakeEmbedder(delay=0.5)
        processor = BatchEmbeddingProcessor(model=model)
        caller = threading.Thread(target=processor.embed_sync, args=("parent",))
        caller.start()
        while not model.batches:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            assert np.array_equal(processor.embed_sync("child"), model.vector("child"))
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        caller.join()
        print("both")
    """) == "both\n"  # fmt: skip


def test_the_interpreter_exits_while_a_model_hangs_and_callers_wait() -> None:
    assert script("""
        model.gate.clear()
        processor = BatchEmbeddingProcessor(model=model)
        def wait():
            try:
                processor.embed_sync("never")
            except Exception as error:
                print(type(error).__name__)
        threading.Thread(target=wait, daemon=True).start()
        while not model.batches:
            time.sleep(0.001)
        print("leaving", flush=True)
    """).startswith("leaving\n")  # fmt: skip


def test_the_interpreter_exits_with_an_open_processor() -> None:
    assert script("""
        processor = BatchEmbeddingProcessor(model=model)
        processor.embed_sync("a")
        print("open")
    """) == "open\n"  # fmt: skip


def test_a_plain_thread_that_outlives_the_main_thread_is_still_served() -> None:
    assert script("""
        processor = BatchEmbeddingProcessor(model=model)
        def late():
            time.sleep(0.2)
            print(processor.embed_sync("late").shape)
        threading.Thread(target=late).start()
    """) == "(8,)\n"  # fmt: skip


def test_a_large_call_needs_no_more_memory_than_its_vectors() -> None:
    assert script("""
        import psutil
        class Fast:
            dimension = 64
            def encode(self, texts):
                return np.ones((len(texts), 64), np.float32)
        processor = BatchEmbeddingProcessor(batch_size=64, model=Fast(), cache_mb=1)
        texts = [f"{i:07}" for i in range(300_000)]
        processor.process_batch_sync(texts[:5000])
        process = psutil.Process()
        before = process.memory_info().rss
        vectors = processor.process_batch_sync(texts)
        grown = process.memory_info().rss - before
        assert vectors.shape == (300_000, 64)
        assert grown < vectors.nbytes + 16 * 2**20, (grown, vectors.nbytes)
        processor.close()
        print("bounded")
    """) == "bounded\n"  # fmt: skip
