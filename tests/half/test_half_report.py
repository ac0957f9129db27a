"""half.report: counts and errors equal their definitions in float64."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ai_model_optimizations import half


def test_each_kind_of_loss_is_counted() -> None:
    x = np.array(
        [1.0, 0.1, 70000.0, -65520.0, 1e-5, -6e-8, 1e-9, 0.0, -0.0, np.nan, np.inf, -np.inf],
        np.float32,
    )
    r = half.report(x, "float16")
    assert (r.dtype, r.count, r.nan, r.infinite) == ("float16", 12, 1, 2)
    assert (r.overflowed, r.subnormal, r.flushed_to_zero) == (2, 2, 1)
    assert r.max_abs_error == abs(float(np.float16(x[1])) - float(x[1]))
    assert r.max_relative_error == 1.0  # what was flushed to zero
    assert "2 overflowed" in str(r)
    wide = half.report(x, "bfloat16")
    assert (wide.overflowed, wide.subnormal, wide.flushed_to_zero) == (0, 0, 0)


def test_signalling_nan_is_a_nan_and_no_warning() -> None:
    x = np.array([0x7F800001, 0x3F800000], np.uint32).view(np.float32)
    assert half.report(x, "f16").nan == half.report(x, "bf16").nan == 1


def expected_errors(x: NDArray[Any]) -> tuple[float, float, float]:
    exact, rounded = x.astype(np.float64).ravel(), x.astype(np.float16).astype(np.float64).ravel()
    error = np.abs(exact - rounded)
    sqnr = 10 * math.log10(np.sum(exact**2) / np.sum(error**2))
    return float(error.max()), float(np.max(error / np.abs(exact))), sqnr


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", ">f8"])
def test_errors_equal_their_definition_over_many_blocks(dtype: Any) -> None:
    x = np.random.default_rng(3).standard_normal((3, 70_001)).astype(dtype)
    for view in (x, x.T, x[:, ::-3]):
        r = half.report(view, np.float16)
        assert (r.max_abs_error, r.max_relative_error) == expected_errors(view)[:2]
        assert r.sqnr_db == pytest.approx(expected_errors(view)[2], rel=1e-12)
        assert 70 < r.sqnr_db < 80  # 11 bits


def test_bfloat16_errors() -> None:
    x = np.random.default_rng(4).standard_normal(10_000, dtype=np.float32)
    bits = half.f32_to_bf16(x).view(np.uint16)
    error = np.abs(half.bf16_to_f32(bits).astype(np.float64) - x)
    for name in ("bf16", "bfloat16"):
        r = half.report(x, name)
        assert r.dtype == "bfloat16" and r.max_abs_error == error.max()
        assert r.sqnr_db == pytest.approx(
            10 * math.log10(np.sum(x.astype(np.float64) ** 2) / np.sum(error**2)), rel=1e-12
        )
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy's bfloat16")
    assert half.report(x, ml_dtypes.bfloat16) == r


def test_exact_empty_and_tiny_arrays() -> None:
    assert half.report(np.array([1.0, 2.0]), "f16").sqnr_db == math.inf
    empty = half.report(np.zeros((0, 3), np.float32), "f16")
    assert (empty.count, empty.max_abs_error, empty.sqnr_db) == (0, 0.0, math.inf)
    lost = half.report(np.full(5, 1e-200), "f16")  # their squares would vanish in float64
    assert lost.flushed_to_zero == 5 and lost.sqnr_db == pytest.approx(0.0)
    mixed = half.report(np.array([1e-200] * 3 + [1.0 + 2**-12] * 3), "f16")
    assert mixed.sqnr_db == pytest.approx(20 * math.log10((1 + 2**-12) / 2**-12))
    assert half.report(np.float32(0.1), "f16").count == 1


def test_torch_tensors_are_reported_on() -> None:
    torch = pytest.importorskip("torch", reason="its tensors come by DLPack")
    assert half.report(torch.full((4, 4), 1e6), "f16").overflowed == 16


@pytest.mark.parametrize(
    ("x", "dtype", "error", "message"),
    [
        (np.ones(3, np.float32), "int8", ValueError, "dtype: expected float16 or bfloat16"),
        (np.ones(3, np.float32), np.float32, ValueError, "bfloat16, got float32"),
        (np.ones(3, np.float32), object(), ValueError, "dtype: expected float16 or bfloat16"),
        (np.ones(3, np.float32), None, ValueError, "dtype: expected float16 or bfloat16"),
        (np.ones(3, np.int64), "f16", TypeError, "x: expected dtype float32 or float64, got int64"),
        (np.ones(3), "bf16", TypeError, "x: expected dtype float32, got float64"),
        ([1.0], "f16", TypeError, "x: expected a numpy array"),
    ],
)
def test_bad_arguments(x: Any, dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        half.report(x, dtype)
