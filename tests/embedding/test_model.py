"""EmbeddingModel: right values, the same vector whatever the batch, clear errors."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder
from reference import bert_tokens

from ai_model_optimizations import EmbeddingModel, ModelQuantizer, _core

TEXTS = ["read the file", "a list of values (3, 4)", "", "x", "time " * 40, "A server, in a TEST."]
#: Storage rounding, for cosines of small random models with f32 sums.
LEAST_COSINE = {"f32": 1 - 1e-6, "f16": 0.99999, "bf16": 0.9995}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens"])
def test_vectors_match_the_definition_in_float64(tmp_path: Path, dtype: str, pooling: str) -> None:
    folder = BertFolder(pooling=pooling, normalize=False)
    model = EmbeddingModel.load(folder.write(tmp_path), dtype=dtype)
    got = model.encode(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        ids = model._tokenizer.pack([text]).token_ids.tolist()
        tokens = bert_tokens(folder.weights(), ids, folder.heads, folder.layers)
        pooled = {"mean_tokens": tokens.mean(axis=0), "cls_token": tokens[0]}
        expected = pooled.get(pooling, tokens.max(axis=0))
        assert cosines(vector, expected) >= LEAST_COSINE[dtype]
        if dtype == "f32":
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_vector_does_not_depend_on_batch_order_size_or_threads(small_model: EmbeddingModel) -> None:
    random = np.random.default_rng(1)
    words = np.array(["read", "write", "a", "list", "of", "values", "the", "server", "path"])
    texts = [" ".join(random.choice(words, n)) for n in random.integers(1, 40, 90)]
    expected = np.stack([small_model.encode(text) for text in texts])
    try:
        for threads in (1, 2, 3):
            _core.set_thread_count(threads)
            for batch_size in (1, 7, 90):
                order = random.permutation(len(texts))
                got = small_model.encode([texts[i] for i in order], batch_size=batch_size)
                np.testing.assert_array_equal(got, expected[order])
    finally:
        _core.set_thread_count(0)


def test_real_model_is_batch_invariant(
    minilm: EmbeddingModel, real_texts: tuple[str, ...]
) -> None:
    texts = list(real_texts[:24])
    together = minilm.encode(texts, batch_size=24)
    np.testing.assert_array_equal(together, np.stack([minilm.encode(text) for text in texts]))
    np.testing.assert_array_equal(together[::-1], minilm.encode(texts[::-1], batch_size=5))


def test_many_threads_may_encode_at_once(small_model: EmbeddingModel) -> None:
    expected = small_model.encode(TEXTS)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            if not np.array_equal(small_model.encode(TEXTS), expected):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_shapes_and_types(small_model: EmbeddingModel) -> None:
    assert small_model.encode([]).shape == (0, 36)
    assert small_model.encode("one").shape == (36,)
    assert small_model.encode(["one"]).shape == (1, 36)
    assert small_model.encode(("one", "two")).dtype == np.float32
    assert small_model.encode(np.array(["one", "two"])).shape == (2, 36)
    assert small_model.dimension == small_model.get_sentence_embedding_dimension() == 36
    assert small_model.max_seq_length == 48


def test_normalisation_follows_the_model_and_the_argument(tmp_path: Path) -> None:
    plain = EmbeddingModel.load(BertFolder(normalize=False).write(tmp_path / "plain"))
    unit = EmbeddingModel.load(BertFolder(normalize=True).write(tmp_path / "unit"))
    norms = np.linalg.norm(plain.encode(TEXTS), axis=1)
    assert not np.allclose(norms, 1.0, atol=1e-3)
    for vectors in (unit.encode(TEXTS), plain.encode(TEXTS, normalize_embeddings=True)):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_token_counts_include_special_tokens_and_stop_at_the_limit(
    small_model: EmbeddingModel,
) -> None:
    assert small_model.count_tokens(["", "the file", "the " * 100]).tolist() == [2, 4, 48]


def test_limits_of_tokenizer_json_are_not_used(small_model: EmbeddingModel) -> None:
    """The file bakes in truncation and padding to 20; neither may reach the vectors."""
    assert small_model.count_tokens(["the " * 30, "the"]).tolist() == [32, 3]


def test_huge_text_equals_its_beginning(small_model: EmbeddingModel) -> None:
    huge = "read the file, " * 700_000  # about 10 MB
    np.testing.assert_array_equal(small_model.encode(huge), small_model.encode(huge[:3000]))
    mostly_empty = "\x00 " * 20_000 + "the file"
    np.testing.assert_array_equal(small_model.encode(mostly_empty), small_model.encode("the file"))


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (3, TypeError, "texts: expected str or a sequence of str, got int"),
        (b"bytes", TypeError, "got bytes"),
        (["a", None], TypeError, r"texts\[1\]: expected str, got NoneType"),
        (["a"] * 40 + [b"b"], TypeError, r"texts\[40\]: expected str, got bytes"),
        (["a", "b\ud800c"], ValueError, r"texts\[1\]: lone surrogate '\\ud800' at position 1"),
    ],
)
def test_bad_texts_are_named(
    small_model: EmbeddingModel, texts: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small_model.encode(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", ["a", ["a"]])
def test_bad_batch_size_is_named(small_model: EmbeddingModel, texts: str | list[str]) -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        small_model.encode(texts, batch_size=0)
    for wrong in (2.0, None, "2", True):
        with pytest.raises(TypeError, match="batch_size: expected an int, got"):
            small_model.encode(texts, batch_size=wrong)  # type: ignore[arg-type]


def test_a_truncate_dim_is_an_integer_of_any_kind(small_model: EmbeddingModel) -> None:
    assert small_model.encode("a", truncate_dim=np.int64(7)).shape == (7,)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="truncate_dim: expected 1 to 36, got True"):
        small_model.encode("a", truncate_dim=True)


@pytest.mark.parametrize("texts", [np.array("a"), np.array([["a", "b"]])])
def test_an_array_of_texts_has_one_dimension(small_model: EmbeddingModel, texts: object) -> None:
    with pytest.raises(TypeError, match=r"texts: expected an array of one dimension, got [02]"):
        small_model.encode(texts)  # type: ignore[arg-type]


def test_tokens_of_one_str_are_not_those_of_its_characters(small_model: EmbeddingModel) -> None:
    with pytest.raises(TypeError, match="texts: expected a sequence of str, got one str"):
        small_model.count_tokens("read the file")


def test_nul_characters_and_odd_text_are_embedded(small_model: EmbeddingModel) -> None:
    vectors = small_model.encode(["a\0b", "\0", " \n\t", "日本語", "🙂" * 500, "x" * 5000])
    assert np.isfinite(vectors).all()


def test_load_gives_the_model_in_use_and_forgets_it(small_path: Path) -> None:
    first = EmbeddingModel.load(small_path, dtype="bf16")
    assert EmbeddingModel.load(str(small_path), dtype="bf16") is first
    assert EmbeddingModel.load(small_path, dtype="f32") is not first
    del first
    gc.collect()
    before = _core.memory_info()["live_bytes"]
    for _ in range(5):
        EmbeddingModel.load(small_path, dtype="bf16")
    gc.collect()
    assert _core.memory_info()["live_bytes"] == before


def test_space_id_is_of_weights_and_pooling_not_of_precision(tmp_path: Path) -> None:
    def space(name: str, dtype: str = "f16", **shape: object) -> str:
        folder = BertFolder(**shape).write(tmp_path / name)  # type: ignore[arg-type]
        return EmbeddingModel.load(folder, dtype=dtype).space_id

    base = space("base")
    assert base == space("same") == space("other precision", dtype="bf16")
    others = [
        space("seed", seed=1),
        space("cls", pooling="cls_token"),
        space("unnormalised", normalize=False),
    ]
    assert len({base, *others}) == 4


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_quantizer_gives_what_loading_gives_in_half_the_memory(
    small_path: Path, dtype: str
) -> None:
    full = EmbeddingModel.load(small_path, dtype="f32")
    small = ModelQuantizer(dtype=dtype).quantize_model(full)
    assert small.dtype == dtype and full.dtype == "f32"
    assert small.memory_bytes < 0.6 * full.memory_bytes  # biases of a tiny model stay f32
    loaded = EmbeddingModel.load(small_path, dtype=dtype)
    np.testing.assert_array_equal(small.encode(TEXTS), loaded.encode(TEXTS))
    assert ModelQuantizer(dtype=dtype).quantize_model(small) is small


def test_quantizer_halves_the_real_model(minilm_path: Path) -> None:
    full = EmbeddingModel.load(minilm_path, dtype="f32")
    small = ModelQuantizer().quantize_model(full)
    assert small.memory_bytes <= 0.505 * full.memory_bytes


def test_unknown_dtypes_are_refused(small_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: expected 'auto' or one of"):
        EmbeddingModel.load(small_path, dtype="int3")
    with pytest.raises(ValueError, match="dtype: expected 'auto', 'smallest' or one of"):
        ModelQuantizer(dtype="f32")
    with pytest.raises(ValueError, match="the weights are f16 already"):
        ModelQuantizer(dtype="bf16").quantize_model(EmbeddingModel.load(small_path, dtype="f16"))


def test_a_packed_model_of_another_dtype_is_not_said_to_be_loadable_as_this_one(
    small_path: Path, tmp_path: Path
) -> None:
    EmbeddingModel.load(small_path, dtype="int8").save(tmp_path / "packed")
    with pytest.raises(ValueError, match="int8 already; load the model that it was packed from"):
        EmbeddingModel.load(tmp_path / "packed").astype("f16")


def test_memory_stays_flat_over_batches_of_changing_shape(small_model: EmbeddingModel) -> None:
    random = np.random.default_rng(2)

    def run(rounds: int) -> int:
        for _ in range(rounds):
            lengths = random.integers(0, 60, random.integers(1, 50))
            small_model.encode(["the " * n for n in lengths], batch_size=64)
        return _core.memory_info()["live_bytes"]

    settled = run(50)
    assert run(200) <= settled + (1 << 20)


def test_model_works_in_a_forked_child(small_path: Path) -> None:
    script = f"""
import os, sys
import numpy as np
from ai_model_optimizations import EmbeddingModel
model = EmbeddingModel.load({str(small_path)!r})
texts = ["the file", "a server of time"] * 50
expected = model.encode(texts, batch_size=100)
child = os.fork()
if child == 0:
    same = np.array_equal(EmbeddingModel.load({str(small_path)!r}).encode(texts), expected)
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    subprocess.run(command, check=True, timeout=60)


def test_import_starts_no_thread_and_imports_no_torch() -> None:
    script = """
import sys, threading
import ai_model_optimizations
heavy = {"torch", "transformers", "sentence_transformers", "tokenizers", "huggingface_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert threading.active_count() == 1
tasks = len(__import__("os").listdir("/proc/self/task")) if sys.platform == "linux" else 1
import numpy
print(tasks)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
