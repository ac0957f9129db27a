"""encode(keep_on_device=True): the same vectors, in device memory that others take by DLPack.

Tests marked gpu need a CUDA device, or the host shim in its place; see tests/conftest.py.
"""

import gc
import os
import pickle
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlpack_capsules import OnTheHost, Taken, shim_controls
from model_folders import BertFolder

from ai_model_optimizations import DeviceArray, EmbeddingModel, SmartCache, _core, half
from ai_model_optimizations.embedding import token_feed
from ai_model_optimizations.errors import DeviceError

SHIM = os.environ.get("AIMO_TEST_CUDA_SHIM")
TEXTS = ["read the file", "a list of values (3, 4)", "", "x", "time " * 40, "A server, in a TEST."]


@pytest.fixture
def model(cuda: None, small_path: Path) -> EmbeddingModel:
    return EmbeddingModel.load(small_path, device="cuda")


@pytest.fixture
def shim(cuda: None) -> Any:
    """The shim's counters: what is held, what was the most."""
    if SHIM is None:
        pytest.skip("only the shim counts")
    return shim_controls(SHIM.split(":")[0])


@pytest.fixture
def torch(cuda: None) -> Any:
    """Torch with the real device."""
    module = pytest.importorskip("torch", reason="it takes arrays by DLPack")
    if SHIM is not None or not module.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return module


def filled(values: Any) -> DeviceArray:
    array = DeviceArray(values.shape, values.dtype.name, 0)
    array.copy_from(values)
    return array


# --- encode ------------------------------------------------------------------------------------


def test_a_model_on_the_cpu_has_no_device_to_keep_vectors_on(small_model: EmbeddingModel) -> None:
    with pytest.raises(ValueError, match="keep_on_device: the model is on the CPU"):
        small_model.encode(TEXTS, keep_on_device=True)
    with pytest.raises(ValueError, match="keep_on_device"):
        small_model.encode_query("read", keep_on_device=True)


@pytest.mark.gpu
def test_vectors_that_stay_are_those_that_come_back(model: EmbeddingModel) -> None:
    array = model.encode(TEXTS, keep_on_device=True)
    expected = model.encode(TEXTS)
    assert (array.shape, array.ndim, array.size) == ((6, 36), 2, 216)
    assert (array.dtype, array.nbytes, array.device) == (np.float32, 864, "cuda:0")
    assert len(array) == 6
    assert repr(array) == "DeviceArray(shape=(6, 36), dtype=float32, device='cuda:0')"
    np.testing.assert_array_equal(array.numpy(), expected)
    np.testing.assert_array_equal(np.asarray(array), expected)
    one = model.encode(TEXTS[0], keep_on_device=True)
    assert one.shape == (36,)
    np.testing.assert_array_equal(one.numpy(), expected[0])


@pytest.mark.gpu
def test_options_count_for_vectors_that_stay(cuda: None, tmp_path: Path) -> None:
    model = EmbeddingModel.load(BertFolder(normalize=False).write(tmp_path), device="cuda")
    options: dict[str, Any] = {"normalize_embeddings": True, "truncate_dim": 7, "prompt": "the "}
    array = model.encode(TEXTS, keep_on_device=True, **options)
    np.testing.assert_array_equal(array.numpy(), model.encode(TEXTS, **options))
    for encode in (model.encode_query, model.encode_document):
        np.testing.assert_array_equal(encode(TEXTS, keep_on_device=True).numpy(), encode(TEXTS))
    assert model.encode([], keep_on_device=True).numpy().shape == (0, 36)


@pytest.mark.gpu
def test_batches_on_several_threads_are_written_in_order(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_feed, "_FIRST_TOKENS", 8)
    texts = [f"a{'b' * (i % 3)}" for i in range(22)]
    array = model.encode(texts, batch_size=1, keep_on_device=True)
    np.testing.assert_array_equal(array.numpy(), model.encode(texts))
    with pytest.raises(TypeError, match=r"texts\[21\]"):
        model.encode([*texts[:-1], 5], keep_on_device=True)  # type: ignore[list-item]


