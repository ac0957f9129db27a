"""Many texts at once: the ids of each alone, errors by index, our threads and not the library's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder
from model_folders import tokenizer as bert_tokenizer
from tokenizers import Tokenizer

from ai_model_optimizations import EmbeddingModel
from ai_model_optimizations.embedding import token_feed
from ai_model_optimizations.embedding.token_feed import TokenFeed
from ai_model_optimizations.embedding.tokenization import PackedTokens, TextTokenizer

TEXTS = ["a", "", "bab " * 9, "ab cab", "Ça, 日本", "b a " * 400, "\x00\t a[MASK]b"] * 30


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    bert_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path / "tokenizer.json", max_length=8, vocabulary=1000)


def test_many_texts_have_the_tokens_of_each_alone(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(8)
    library.no_padding()
    packed = tokenizer.pack(TEXTS, prompt="ab ")
    rows = [row.tolist() for row in np.split(packed.token_ids, packed.offsets[1:-1])]
    assert rows == [library.encode(f"ab {text}").ids for text in TEXTS]
    cut = [i for i, text in enumerate(TEXTS) if library.encode(f"ab {text}").overflowing]
    assert [found.text for found in packed.cuts] == cut
    assert (packed.token_ids.dtype, packed.offsets.dtype) == (np.int32, np.int64)


def test_no_text_has_no_tokens(tokenizer: TextTokenizer) -> None:
    packed = tokenizer.pack([])
    assert packed.token_ids.shape == (0,) and packed.offsets.tolist() == [0]


def test_the_text_that_fails_is_named(tokenizer: TextTokenizer) -> None:
    for index in (3, 100):
        texts: list[object] = list(TEXTS)
        texts[index] = "a\udc00"
        with pytest.raises(ValueError, match=rf"texts\[{index + 7}\]: lone surrogate .* at posi"):
            tokenizer.pack(texts, first=7)  # type: ignore[arg-type]
        for other in (5, None, ("a", "b"), b"a"):
            texts[index] = other
            with pytest.raises(TypeError, match=rf"texts\[{index}\]: expected str"):
                tokenizer.pack(texts)  # type: ignore[arg-type]


def test_other_threads_run_while_texts_are_tokenized(tokenizer: TextTokenizer) -> None:
    long = ["ab" * 50_000] * 20
    thread = threading.Thread(target=tokenizer.pack, args=(long,))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
    assert turns > 1000


@pytest.mark.parametrize(("before", "after"), [(None, "false"), ("true", "true")])
def test_the_library_starts_no_threads_unless_asked(
    tokenizer: TextTokenizer, tmp_path: Path, before: str | None, after: str
) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from ai_model_optimizations.embedding.tokenization import TextTokenizer\n"
        "TextTokenizer(pathlib.Path(sys.argv[1]), max_length=8, vocabulary=1000).pack(['a'] * 99)\n"
        "print(os.environ['TOKENIZERS_PARALLELISM'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if before is not None:
        environment["TOKENIZERS_PARALLELISM"] = before
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == after


def test_a_forked_child_does_not_wait_for_threads_that_it_lacks(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would, for ever, where the library's threads are switched on and were used before."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    expected = tokenizer.pack(TEXTS).token_ids
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(tokenizer.pack(TEXTS).token_ids, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def piece(tokens: int) -> PackedTokens:
    return PackedTokens(np.zeros(tokens, np.int32), np.array([0, tokens]))


def test_a_feed_gives_batches_of_growing_size_in_order_and_then_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_feed, "_FIRST_TOKENS", 2)
    monkeypatch.setattr(token_feed, "_MOST_TOKENS", 4)
    feed = TokenFeed(9)
    batches = [feed.add(start, piece(1)) for start in (0, 2, 1, 3, 6, 5, 4, 7, 8)]
    sizes = [batch and (batch[0], len(batch[1].token_ids)) for batch in batches]
    assert sizes == [None, None, (0, 3), None, None, None, (3, 4), None, (7, 2)]


def test_texts_that_are_computed_together_have_the_vectors_of_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, for want of a device: what a device gets, in any order of the threads."""
    model = EmbeddingModel.load(BertFolder().write(tmp_path))
    expected = model.encode(TEXTS, on_truncate="ignore")
    monkeypatch.setattr(token_feed, "_FIRST_TOKENS", 100)
    feed, got = TokenFeed(len(TEXTS)), np.zeros_like(expected)
    starts = [start ^ 4 for start in range(0, len(TEXTS) // 8 * 8, 4)]
    starts += range(len(starts) * 4, len(TEXTS), 4)
    batches = [feed.add(i, model._tokenizer.pack(TEXTS[i : i + 4])) for i in starts]
    for first, tokens in filter(None, batches):
        rows = model._encoder.encode(tokens.token_ids, tokens.offsets, True, 0, model.dimension)
        got[first : first + len(rows)] = rows
    np.testing.assert_array_equal(got, expected)
    assert 1 < sum(batch is not None for batch in batches) < len(batches)
