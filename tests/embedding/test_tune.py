from __future__ import annotations

from pathlib import Path

import pytest

from ai_model_optimizations import BatchEmbeddingProcessor, EmbeddingModel
from ai_model_optimizations.cli import main
from ai_model_optimizations.embedding import tune
from ai_model_optimizations.embedding.settings import read_settings
from ai_model_optimizations.testing import FakeEmbedder


def test_texts_are_lines_taken_evenly_from_all_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n  two  \nüç\n", encoding="utf-8")
    assert tune.read_texts(file) == ["one", "two", "üç"]
    file.write_text("\n".join(map(str, range(12_000))), encoding="utf-8")
    texts = tune.read_texts(file)
    assert len(texts) == 4000
    assert texts[:2] == ["0", "3"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_texts_is_an_error_on_the_command_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    assert main(["tune", "--texts", str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    assert main(["tune", "--texts", str(tmp_path / "missing")]) == 1
    file.write_text("text", encoding="utf-8")
    assert main(["tune", "--texts", str(file), "--callers", "0"]) == 1
    assert "--callers" in capsys.readouterr().err
    assert main(["tune", "--texts", str(file), "--seconds", "inf"]) == 1
    assert "--seconds" in capsys.readouterr().err
    assert main(["tune", "--texts", str(file), "--dtypes", "f12"]) == 1
    assert "f12" in capsys.readouterr().err
    assert main(["tune", "--texts", str(file), "--model", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_best_trial_is_quick_among_the_fast() -> None:
    trials = [
        tune.Trial({"batch_size": 8}, 500.0, 5.0),
        tune.Trial({"batch_size": 16}, 990.0, 20.0),
        tune.Trial({"batch_size": 32}, 1000.0, 40.0),
    ]
    assert tune.best_of(trials) is trials[1]


def test_a_model_with_a_cost_per_call_gets_large_batches() -> None:
    model = FakeEmbedder(delay=0.01)
    seen: list[tune.Trial] = []
    texts = [f"text {i}" for i in range(400)]
    best, default = tune.tune(model, texts, 64, 0.15, seen.append)
    assert best.settings["batch_size"] >= 32
    assert best.texts_per_second >= default.texts_per_second * 0.97
    others = 4 + 3 + 3 + 1
    assert len(seen) in (1 + others, 1 + others + 4)  # and a duel, if any is better
    assert set(best.settings) == {"batch_size", "max_tokens", "max_wait_time", "workers"}


def test_the_command_writes_what_from_config_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIMO_NUM_THREADS", "1")  # so that from_config leaves this process alone
    try:
        EmbeddingModel.load()
    except FileNotFoundError:
        pytest.skip("the default model is not on this machine")
    texts, output = tmp_path / "texts.txt", tmp_path / "aimo.toml"
    texts.write_text("\n".join(f"question {i}" for i in range(50)), encoding="utf-8")
    line = ["tune", "--texts", str(texts), "--output", str(output), "--callers", "4"]
    assert main([*line, "--seconds", "0.5"]) == 0
    assert str(output) in capsys.readouterr().out
    settings = read_settings(output)
    assert settings.dtype == "auto"
    assert settings.threads is not None and settings.threads >= 1
    with BatchEmbeddingProcessor.from_config(output, model=FakeEmbedder()) as processor:
        assert processor.batch_size == settings.batching["batch_size"]


@pytest.mark.parametrize(
    ("dtypes", "message"), [("auto,f99", "dtype: expected 'auto' or one of"), (",", "--dtypes: ")]
)
def test_unknown_types_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtypes: str, message: str
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one text", encoding="utf-8")
    line = ["tune", "--texts", str(texts), "--output", str(tmp_path / "aimo.toml")]
    assert main([*line, "--dtypes", dtypes]) == 1
    output = capsys.readouterr()
    assert message in output.err and output.out == ""
