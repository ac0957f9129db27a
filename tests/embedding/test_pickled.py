"""Models in pickles: in other processes, in copies, and when their files have changed."""

import concurrent.futures
import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder

from ai_model_optimizations import EmbeddingModel, ModelFormatError

TEXTS = ["read the file", "a list of values (3, 4)", "", "time " * 40]


def test_a_pickle_holds_the_weights_and_the_settings(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="int8", truncate_dim=7, on_truncate="error")
    other = pickle.loads(pickle.dumps(model))
    assert (other.dtype, other.space_id, other.path) == ("int8", model.space_id, model.path)
    short = TEXTS[:3]
    np.testing.assert_array_equal(other.encode(short), model.encode(short))
    with pytest.raises(ValueError, match="on_truncate='error'"):
        other.encode("time " * 100)


def test_a_packed_model_is_named_by_its_pickle_and_is_the_one_in_use(
    small_path: Path, tmp_path: Path
) -> None:
    EmbeddingModel.load(small_path, dtype="f16").save(tmp_path / "packed")
    model = EmbeddingModel.load(tmp_path / "packed", truncate_dim=9)
    content = pickle.dumps(model)
    assert len(content) < 1000
    assert pickle.loads(content) is model


def test_a_model_whose_file_was_replaced_is_pickled_whole(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    EmbeddingModel.load(BertFolder(seed=1).write(tmp_path / "one")).save(folder)
    model = EmbeddingModel.load(folder)
    before = pickle.dumps(model)
    EmbeddingModel.load(BertFolder(seed=2).write(tmp_path / "two")).save(folder)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.encode(TEXTS), model.encode(TEXTS))
    with pytest.raises(ModelFormatError, match="another model lies here than when it was pickled"):
        pickle.loads(before)


def test_copies_are_the_model_itself(small_model: EmbeddingModel) -> None:
    assert copy.copy(small_model) is small_model
    assert copy.deepcopy({"model": small_model})["model"] is small_model


def test_spawned_processes_take_a_bound_encode(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f16")
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        np.testing.assert_array_equal(
            pool.submit(model.encode, TEXTS).result(60), model.encode(TEXTS)
        )