@pytest.mark.gpu
def test_vectors_can_be_halved_where_they_are(model: EmbeddingModel) -> None:
    small = half.f32_to_f16(model.encode(TEXTS, keep_on_device=True))
    np.testing.assert_array_equal(small.numpy(), half.f32_to_f16(model.encode(TEXTS)))


@pytest.mark.gpu
def test_caches_take_arrays_of_a_device(model: EmbeddingModel) -> None:
    cache = SmartCache(threshold=0.999)
    vectors = model.encode(TEXTS, keep_on_device=True)
    cache.put_many(vectors, list(range(len(TEXTS))))
    cache.put(model.encode("the server", keep_on_device=True), "one more")
    hit = cache.get_semantic_similar(model.encode(TEXTS[1], keep_on_device=True))
    assert hit is not None and hit.value == 1
    hits = cache.get_many(vectors)
    assert [hit and hit.value for hit in hits] == list(range(len(TEXTS)))


@pytest.mark.gpu
def test_the_core_checks_where_it_writes(model: EmbeddingModel, small_path: Path) -> None:
    ids, offsets = np.zeros(3, np.int32), np.array([0, 1, 3])
    call = (ids, offsets, True, 0, 36)
    memory = _core.DeviceMemory(0, 3 * 36 * 4)
    model._encoder.encode_to(*call, memory, 1)
    for first in (-1, 2, 1 << 62):
        with pytest.raises(ValueError, match="out: no room for 2 vectors"):
            model._encoder.encode_to(*call, memory, first)
    with pytest.raises(ValueError, match="columns 37"):
        model._encoder.encode_to(ids, offsets, True, 0, 37, memory, 0)
    with pytest.raises(TypeError, match="expected a DeviceMemory, got str"):
        model._encoder.encode_to(*call, "memory", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not the encoder's device"):
        EmbeddingModel.load(small_path)._encoder.encode_to(*call, memory, 0)


# --- Arrays ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_arrays_are_filled_from_the_host_and_read_back(cuda: None) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array = DeviceArray((2, 3, 4), "float32", 0, axes=(1, 2, 0))
    array.copy_from(values)
    host = array.numpy()
    np.testing.assert_array_equal(host, values)
    assert host.strides == (4, 32, 8)
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises(TypeError, match="values: expected dtype float32, got float64"):
        array.copy_from(values.astype(np.float64))
    with pytest.raises(ValueError, match=r"values: expected shape \(2, 3, 4\), got \(24,\)"):
        array.copy_from(values.reshape(-1))
    with pytest.raises(ValueError, match="needs a copy"):
        array.__array__(copy=False)
    with pytest.raises(TypeError, match="without axes"):
        len(DeviceArray((), "float32", 0))
    with pytest.raises(TypeError):
        pickle.dumps(array)
    with pytest.raises(ValueError, match="there is no cuda:99"):
        DeviceArray((1,), "float32", 99)


@pytest.mark.gpu
def test_an_array_too_large_for_the_device_says_the_sizes(cuda: None) -> None:
    with pytest.raises(MemoryError, match=r"\d+ bytes could not be allocated, \d+ of \d+ are free"):
        DeviceArray((1 << 40,), "float32", 0)


@pytest.mark.gpu
def test_a_capsule_says_what_the_array_is(cuda: None) -> None:
    array = half.f32_to_bf16(filled(np.ones((3, 4), np.float32)))
    old, new = Taken(array.__dlpack__()), Taken(array.__dlpack__(max_version=(1, 1)))
    assert array.__dlpack_device__() == (2, 0)
    for taken in (old, new):
        assert (taken.device, taken.dtype, taken.shape) == ((2, 0), (4, 16, 1), (3, 4))
        assert taken.strides == (4, 1) and taken.flags == 0
        assert taken.address == old.address and taken.address % 256 == 0
    assert (old.version, new.version) == (None, (1, 0))
    copied = Taken(array.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.address != old.address and copied.flags == 2
    for taken in (old, new, copied):
        taken.delete()


@pytest.mark.gpu
def test_streams_are_those_of_the_specification(cuda: None) -> None:
    array = filled(np.ones(2, np.float32))
    for stream in (None, -1, 1, 2, 140_000_000_000):
        array.__dlpack__(stream=stream)
    for wrong in (0, -2):
        with pytest.raises(ValueError, match="stream: expected None, -1, 1, 2 or"):
            array.__dlpack__(stream=wrong)
    with pytest.raises(TypeError):
        array.__dlpack__(stream="main")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_numpy_takes_a_copy_only_when_asked(cuda: None) -> None:
    values = np.ones((2, 3), np.float32)
    array = filled(values)
    with pytest.raises((RuntimeError, BufferError)):
        np.from_dlpack(array)
    np.testing.assert_array_equal(
        _core.dlpack_array(array.__dlpack__(dl_device=(1, 0)), "x"), values
    )
    assert Taken(array.__dlpack__(dl_device=(2, 0))).device == (2, 0)
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match=r"DLPack device \(2, 7\)"):
        array.__dlpack__(dl_device=(2, 7))
    with pytest.raises(BufferError, match="bfloat16"):
        half.f32_to_bf16(array).__dlpack__(dl_device=(1, 0))


# --- Lifetime ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_memory_lives_until_the_last_owner_is_gone(
    shim: Any, version: tuple[int, int] | None
) -> None:
    gc.collect()
    held, live = shim.held(), _core.memory_info()["live_bytes"]
    array = filled(np.arange(1000, dtype=np.float32))
    first, second = (Taken(array.__dlpack__(max_version=version)) for _ in range(2))
    array.__dlpack__(max_version=version)  # nobody takes it up
    del array
    assert shim.held() == held + 4000
    first.delete()
    assert shim.held() == held + 4000
    thread = threading.Thread(target=second.delete)
    thread.start()
    thread.join()
    assert (shim.held(), _core.memory_info()["live_bytes"]) == (held, live)


