"""Long texts: cut early only where nothing changes, counted, and reported as asked."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import tokenizer as bert_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ai_model_optimizations import EmbeddingModel
from ai_model_optimizations.embedding import tokenization
from ai_model_optimizations.embedding.early_cut import cut_pattern
from ai_model_optimizations.embedding.tokenization import TextTokenizer
from ai_model_optimizations.embedding.truncation import Cut, TruncationLog


def unigram() -> Tokenizer:
    pieces = ["<unk>", "▁", *"abcdefgABCÇİıéñΣσжщ日本語한", "ab", "▁a", "▁ab", "▁the", "▁日本"]
    tokenizer = Tokenizer(models.Unigram([(p, -1.0 - len(p) % 3) for p in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ġ", "a"), ("Ġ", "Ġ"), ("Ġa", "b")]
    tokens = [*letters, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def split_twice() -> Tokenizer:
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": bert_tokenizer,
    "Unigram": unigram,
    "BPE": byte_level,
    "sequences": split_twice,
}
_ODD = (
    "ab AB ÇİıIéñ ΣσςОжщ 日本語 한국 ́ ̈ ً ؀ ۝ \u200d"
    " \r\n\t\v\xa0\u2028\u3000 .,'s-(<mask>)🙂👨‍👩‍👧 ﬁ½"
)
_LETTERS = st.sampled_from(sorted(set(_ODD)))
_PIECES = st.sampled_from(["<mask>", " ", "日本", "'s", " the"])
_TEXTS = st.lists(st.one_of(st.text(_LETTERS, max_size=12), _PIECES)).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, make in TOKENIZERS.items():
        make().save(str(folder / f"{name}.json"))
        made[name] = TextTokenizer(folder / f"{name}.json", max_length=8, vocabulary=1000)
    return made


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=_TEXTS)
def test_cut_texts_begin_with_the_tokens_of_the_whole(
    tokenizers: dict[str, TextTokenizer], name: str, text: str
) -> None:
    """At every place that the pattern allows, not only at the one that would be taken."""
    tokenizer = tokenizers[name]
    assert tokenizer._cut_pattern is not None
    whole = tokenizer._encode(text, 0)
    for place in tokenizer._cut_pattern.finditer(text):
        beginning = tokenizer._encode(text[: place.start()], 0)
        if len(beginning.ids) == 8:
            assert beginning.ids == whole.ids


def test_tokenizers_that_look_further_are_never_cut_early() -> None:
    def changed(**parts: object) -> Tokenizer:
        tokenizer = unigram()
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    whole_text = changed(pre_tokenizer=None)
    two_words = unigram()
    two_words.add_tokens(["the file"])
    strange = [
        whole_text,
        two_words,
        changed(normalizer=normalizers.Replace(Regex(r"a b"), "c")),
        changed(normalizer=normalizers.Replace(" ", "▁")),
        changed(pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        changed(pre_tokenizer=pre_tokenizers.Split(Regex("a b"), "isolated")),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
    ]
    assert [cut_pattern(tokenizer) for tokenizer in strange] == [None] * len(strange)
    assert cut_pattern(changed(normalizer=None)) is not None


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["ab Ça, the ", "日本 語한, ", "ж щ. "], ids=["a", "b", "c"])
def test_ten_megabytes_are_tokenized_in_part(
    tokenizers: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    tokenizer, seen = tokenizers[name], []
    encode = tokenizer._library_encode
    monkeypatch.setattr(
        tokenizer, "_library_encode", lambda texts: seen.extend(map(len, texts)) or encode(texts)
    )
    huge = text * (10_000_000 // len(text.encode()))
    cuts = tokenizer.pack([huge]).cuts
    assert 0 < sum(seen) < 100_000
    assert len(cuts) == 1 and not cuts[0].exact and cuts[0].dropped > 0


def test_ideographs_need_no_space(tokenizers: dict[str, TextTokenizer]) -> None:
    cuts = tokenizers["WordPiece"].pack(["日本" * 1_000_000, "日本" * 20]).cuts
    assert [(cut.text, cut.exact) for cut in cuts] == [(0, False), (1, True)]


def test_cut_texts_are_counted_with_the_tokens_dropped(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f32", on_truncate="ignore")
    before = model.truncation
    model.encode(["the file", "the " * 46, "the " * 100, "of " * 60])
    report = model.truncation
    # 46 words and two special tokens are the limit.
    assert (report.texts - before.texts, report.cut - before.cut) == (4, 2)
    assert report.dropped_tokens - before.dropped_tokens == 54 + 14
    assert report.exact and "at least" not in str(report)
    model.encode("the file " * 100_000)
    report = model.truncation
    assert not report.exact and report.dropped_tokens - before.dropped_tokens > 54 + 14
    assert str(report).startswith(f"{report.cut} of {report.texts} texts were cut to 48 tokens, at")
    model.count_tokens(["the " * 100])
    assert model.truncation == report


def test_the_prompt_counts_as_text(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f32", on_truncate="error")
    model.encode("the " * 44)
    with pytest.raises(ValueError, match=r"texts\[0\]: 49 tokens, the model reads 48"):
        model.encode("the " * 44, prompt="read a list ")


def test_error_policy_names_the_text_and_counts_nothing(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f32", on_truncate="error")
    before = model.truncation
    with pytest.raises(ValueError, match=r"texts\[2\]: 102 tokens, the model reads 48"):
        model.encode(["the", "a", "the " * 100], batch_size=2)
    assert model.truncation.texts == before.texts + 2
    with pytest.raises(ValueError, match=r"texts\[0\]: at least \d+ tokens, the model reads 48"):
        model.encode("the file " * 100_000)
    assert model.encode("the " * 100, on_truncate="ignore").shape == (36,)
    with pytest.raises(ValueError, match="on_truncate: expected one of"):
        model.encode("a", on_truncate="shout")
    with pytest.raises(ValueError, match="on_truncate: expected one of"):
        EmbeddingModel.load(small_path, on_truncate="shout")


def test_warnings_come_once_a_minute_and_never_show_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    log = TruncationLog(48, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        for _ in range(5):
            log.record(2, [Cut(0, 3, True)], "warn")
            now[0] += 20.0
        log.record(1, [], "warn")
        log.record(1, [Cut(0, 1, True)], "ignore")
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "1 of 2 texts were cut to 48 tokens, 3 tokens were dropped",
        "4 of 8 texts were cut to 48 tokens, 12 tokens were dropped",
    ]
    assert log.report.cut == 6


def test_a_model_warns_through_the_package_logger(
    small_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = EmbeddingModel.load(small_path, dtype="f32", truncate_dim=5)
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        model.encode(["secret " * 100] * 3)
        model.encode(["secret " * 100])
    assert len(caplog.records) == 1
    assert "3 of 3 texts were cut" in caplog.text and "secret" not in caplog.text


def test_early_cut_gives_the_vector_of_the_whole(
    small_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "read a list of values, 'in' the file. " * 300
    cut = small_model.encode(text)
    monkeypatch.setattr(tokenization, "_GENEROUS_CHARACTERS", 10**9)
    np.testing.assert_array_equal(small_model.encode(text), cut)


def test_a_forked_child_counts_whatever_thread_was_counting(small_path: Path) -> None:
    loaded = EmbeddingModel.load(small_path, dtype="f32")
    converted = loaded.astype("bf16")  # not among those that load gives again
    locks = [model._truncation._lock for model in (loaded, converted)]
    for lock in locks:
        lock.acquire()  # as another thread would
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        for model in (loaded, converted):
            model.encode("one text")
        os._exit(0)
    for lock in locks:
        lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
