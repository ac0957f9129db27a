"""device=: reasons where CUDA cannot be used, and the same vectors where it can.

Tests marked gpu need a CUDA device. Without one they run on the host shim, whose two libraries
AIMO_TEST_CUDA_SHIM names (backend:cuBLASLt; tests/run_all.py builds them), or skip.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder

from ai_model_optimizations import EmbeddingModel
from ai_model_optimizations.cli import main
from ai_model_optimizations.embedding import token_feed
from ai_model_optimizations.errors import UnsupportedError

TEXTS = ["read the file", "a list of values (3, 4)", "", "x", "time " * 40, "A server, in a TEST."]
#: 1 - cosine with f32 on the CPU, by what products take; int8 weights become f16, and are compared
#: with the int8 of the CPU, which rounds its inputs too.
LEAST_COSINE = {"f32": 1 - 1e-6, "f16": 0.99999, "bf16": 0.9999, "int8": 0.99}


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_build_without_cuda_says_so(without_cuda: None, small_path: Path, device: str) -> None:
    with pytest.raises(UnsupportedError, match="nvcc was not found"):
        EmbeddingModel.load(small_path, device=device)


def test_auto_is_the_cpu_where_cuda_cannot_be_used(without_cuda: None, small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f16", device="auto")
    assert model.device == "cpu"
    assert model is EmbeddingModel.load(small_path, dtype="f16")


def test_info_says_what_is_missing(
    without_cuda: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info"]) == 0
    assert "nvcc was not found" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:12345"])
def test_unknown_devices_are_refused_by_name(small_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match="device: expected 'cpu', 'auto', 'cuda' or 'cuda:N'"):
        EmbeddingModel.load(small_path, device=device)


def test_a_device_must_be_a_string(small_path: Path) -> None:
    with pytest.raises(TypeError, match="device: expected str, got int"):
        EmbeddingModel.load(small_path, device=0)  # type: ignore[arg-type]


def test_cuda_is_not_looked_for_until_it_is_asked_for(small_path: Path) -> None:
    program = (
        "import sys\n"
        "from ai_model_optimizations import EmbeddingModel\n"
        "EmbeddingModel.load(sys.argv[1]).encode('read')\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert not any(name in maps for name in ('libcuda.', 'cublas', 'aimo_cuda'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(small_path)], check=True)


def test_the_benchmark_measures_nothing_without_a_device() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_gpu.py"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, env=hidden)
    assert answer.returncode == 1
    assert "bench_gpu: nothing is measured: CUDA: " in answer.stderr


def test_a_library_that_is_not_there_is_unsupported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ai_model_optimizations import _core\n"
        "from ai_model_optimizations.errors import UnsupportedError\n"
        "for call in (lambda: _core.cuda_load(sys.argv[1], []), _core.cuda_versions):\n"
        "    try:\n"
        "        call()\n"
        "    except UnsupportedError as error:\n"
        "        print(error)\n"
    )
    library = str(tmp_path / "nothing.so")
    answer = subprocess.run(
        [sys.executable, "-c", program, library], check=True, capture_output=True, text=True
    )
    first, second = answer.stdout.splitlines()
    assert library in first and second == "CUDA was not loaded"


def test_a_child_that_was_forked_while_cuda_was_loaded_does_not_wait(tmp_path: Path) -> None:
    program = (
        "import contextlib, os, signal, sys, threading\n"
        "from ai_model_optimizations import _core\n"
        "from ai_model_optimizations.errors import DeviceError, UnsupportedError\n"
        "def load():\n"
        "    with contextlib.suppress(UnsupportedError):\n"
        "        _core.cuda_load(sys.argv[1], [])\n"
        "thread = threading.Thread(target=load)\n"
        "thread.start()\n"
        "pipe = None\n"
        "while pipe is None:\n"  # until the thread opens its end; then it waits for what to read
        "    with contextlib.suppress(OSError):\n"
        "        pipe = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(30)\n"
        "    try:\n"
        "        _core.cuda_load(sys.argv[1], [])\n"
        "    except DeviceError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "_, status = os.waitpid(child, 0)\n"
        "os.close(pipe)\n"
        "thread.join()\n"
        "sys.exit(status)\n"
    )
    library = str(tmp_path / "pipe.so")
    os.mkfifo(library)
    command = [sys.executable, "-c", program, library]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.stdout.startswith("CUDA was being started when this process was forked")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LEAST_COSINE)
def test_vectors_are_those_of_the_cpu(cuda: None, tmp_path: Path, dtype: str) -> None:
    path = BertFolder(hidden=48).write(tmp_path)
    expected = EmbeddingModel.load(path, dtype=dtype if dtype == "int8" else "f32").encode(TEXTS)
    model = EmbeddingModel.load(path, dtype=dtype, device="cuda")
    got = model.encode(TEXTS)
    assert model.device == "cuda:0" and "cuda:0" in repr(model)
    assert (got * expected).sum(axis=1).min() >= LEAST_COSINE[dtype]


@pytest.mark.gpu
def test_vectors_on_a_device_do_not_depend_on_the_batch(cuda: None, small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, device="cuda")
    alone = np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_array_equal(model.encode(TEXTS), alone)
    np.testing.assert_array_equal(model.encode(TEXTS[::-1]), alone[::-1])


@pytest.mark.gpu
def test_vectors_on_a_device_do_not_depend_on_how_often(cuda: None, small_path: Path) -> None:
    """Calls run by themselves, then record, then replay; between them come calls of other kinds."""
    model = EmbeddingModel.load(small_path, device="cuda")
    texts = TEXTS * 12  # more tokens than a call that is replayed may have
    expected = {unit: model.encode(texts, normalize_embeddings=unit) for unit in (False, True)}
    for _ in range(3):
        for count in (1, 2, 9):
            for unit in (False, True):
                got = model.encode(texts[:count], normalize_embeddings=unit)
                np.testing.assert_array_equal(got, expected[unit][:count])


@pytest.mark.gpu
def test_batches_on_several_threads_come_back_in_order(
    cuda: None, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_feed, "_FIRST_TOKENS", 8)
    model = EmbeddingModel.load(small_path, device="cuda")
    texts = [f"a{'b' * (i % 3)}" for i in range(22)]
    alone = {text: model.encode(text) for text in set(texts)}
    got = model.encode(texts, batch_size=1)
    np.testing.assert_array_equal(got, np.stack([alone[text] for text in texts]))
    with pytest.raises(TypeError, match=r"texts\[21\]"):
        model.encode([*texts[:-1], 5])  # type: ignore[list-item]


@pytest.mark.gpu
def test_auto_is_the_first_device_and_f16(cuda: None, small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, device="auto")
    assert (model.device, model.dtype) == ("cuda:0", "f16")
    assert model is EmbeddingModel.load(small_path, device="cuda")
    assert model is not EmbeddingModel.load(small_path, dtype="f16")


@pytest.mark.gpu
def test_a_device_that_is_not_there_is_a_value_error(cuda: None, small_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no cuda:99"):
        EmbeddingModel.load(small_path, device="cuda:99")


@pytest.mark.gpu
def test_packed_models_and_other_precisions_go_to_the_device(
    cuda: None, small_path: Path, tmp_path: Path
) -> None:
    full = EmbeddingModel.load(small_path, dtype="f32", device="cuda")
    assert full.astype("int8").device == "cuda:0"
    half = full.astype("f16")
    half.save(tmp_path / "packed")
    mapped = EmbeddingModel.load(tmp_path / "packed", device="cuda")
    assert mapped.device == "cuda:0" and mapped.space_id == full.space_id
    np.testing.assert_array_equal(mapped.encode(TEXTS), half.encode(TEXTS))


@pytest.mark.gpu
def test_threads_and_models_share_a_device(cuda: None, small_path: Path, tmp_path: Path) -> None:
    models = [
        EmbeddingModel.load(small_path, device="cuda"),
        EmbeddingModel.load(BertFolder(seed=1).write(tmp_path), device="cuda"),
    ]
    expected = [model.encode(TEXTS) for model in models]
    wrong: list[int] = []

    def call(index: int) -> None:
        if not np.array_equal(models[index % 2].encode(TEXTS), expected[index % 2]):
            wrong.append(index)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
def test_info_names_the_devices(cuda: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "cuda:0 " in capsys.readouterr().out


@pytest.mark.gpu
def test_a_forked_child_gets_a_device_error(cuda: None, small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, device="cuda")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "no error"
        try:
            model.encode("read")
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    assert answer.startswith("DeviceError: ") and "forked" in answer
    assert model.encode("read").shape == (36,)


@pytest.mark.gpu
def test_the_real_model_has_the_cosine_that_is_promised(cuda: None, minilm_path: Path) -> None:
    texts = ["Where is my order?", "rain"]
    expected = EmbeddingModel.load(minilm_path, dtype="f32").encode(texts)
    for dtype, least in {"f16": 0.99999, "bf16": 0.9999}.items():
        got = EmbeddingModel.load(minilm_path, dtype=dtype, device="cuda").encode(texts)
        assert (got * expected).sum(axis=1).min() >= least
