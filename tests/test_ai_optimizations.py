"""The four things that users check, by the functions that ``selftest`` runs, and the report."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ai_model_optimizations import EmbeddingModel, ModelQuantizer, cli, report, selftest

TEXTS = list(dict.fromkeys(report.chat_messages(60)))[:12]


@pytest.fixture(scope="module")
def full(minilm_path: Path) -> EmbeddingModel:
    return EmbeddingModel.load(minilm_path, dtype="f32")


@pytest.fixture(scope="module")
def small(full: EmbeddingModel) -> EmbeddingModel:
    return ModelQuantizer().quantize_model(full)


def test_quantization_is_valid(full: EmbeddingModel) -> None:
    check = selftest.check_quantization(full, TEXTS)
    assert check.passed, check
    assert check.figures["memory after, MB"] < 0.51 * check.figures["memory before, MB"]


def test_batches_give_the_vectors_of_single_texts(small: EmbeddingModel) -> None:
    check = selftest.check_batches(small, TEXTS)
    assert check.passed, check


def test_the_cache_answers_what_it_should_and_nothing_else(small: EmbeddingModel) -> None:
    check = selftest.check_cache(small)
    assert check.passed, check


def test_memory_stays_where_it_is(small: EmbeddingModel) -> None:
    check = selftest.check_memory(small, TEXTS)
    assert check.passed, check


def test_a_check_that_fails_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = [selftest.Check("cache", False, {"wrong hits of 6": 1.0})]
    monkeypatch.setattr(selftest, "run_checks", lambda model: failed)
    assert cli.main(["selftest"]) == 1
    assert "cache         FAILED  wrong hits of 6 1" in capsys.readouterr().out
    assert cli.main(["selftest", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["passed"] is False
    assert cli.main(["selftest", "--model", "/nowhere"]) == 1


def test_the_report_compares_both_services_on_the_same_messages(
    minilm_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("report.json", "report.svg")]
    arguments = ["--model", str(minilm_path), "--count", "40", "--plain", "ours"]
    assert cli.main(["report", *arguments, "--json", files[0], "--svg", files[1]]) == 0
    printed = capsys.readouterr().out
    assert "plain, our f32 one by one" in printed and "exact repeats" in printed
    found = json.loads(Path(files[0]).read_text())
    assert found["optimized"]["model_mb"] < 0.51 * found["plain"]["model_mb"]
    hits = found["hits"]
    # Of the repeats, those that were answered by meaning are looked up by meaning again.
    assert hits["messages"] == 40 and 0 < hits["exact_hits"] <= hits["messages"] - hits["novel"]
    assert hits["semantic_hits"] > 0 and 0 <= hits["novel_hits"] <= hits["novel"]
    assert all(math.isfinite(found["plain"][f"p{q}_ms"]) for q in (50, 95, 99))
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")


def test_the_report_takes_the_users_messages_and_refuses_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert cli.main(["report", "--messages", str(empty)]) == 1
    assert "empty.txt: no line with text" in capsys.readouterr().err
    empty.write_bytes(b"one\n\xff\n")
    assert cli.main(["report", "--messages", str(empty)]) == 1
    assert "empty.txt: not UTF-8" in capsys.readouterr().err
    assert cli.main(["report", "--messages", str(tmp_path / "none.txt")]) == 1
    assert cli.main(["report", "--count", "0"]) == 1


def test_the_same_seed_gives_the_same_messages() -> None:
    assert report.chat_messages(50, seed=3) == report.chat_messages(50, seed=3)
    assert report.chat_messages(50, seed=3) != report.chat_messages(50, seed=4)
