"""The command line: info and demo say what they should, errors are one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ai_model_optimizations import __version__, _core
from ai_model_optimizations.cli import main


def test_info_names_version_row_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (__version__, _core.cpu_info()["row"], "AIMO_CPU", "AIMO_NUM_THREADS"):
        assert expected in out


def test_demo_measures_and_answers(minilm_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--plain", "--texts", "40", "--ask", "How do I print a string?"]
    assert main(["demo", "--model", str(minilm_path), *options]) == 0
    out = capsys.readouterr().out
    assert "40 texts" in out and "ai-model-optimizations f32" in out
    assert "How do I print a string?" in out


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ai-model-optimizations: ") and error.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ai_model_optimizations", "info"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == b""


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ai_model_optimizations.report.compare", interrupted)
    assert main(["report"]) == 130
    assert capsys.readouterr().err == "ai-model-optimizations: interrupted\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["tune", "--texts", "TEXTS"], "--output"),
        (["quantize", "SOURCE", "TARGET"], "--json"),
        (["report"], "--json"),
        (["report"], "--svg"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_before_any_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    option: str,
) -> None:
    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr("ai_model_optimizations.embedding.tune.read_texts", work)
    monkeypatch.setattr("ai_model_optimizations.ModelQuantizer.quantize_path", work)
    monkeypatch.setattr("ai_model_optimizations.report.compare", work)
    for file, problem in (
        (tmp_path / "missing" / "file", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        assert main([*command, option, str(file)]) == 1
        error = capsys.readouterr().err
        assert problem in error and repr(str(file)) in error
