"""device=: reasons where CUDA cannot be used, and the same answers where it can.

Tests marked gpu need a CUDA device, or the host shim; see tests/embedding/test_device.py.
"""

import ctypes
import logging
import os

import numpy as np
import pytest

from ai_model_optimizations import SmartCache, devices
from ai_model_optimizations._core import EmbeddingIndex
from ai_model_optimizations.errors import UnsupportedError

DIM, ROWS = 16, 2600  # one full chunk, and some
#: Queries of which a device is asked, at one chunk.
QUERIES = 32


def vectors(count, seed=0):
    """Vectors in a few directions, so that many are near each other."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((30, DIM))
    rows = centres[rng.integers(0, 30, count)] + 0.2 * rng.standard_normal((count, DIM))
    return rows.astype(np.float32)


def filled(device):
    index = EmbeddingIndex(DIM, device=device)
    index.add_many(vectors(ROWS), np.zeros(ROWS, np.int64))
    index.optimize()
    return index


def wait_for_learning(cache):
    """So that no thread is left that works in the next test."""
    if cache._optimizer.thread is not None:
        cache._optimizer.thread.join()


def filled_cache(**options):
    cache = SmartCache(ttl=None, guard=None, threshold=0.9, **options)
    cache.put_many(vectors(ROWS), [str(i) for i in range(ROWS)])
    wait_for_learning(cache)
    return cache


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_build_without_cuda_says_so(without_cuda, device):
    with pytest.raises(UnsupportedError, match="nvcc was not found"):
        SmartCache(device=device)


def test_auto_is_the_cpu_where_cuda_cannot_be_used(without_cuda):
    cache = SmartCache(device="auto")
    cache.put(vectors(1)[0], "value")
    stats = cache.stats()
    assert cache.device == stats["device"] == "cpu"
    assert (stats["device_rows"], stats["device_searches"], stats["device_failures"]) == (0, 0, 0)


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match="device: expected 'cpu', 'auto', 'cuda' or 'cuda:N'"):
        SmartCache(device="gpu")
    with pytest.raises(TypeError, match="device: expected str, got int"):
        SmartCache(device=0)


def test_an_index_without_a_device_says_so():
    state = EmbeddingIndex(4).device_state
    assert state == {
        "device": -1, "rows": 0, "searches": 0, "failures": 0, "lost": False, "error": "",
    }  # fmt: skip


@pytest.mark.gpu
def test_a_device_that_is_not_there_is_a_value_error(cuda):
    with pytest.raises(ValueError, match="there is no cuda:99"):
        SmartCache(device="cuda:99")
    with pytest.raises(ValueError, match="there is no cuda:99"):
        EmbeddingIndex(4, device=99)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.5, 0.95, 1.0])
def test_answers_are_those_of_the_cpu(cuda, threshold):
    with_device, without = filled(0), filled(-1)
    queries = np.concatenate([vectors(QUERIES // 2, seed=1), vectors(ROWS)[: QUERIES // 2]])
    contexts = np.zeros(len(queries), np.int64)
    got = with_device.search_many(queries, contexts, threshold, 4)
    expected = without.search_many(queries, contexts, threshold, 4)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    state = with_device.device_state
    assert state["rows"] == 2048 and state["searches"] == 1 and state["error"] == ""


@pytest.mark.gpu
def test_a_cache_keeps_its_rows_on_the_device(cuda):
    cache = filled_cache(device="cuda")
    cache._table.index.optimize()
    stats = cache.stats()
    assert cache.device == stats["device"] == "cuda:0"
    assert stats["device_rows"] == 2048 and stats["device_failures"] == 0
    hits = [cache.get_semantic_similar(row) for row in vectors(ROWS)[:20]]
    assert [hit.value for hit in hits] == [str(i) for i in range(20)]
    cache.clear()
    assert cache.stats()["device_rows"] == 0


@pytest.mark.gpu
def test_files_do_not_say_where_to_compute(cuda, tmp_path):
    cache = filled_cache(device="cuda")
    cache.save(tmp_path / "cache")
    on_cpu = SmartCache.load(tmp_path / "cache")
    wait_for_learning(on_cpu)
    assert on_cpu.device == "cpu"
    loaded = SmartCache.load(tmp_path / "cache", device="auto")
    wait_for_learning(loaded)
    assert loaded.device == "cuda:0" and len(loaded) == ROWS


class ShimControls(ctypes.Structure):
    """The first of tests/cuda_shim/cuda_shim.h."""

    _fields_ = [
        ("set_machine", ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int)),
        ("fail_allocations_after", ctypes.CFUNCTYPE(None, ctypes.c_long)),
        ("fail_calls_after", ctypes.CFUNCTYPE(None, ctypes.c_long)),
    ]


@pytest.fixture
def shim(cuda):
    if "AIMO_TEST_CUDA_SHIM" not in os.environ:
        pytest.skip("only the shim fails when it is told")
    library = ctypes.CDLL(os.environ["AIMO_TEST_CUDA_SHIM"].split(":")[0])
    library.cuda_shim_controls_get.restype = ctypes.POINTER(ShimControls)
    controls = library.cuda_shim_controls_get().contents
    yield controls
    controls.fail_allocations_after(-1)
    controls.fail_calls_after(-1)


@pytest.mark.gpu
@pytest.mark.parametrize("fault", ["fail_allocations_after", "fail_calls_after"])
def test_a_device_that_fails_is_done_without_and_named_once(shim, caplog, fault):
    cache = SmartCache(ttl=None, guard=None, threshold=0.9, device="cuda")
    cache.put(vectors(ROWS)[0], "0")
    getattr(shim, fault)(0)
    cache.put_many(vectors(ROWS)[1:], [str(i) for i in range(1, ROWS)])
    wait_for_learning(cache)
    cache._table.index.optimize()
    assert cache.stats()["device_failures"] >= 1 and cache.stats()["device_rows"] == 0
    assert [cache.get_semantic_similar(row).value for row in vectors(ROWS)[:3]] == ["0", "1", "2"]
    assert len(caplog.messages) == 1
    assert "lookups use the CPU in place of cuda:0: " in caplog.messages[0]


def in_child(work):
    """What `work` returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.gpu
def test_a_forked_child_searches_on_the_cpu(cuda):
    index = filled(0)
    queries, contexts = vectors(QUERIES, seed=2), np.zeros(QUERIES, np.int64)
    expected = index.search_many(queries, contexts, 0.9, 2)[1]

    def search():
        same = np.array_equal(index.search_many(queries, contexts, 0.9, 2)[1], expected)
        return same, index.device_state["lost"], "forked" in index.device_state["error"]

    assert in_child(search) == "(True, True, True)"
    assert index.device_state["failures"] == 0


@pytest.mark.gpu
def test_a_forked_child_may_fill_a_new_cache(cuda):
    cache = SmartCache(device="cuda", guard=None)
    warnings = []

    class Collect(logging.Handler):
        def emit(self, record):
            warnings.append(record.getMessage())

    def put():
        logging.getLogger("ai_model_optimizations").addHandler(Collect())
        cache.put(vectors(1)[0], "value")
        value = cache.get_semantic_similar(vectors(1)[0]).value
        return value, len(warnings), "in place of cuda:0" in warnings[0] and "forked" in warnings[0]

    assert in_child(put) == "('value', 1, True)"


@pytest.mark.gpu
def test_devices_are_those_of_the_model(cuda):
    assert devices.parse_device("cuda") == 0 and SmartCache(device="cuda:0").device == "cuda:0"