def failures(shim: Any, work: Callable[[], object]) -> int:
    """Let each call of CUDA's that ``work`` makes fail, one after another; return how many."""
    for count in range(1000):
        shim.fail_calls_after(count)
        try:
            work()
            return count
        except DeviceError as error:
            assert "CUDA: " in str(error)
        finally:
            shim.fail_calls_after(-1)
    raise AssertionError("it never succeeds")


@pytest.mark.gpu
def test_nothing_is_left_of_calls_that_fail(shim: Any, model: EmbeddingModel) -> None:
    expected = model.encode(TEXTS)
    gc.collect()
    held, live = shim.held(), _core.memory_info()["live_bytes"]
    assert failures(shim, lambda: model.encode(TEXTS, keep_on_device=True)) > 5
    assert (shim.held(), _core.memory_info()["live_bytes"]) == (held, live)
    np.testing.assert_array_equal(model.encode(TEXTS, keep_on_device=True).numpy(), expected)
    array = filled(expected)
    taken = shim.held(), _core.memory_info()["live_bytes"]
    narrow, copy = partial(half.f32_to_f16, array), partial(array.__dlpack__, copy=True)
    for work in (array.numpy, narrow, copy):
        assert failures(shim, work) > 1
        assert (shim.held(), _core.memory_info()["live_bytes"]) == taken


@pytest.mark.gpu
def test_arrays_outlive_their_model(cuda: None, tmp_path: Path) -> None:
    model = EmbeddingModel.load(BertFolder(seed=9).write(tmp_path), device="cuda")
    expected = model.encode(TEXTS)
    array = model.encode(TEXTS, keep_on_device=True)
    del model
    gc.collect()
    np.testing.assert_array_equal(array.numpy(), expected)


