from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from ai_model_optimizations import Embedding, SpaceMismatchError
from ai_model_optimizations.embedding.vectors import check_space


def test_an_embedding_is_a_list_with_a_space() -> None:
    vector = Embedding.from_array(np.array([0.5, -1.0], np.float32), "space")
    assert vector == [0.5, -1.0]
    assert isinstance(vector, list)
    assert vector.space_id == "space"
    assert vector and not Embedding()
    assert json.dumps(vector) == "[0.5, -1.0]"
    assert type(vector[:1]) is list
    assert vector.to_array().dtype == np.float32


def test_copies_keep_the_space() -> None:
    vector = Embedding([1.0, 2.0], "space")
    for twin in (
        copy.copy(vector),
        copy.deepcopy(vector),
        *(pickle.loads(pickle.dumps(vector, protocol)) for protocol in range(6)),
    ):
        assert twin == vector
        assert twin.space_id == "space"
        assert type(twin) is Embedding


def test_only_vectors_become_embeddings() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(dim,\), got \(1, 2\)"):
        Embedding.from_array(np.zeros((1, 2), np.float32), None)


def test_a_foreign_vector_is_refused_and_one_that_does_not_say_passes() -> None:
    with pytest.raises(SpaceMismatchError, match="query: made by a model of space 'b'"):
        check_space("a", Embedding([1.0], "b"), "query")
    check_space("a", Embedding([1.0], "a"))
    check_space("a", Embedding([1.0], None))
    check_space("a", [1.0])
    check_space(None, Embedding([1.0], "b"))
