"""AIMO_CACHE_DIR: the next process maps what this one packed, and nothing about it can fail."""

import gc
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder

from ai_model_optimizations import EmbeddingModel, _core
from ai_model_optimizations.embedding.models_in_use import forget_all

TEXTS = ["read the file", "a list of values (3, 4)", "", "time " * 40]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packed" / "models"
    monkeypatch.setenv("AIMO_CACHE_DIR", str(folder))
    return folder


def load_anew(path: Path, dtype: str = "f16") -> EmbeddingModel:
    """Load as another process would."""
    forget_all()
    gc.collect()
    return EmbeddingModel.load(path, dtype=dtype)


def expected(path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "f16") -> np.ndarray:
    with monkeypatch.context() as context:
        context.delenv("AIMO_CACHE_DIR")
        return load_anew(path, dtype).encode(TEXTS)


def test_a_folder_is_packed_once(
    small_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = expected(small_path, monkeypatch)
    first = load_anew(small_path)
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) & 0o077 == 0
    written = file.stat()
    before = _core.memory_info()["live_bytes"]
    second = load_anew(small_path)
    assert _core.memory_info()["live_bytes"] - before < second.memory_bytes / 5
    assert file.stat().st_mtime_ns == written.st_mtime_ns and second is not first
    for model in (first, second):
        np.testing.assert_array_equal(model.encode(TEXTS), want)
        assert model.path == small_path and model.max_seq_length == 48
    assert load_anew(small_path, "bf16").dtype == "bf16"
    assert len(list(cache.iterdir())) == 2


def test_a_folder_that_changes_is_packed_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = BertFolder(seed=1).write(tmp_path / "model")
    load_anew(path)
    BertFolder(seed=2).write(path)
    np.testing.assert_array_equal(load_anew(path).encode(TEXTS), expected(path, monkeypatch))
    BertFolder(seed=2, max_seq_length=7).write(path)
    assert load_anew(path).max_seq_length == 7
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "garbage", "another model"])
def test_a_damaged_file_is_logged_and_replaced(
    small_path: Path,
    tmp_path: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    want = expected(small_path, monkeypatch)
    load_anew(small_path)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "another model":
        other = load_anew(BertFolder(seed=9).write(tmp_path / "other"))
        shutil.copy(other.save(tmp_path / "saved"), file)
    else:
        file.unlink()  # a mapped file is never written to
        file.write_bytes(whole[:-100] if damage == "truncated" else b"garbage")
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        np.testing.assert_array_equal(load_anew(small_path).encode(TEXTS), want)
    assert "AIMO_CACHE_DIR: packing the model again: " in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("obstacle", ["a file", "no room"])
def test_a_cache_that_cannot_be_written_is_done_without(
    small_path: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
) -> None:
    want = expected(small_path, monkeypatch)
    if obstacle == "a file":
        cache.parent.write_text("not a folder")
    else:

        def fail(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ai_model_optimizations._files.os.fsync", fail)
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        np.testing.assert_array_equal(load_anew(small_path).encode(TEXTS), want)
    assert "AIMO_CACHE_DIR: the packed model is not kept: " in caplog.text
    assert obstacle == "a file" or list(cache.iterdir()) == []


def test_leftovers_of_killed_processes_are_removed(small_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = cache / "x.safetensors.tmp-1-2", cache / "x.safetensors.tmp-3-4"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    load_anew(small_path)
    assert not old.exists() and new.exists()  # the new one may still be written


def test_workers_that_start_together_map_one_file(
    small_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = expected(small_path, monkeypatch)
    script = f"""
import os, sys
from ai_model_optimizations import EmbeddingModel
sys.stdin.readline()
model = EmbeddingModel.load({str(small_path)!r}, dtype="f16")
sys.stdout.buffer.write(model.encode({TEXTS!r}).tobytes())
sys.stdin.readline()  # until all have loaded
if os.path.exists("/proc/self/maps"):
    mapped = [line for line in open("/proc/self/maps") if ".safetensors" in line]
    sys.exit(not mapped or any("(deleted)" in line for line in mapped))
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for worker in workers:
        worker.stdin.write(b"\n")
        worker.stdin.flush()
    for worker in workers:
        out = worker.stdout.read(want.nbytes)
        np.testing.assert_array_equal(np.frombuffer(out, np.float32).reshape(want.shape), want)
    for worker in workers:
        worker.communicate(b"\n", timeout=60)
        assert worker.returncode == 0
    assert len(list(cache.iterdir())) == 1
