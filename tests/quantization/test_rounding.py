"""Rounding to 16 bits: exact definitions of what is counted, whatever the shape and type."""

import math

import numpy as np
import pytest

from ai_model_optimizations.quantization import rounding
from ai_model_optimizations.quantization.rounding import measure, narrow


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array of a test spans several pieces."""
    monkeypatch.setattr(rounding, "_PIECE", 7)


def test_f16_counts_are_their_definitions() -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal((9, 11)) * 10.0 ** random.integers(-9, 3, (9, 11))).astype(
        "f4"
    )
    result = measure(values, "f16")
    after = values.astype(np.float16).astype(np.float64)
    error = np.abs(after - values)
    assert result.count == 99 and result.fits
    assert result.max_error == error.max()
    expected = 10 * math.log10(np.square(values, dtype=np.float64).sum() / np.square(error).sum())
    assert result.sqnr_db == pytest.approx(expected)
    assert result.flushed == np.count_nonzero((after == 0) & (values != 0)) > 0
    assert result.subnormal == np.count_nonzero((after != 0) & (np.abs(after) < 2**-14)) > 0


def test_what_does_not_fit_is_counted_and_never_silently_infinite() -> None:
    values = np.array([65519, 65520, -1e30, math.inf, math.nan, 1.0], np.float32)
    result = measure(values, "f16")
    assert (result.overflowed, result.not_finite, result.fits) == (2, 2, False)
    assert result.problem("f16") == (
        "2 values are NaN or infinite and 2 values are too large for f16"
    )
    assert result.figures() == {"overflowed": 2}
    assert measure(values[:3], "bf16").fits
    assert measure(np.array([3.4e38], np.float32), "bf16").overflowed == 1


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only", "empty", "one", "scalar"])
def test_any_array_rounds_as_its_values_do(dtype: str, kind: str, layout: str) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal((4, 5, 6)).astype(kind)
    values = {
        "C": values,
        "F": np.asfortranarray(values),
        "strided": values[::2, ::-1, 1::2],
        "read-only": values,
        "empty": values[:0],
        "one": values[0, 0, ::2],
        "scalar": np.asarray(values[1, 2, 3]),
    }[layout]
    values.flags.writeable = layout != "read-only"
    got = narrow(values, dtype)
    assert got.shape == values.shape
    if dtype == "f16":
        np.testing.assert_array_equal(got, values.astype(np.float16))
    else:
        assert got.dtype == np.uint16
        widened = (got.astype(np.uint32) << 16).view(np.float32)
        assert np.all(np.abs(widened - values) <= np.abs(values) * 2.0**-8)
    result = measure(values, dtype)
    assert result.count == values.size
    assert result.sqnr_db == math.inf or result.sqnr_db > 40


def test_f64_rounds_to_bf16_once() -> None:
    """Just above the middle between two bf16: by way of f32 it would become the middle itself."""
    middle = 1.0 + 2.0**-8
    values = np.array([middle, middle + 2.0**-40, -middle - 2.0**-40, middle - 2.0**-40, 1e300])
    assert [hex(bits) for bits in narrow(values, "bf16")] == [
        "0x3f80",
        "0x3f81",
        "0xbf81",
        "0x3f80",
        "0x7f80",
    ]


def test_exact_and_empty_tensors_lose_nothing() -> None:
    assert measure(np.array([0.5, -2.0], np.float32), "bf16").sqnr_db == math.inf
    assert measure(np.zeros((0, 3), np.float32), "f16").figures()["max_error"] == 0.0
