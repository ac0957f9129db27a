from __future__ import annotations

from pathlib import Path

import pytest

from ai_model_optimizations import BatchEmbeddingProcessor, _core
from ai_model_optimizations.embedding.settings import Settings, read_settings
from ai_model_optimizations.testing import FakeEmbedder

COMPLETE = Settings(
    model='a "quoted" nâme\\path',
    dtype="f16",
    batching={"batch_size": 64, "max_tokens": 4096, "max_wait_time": 0.0005, "cache_mb": 1},
    threads=3,
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "aimo.toml"
    file.write_text(COMPLETE.to_toml("two\nlines"), encoding="utf-8")
    assert file.read_text(encoding="utf-8").startswith("# two\n# lines\n\n[model]\n")
    assert read_settings(file) == COMPLETE
    file.write_text(Settings().to_toml(), encoding="utf-8")
    assert read_settings(str(file)) == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[batching", "aimo.toml: "),
        ("[other]\nx = 1", r"aimo.toml: unknown table \[other\]"),
        ("batching = 3", "batching: expected a table, got 3"),
        ("[batching]\nbatchsize = 3", "batching.batchsize: unknown key"),
        ("[batching]\nbatch_size = 3.5", "batching.batch_size: expected int, got 3.5"),
        ("[batching]\nbatch_size = true", "batching.batch_size: expected int, got True"),
        ("[batching]\nmax_wait_time = 'soon'", "batching.max_wait_time: expected float"),
        ("[threads]\ncount = '2'", "threads.count: expected int"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_key(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "aimo.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_settings(file)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BatchEmbeddingProcessor.from_config(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.toml"):
        read_settings(tmp_path / "binary.toml")


def test_from_config_takes_the_file_the_variable_or_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIMO_CONFIG", raising=False)
    assert BatchEmbeddingProcessor.from_config().batch_size == 32
    file = tmp_path / "aimo.toml"
    file.write_text("[batching]\nbatch_size = 7\ntimeout = 5\n", encoding="utf-8")
    monkeypatch.setenv("AIMO_CONFIG", str(file))
    assert BatchEmbeddingProcessor.from_config().batch_size == 7
    assert BatchEmbeddingProcessor.from_config().timeout == 5
    model = FakeEmbedder()
    with BatchEmbeddingProcessor.from_config(batch_size=9, model=model) as processor:
        assert processor.batch_size == 9
        assert processor.embed_sync("a").tolist() == model.vector("a").tolist()
    file.write_text("[batching]\nbatch_size = 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        BatchEmbeddingProcessor.from_config(file)


def test_threads_are_set_unless_the_environment_has_set_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AIMO_NUM_THREADS", raising=False)
    try:
        Settings(threads=3).apply_threads()
        assert _core.thread_count() == 3
        Settings().apply_threads()
        assert _core.thread_count() == 3
        monkeypatch.setenv("AIMO_NUM_THREADS", "1")
        Settings(threads=5).apply_threads()
        assert _core.thread_count() == 3
    finally:
        _core.set_thread_count(0)