@pytest.mark.gpu
def test_a_forked_child_may_drop_an_array_but_not_read_it(model: EmbeddingModel) -> None:
    array = model.encode(TEXTS, keep_on_device=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answers = []
        for work in (array.numpy, lambda: half.f32_to_f16(array)):
            try:
                work()
                answers.append("no error")
            except Exception as error:
                answers.append(type(error).__name__)
        del array, work
        os.write(writing, " ".join(answers).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert answer == "DeviceError DeviceError"
    np.testing.assert_array_equal(array.numpy(), model.encode(TEXTS))


# --- Beside torch --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("versioned", [False, True])
def test_torch_reads_capsules_and_gives_them_back(shim: Any, versioned: bool) -> None:
    """A real consumer's view of the structures, where there is no device."""
    module = pytest.importorskip("torch", reason="it takes arrays by DLPack")
    gc.collect()
    held, live = shim.held(), _core.memory_info()["live_bytes"]
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = DeviceArray((3, 4), "float32", 0, axes=(1, 0))
    array.copy_from(values)
    tensor = module.from_dlpack(OnTheHost(array, versioned))
    bf16 = module.from_dlpack(OnTheHost(half.f32_to_bf16(array), versioned))
    assert tensor.stride() == bf16.stride() == (1, 3) and bf16.dtype == module.bfloat16
    tensor[0, 0] = 7
    assert array.numpy()[0, 0] == 7
    del array
    values[0, 0] = 7
    np.testing.assert_array_equal(tensor.numpy(), values)
    np.testing.assert_array_equal(bf16.float().numpy()[1:], values[1:])
    del tensor, bf16
    assert (shim.held(), _core.memory_info()["live_bytes"]) == (held, live)


@pytest.mark.gpu
def test_torch_shows_the_same_memory(torch: Any, model: EmbeddingModel) -> None:
    expected = model.encode(TEXTS)
    array = model.encode(TEXTS, keep_on_device=True)
    tensor = torch.from_dlpack(array)
    assert tensor.device == torch.device("cuda", 0) and tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.cpu().numpy(), expected)
    tensor[0, 0] = 5
    torch.cuda.synchronize()
    assert array.numpy()[0, 0] == 5
    del array
    gc.collect()
    assert float(tensor[0, 0]) == 5
    with torch.cuda.stream(torch.cuda.Stream()):
        other = torch.from_dlpack(model.encode(TEXTS, keep_on_device=True))
        np.testing.assert_array_equal(other.cpu().numpy(), expected)
    bf16 = torch.from_dlpack(half.f32_to_bf16(other))
    assert torch.equal(bf16, other.bfloat16())


@pytest.mark.gpu
def test_caches_take_tensors_of_a_device(torch: Any, model: EmbeddingModel) -> None:
    cache = SmartCache(threshold=0.999)
    tensor = torch.from_dlpack(model.encode(TEXTS, keep_on_device=True))
    cache.put_many(tensor, list(range(len(TEXTS))))
    hit = cache.get_semantic_similar(tensor[1])
    assert hit is not None and hit.value == 1


# --- Large calls ---------------------------------------------------------------------------------


def free_bytes() -> int:
    """Bytes of device memory that are free, from the error of an array that is too large for it."""
    with pytest.raises(MemoryError) as caught:
        DeviceArray((1 << 40,), "float32", 0)
    match = re.search(r"(\d+) of \d+ are free", str(caught.value))
    assert match is not None
    return int(match[1])


@pytest.mark.gpu
def test_a_call_of_a_hundred_thousand_tokens(model: EmbeddingModel) -> None:
    """One batch in the core; the shim, whose threads are fibers, gets a hundredth of it."""
    unique = [" ".join(f"w{i}" for i in range(length)) for length in range(1, 16)]
    alone = np.stack([model.encode(text) for text in unique])
    rounds = 400 if SHIM is None else 2
    texts = unique * rounds
    assert int(model.count_tokens(texts).sum()) > (100_000 if SHIM is None else 500)
    expected = np.tile(alone, (rounds, 1))
    free = free_bytes()
    np.testing.assert_array_equal(model.encode(texts, batch_size=len(texts)), expected)
    array = model.encode(texts, batch_size=len(texts), keep_on_device=True)
    np.testing.assert_array_equal(array.numpy(), expected)
    used = free - free_bytes() - array.nbytes  # workspaces keep what they have grown to
    assert used <= 256 << 20
