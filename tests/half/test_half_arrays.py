"""half: conversion equals numpy and ml_dtypes over every kind of array; bad input is refused."""

import array
import ctypes
import subprocess
import sys
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.typing import NDArray

import ai_model_optimizations
from ai_model_optimizations import half

ALL_HALVES = np.arange(65536, dtype=np.uint16)
_NAN_SIGN = np.uint32(0x80000000)


def bits(x: NDArray[Any]) -> NDArray[Any]:
    return x.view(f"u{x.dtype.itemsize}")


def assert_same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """The same bits; a NaN is any NaN with the same sign."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    same = bits(got) == bits(expected)
    both_nan = (got != got) & (expected != expected) & (np.signbit(got) == np.signbit(expected))
    assert np.all(same | both_nan)


def bf16_as_f32(x: NDArray[Any]) -> NDArray[np.float32]:
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def rounded_to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The definition, in whole numbers; NaN is quieted."""
    b = x.view(np.uint32).astype(np.uint64)
    quieted = (b >> 16) | 0x40
    return np.where(np.isnan(x), quieted, (b + 0x7FFF + (b >> 16 & 1)) >> 16).astype(np.uint16)


def sample_of_floats() -> NDArray[np.float32]:
    """Each half, the middles between halves, their neighbours, and every 5003rd float."""
    edges = ALL_HALVES.view(np.float16).astype(np.float32).view(np.uint32)
    near = [edges + np.uint32(d % 2**32) for d in (0, 1, -1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000)]
    return np.concatenate([*near, np.arange(0, 2**32, 5003).astype(np.uint32)]).view(np.float32)


# --- Values ---------------------------------------------------------------------------------------


def test_all_halves_equal_numpy() -> None:
    halves = ALL_HALVES.view(np.float16)
    assert_same(half.f16_to_f32(halves), halves.astype(np.float32))


def test_all_bfloats_are_the_upper_half_of_a_float() -> None:
    assert_same(half.bf16_to_f32(ALL_HALVES), bf16_as_f32(ALL_HALVES))


@pytest.mark.filterwarnings("ignore:.* encountered in cast:RuntimeWarning")
def test_a_sample_of_all_floats_equals_numpy() -> None:
    x = sample_of_floats()
    assert_same(half.f32_to_f16(x), x.astype(np.float16))


def test_a_sample_of_all_floats_equals_the_definition_of_bf16() -> None:
    x = sample_of_floats()
    np.testing.assert_array_equal(half.f32_to_bf16(x).view(np.uint16), rounded_to_bf16(x))


def test_a_sample_of_all_floats_equals_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the peer of bfloat16")
    x = sample_of_floats()
    x = x[~np.isnan(x)]  # ml_dtypes makes every NaN the same
    expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(half.f32_to_bf16(x).view(np.uint16), expected)


@pytest.mark.filterwarnings("ignore:.* encountered in cast:RuntimeWarning")
def test_doubles_equal_numpy_and_are_rounded_once() -> None:
    floats = sample_of_floats()
    exact = floats[np.isfinite(floats)].astype(np.float64)
    x = np.concatenate([exact, np.nextafter(exact, -np.inf), np.nextafter(exact, np.inf)])
    assert_same(half.f32_to_f16(x), x.astype(np.float16))
    through_f32 = half.f32_to_f16(x.astype(np.float32))
    assert np.any(bits(through_f32) != bits(half.f32_to_f16(x)))  # the sample has such values


def test_doubles_beyond_float32() -> None:
    x = np.array([1e300, -1e300, 1e-300, -1e-300, np.inf, -np.inf, 65519.999999999993, 65520.0] * 9)
    expected = np.array([np.inf, -np.inf, 0, -0.0, np.inf, -np.inf, 65504, np.inf] * 9, np.float16)
    assert_same(half.f32_to_f16(x), expected)


def test_a_large_array_equals_its_parts() -> None:
    x = np.resize(sample_of_floats(), 13_000_037)[3:]  # 26 MB of halves: threads, streamed stores
    whole = half.f32_to_f16(x)
    for start in range(0, x.size, 200_000):
        stop = start + 200_000
        np.testing.assert_array_equal(bits(whole[start:stop]), bits(half.f32_to_f16(x[start:stop])))


# --- Shapes, strides, orders ----------------------------------------------------------------------


def _view(data: st.DataObject, base: NDArray[Any]) -> NDArray[Any]:
    """A random view: slices with steps of either sign, axes swapped."""
    index = tuple(data.draw(st.slices(length)) for length in base.shape)
    view = base[(*index, ...)]  # a view without dimensions, too
    return view.transpose(data.draw(st.permutations(range(view.ndim))))


@hypothesis.given(data=st.data(), shape=arrays.array_shapes(min_dims=0, max_dims=4, max_side=9))
@hypothesis.settings(max_examples=150)
def test_views_of_any_stride_equal_numpy(data: st.DataObject, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    dtype = data.draw(st.sampled_from(["<f4", ">f4", "<f8", ">f8"]))
    x = _view(data, (np.arange(count).reshape(shape) * 1.0009765625 - 33).astype(dtype))
    expected = x.astype(np.float16)
    got = half.f32_to_f16(x)
    assert_same(got, expected)
    assert got.strides == expected.strides or got.size <= 1  # numpy keeps the order of axes, too
    out_base = np.zeros([2 * n + 3 for n in x.shape], data.draw(st.sampled_from(["<f2", ">f2"])))
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in x.shape]
    out = out_base[(*(slice(None, None, step) for step in steps), ...)]
    out = out[(*(slice(n) for n in x.shape), ...)]
    assert half.f32_to_f16(x, out) is out
    np.testing.assert_array_equal(out, expected)
    out[...] = 0
    assert not out_base.any()  # nothing was written beside out


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_misaligned_arrays(offset: int) -> None:
    raw = np.zeros(4 * 1000 + offset, np.uint8)
    x = raw[offset:].view(np.float32)
    x[:] = np.linspace(-3, 3, 1000, dtype=np.float32)
    out_raw = np.zeros(2 * 1000 + 1, np.uint8)
    out = out_raw[1:].view(np.float16)
    half.f32_to_f16(x, out)
    np.testing.assert_array_equal(out, x.astype(np.float16))


def test_large_transposed_and_padded_arrays() -> None:
    base = np.random.default_rng(1).standard_normal((700, 500), dtype=np.float32)
    for x in (base.T, base[:, :-3], base[::2, ::-1], np.broadcast_to(base[0], (300, 500))):
        np.testing.assert_array_equal(half.f32_to_f16(x), x.astype(np.float16))
        out = np.empty(x.shape, np.float16)
        half.f32_to_f16(x, out)
        np.testing.assert_array_equal(out, x.astype(np.float16))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_small_and_empty_shapes(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 1.5, np.float32)
    for narrow, wide in ((half.f32_to_f16, half.f16_to_f32), (half.f32_to_bf16, half.bf16_to_f32)):
        back = wide(narrow(x))
        assert back.shape == shape and back.dtype == np.float32
        np.testing.assert_array_equal(back, x)
    assert half.f32_to_f16(x, np.empty(shape, np.float16)).shape == shape


def test_read_only_input_is_fine_and_unchanged() -> None:
    x = np.linspace(0, 1, 100, dtype=np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(half.f32_to_f16(x), x.astype(np.float16))


# --- Buffers, DLPack, bfloat16 -----------------------------------------------------------------


def test_buffers_are_read_and_written() -> None:
    values = [0.1, -2.5, 1e-7]
    expected = np.array(values, np.float32).astype(np.float16)
    for x in (array.array("f", values), (ctypes.c_float * 3)(*values)):
        np.testing.assert_array_equal(half.f32_to_f16(x), expected)
        np.testing.assert_array_equal(half.f32_to_f16(memoryview(x)[::2]), expected[::2])
    out = array.array("f", [0] * 3)
    assert half.f16_to_f32(expected, out) is out
    assert out.tolist() == expected.tolist()
    assert half.f32_to_f16(np.float32(0.1))[()] == np.float16(0.1)
    with pytest.raises(ValueError, match="out: the array is read-only"):
        half.bf16_to_f32(np.zeros(1, np.uint16), memoryview(bytes(4)).cast("f"))


def test_torch_tensors_are_read_and_written() -> None:
    torch = pytest.importorskip("torch", reason="its tensors come by DLPack")
    x = torch.linspace(-2, 2, 600).reshape(20, 30).T
    for dtype, narrow, wide in (
        (torch.float16, half.f32_to_f16, half.f16_to_f32),
        (torch.bfloat16, half.f32_to_bf16, half.bf16_to_f32),
    ):
        out = torch.empty(30, 20, dtype=dtype)
        assert narrow(x, out) is out
        assert torch.equal(out, x.to(dtype))
        np.testing.assert_array_equal(wide(out), x.to(dtype).float().numpy())
        back = torch.empty(60, 20)[::2]
        wide(out, back)
        assert torch.equal(back, out.float())
    assert torch.equal(torch.from_numpy(half.f32_to_f16(x.double())), x.half())


def test_torch_memory_is_given_back() -> None:
    torch = pytest.importorskip("torch", reason="its tensors come by DLPack")
    x = torch.ones(8)
    before = sys.getrefcount(x)
    for _ in range(100):
        half.f32_to_f16(x)
        with pytest.raises(TypeError):
            half.f16_to_f32(x)
    assert sys.getrefcount(x) == before
    with pytest.raises(TypeError, match="code 0 of 64 bits"):
        half.f32_to_f16(torch.ones(3, dtype=torch.int64))
    with pytest.raises(BufferError, match="gradient"):
        half.f32_to_f16(torch.ones(3, requires_grad=True))
    with pytest.raises(BufferError, match="negated view"):
        half.f32_to_f16(torch.tensor([1 + 2j]).conj().imag)
    with pytest.raises(ValueError, match=r"x: expected memory of the CPU.*tensor\.half\(\)"):
        half.f32_to_f16(_OnMetal())


class _OnMetal:
    def __dlpack_device__(self) -> tuple[int, int]:
        return 8, 0

    def __dlpack__(self) -> object:
        raise AssertionError("nothing is exported from such a device")


class _OldLibrary:
    """Exports as DLPack did before version 1: no ``max_version``."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.x = x

    def __dlpack__(self) -> object:
        return self.x.__dlpack__()


def test_older_dlpack_is_read() -> None:
    x = np.linspace(0, 1, 10, dtype=np.float32)[::3]
    np.testing.assert_array_equal(half.f32_to_f16(_OldLibrary(x)), x.astype(np.float16))


def test_bfloat16_of_ml_dtypes_goes_in_and_out() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy's bfloat16")
    x = np.linspace(-5, 5, 77, dtype=np.float32)
    got = half.f32_to_bf16(x)
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(half.bf16_to_f32(got[::-2]), got[::-2].astype(np.float32))
    for dtype in (ml_dtypes.bfloat16, np.uint16):
        out = np.empty(154, dtype)[::2]
        assert half.f32_to_bf16(x, out) is out
        np.testing.assert_array_equal(out.view(np.uint16), got.view(np.uint16))


def test_bf16_without_ml_dtypes_is_uint16() -> None:
    program = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy as np\n"
        "from ai_model_optimizations import half\n"
        "bits = half.f32_to_bf16(np.array([1, -2.5], np.float32))\n"
        "assert bits.dtype == np.uint16 and bits.tolist() == [0x3f80, 0xc020]\n"
        "assert half.bf16_to_f32(bits).tolist() == [1, -2.5]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_half_is_a_name_of_the_package() -> None:
    program = (
        "import sys, ai_model_optimizations as a\n"
        "assert 'ai_model_optimizations.half' not in sys.modules\n"
        "a.half.f32_to_f16\n"
        "from ai_model_optimizations import half\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert ai_model_optimizations.half is half


# --- Bad input -----------------------------------------------------------------------------------

X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("convert", "x", "message"),
    [
        (half.f32_to_f16, np.ones(3, np.int32), "x: expected dtype float32 or float64, got int32"),
        (half.f32_to_f16, np.ones(3, np.float16), "expected dtype float32 or float64, got float16"),
        (half.f32_to_bf16, np.ones(3), "x: expected dtype float32, got float64"),
        (half.f16_to_f32, X, "x: expected dtype float16, got float32"),
        (half.bf16_to_f32, X, "x: expected dtype uint16 or bfloat16, got float32"),
        (half.f32_to_f16, [1.0, 2.0], "x: expected a numpy array, a buffer or a DLPack .* list"),
        (half.f32_to_f16, "text", "x: expected a numpy array, .* got str"),
        (half.f32_to_f16, b"text", "x: expected dtype float32 or float64, got uint8"),
        (half.f32_to_f16, None, "x: expected a numpy array, .* got NoneType"),
        (half.f32_to_f16, np.array([None]), "x: expected dtype .* got object"),
    ],
)
def test_wrong_input_is_a_type_error(convert: Any, x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        convert(x)


def _read_only() -> NDArray[Any]:
    out = np.zeros((2, 3), np.float16)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((3, 2), np.float16), ValueError, r"out: expected shape \(2, 3\), as x has, got"),
        (np.zeros(6, np.float16), ValueError, r"shape \(2, 3\), as x has, got \(6,\)"),
        (np.zeros((1, 2, 3), np.float16), ValueError, "out: expected shape"),
        (np.zeros((2, 3), np.float32), TypeError, "out: expected dtype float16, got float32"),
        (np.zeros((2, 3), np.uint16), TypeError, "out: expected dtype float16, got uint16"),
        (_read_only(), ValueError, "out: the array is read-only"),
        (np.broadcast_to(np.zeros(3, np.float16), (2, 3)), ValueError, "out: .*read-only"),
        ([0.0] * 6, TypeError, "out: expected a numpy array"),
        (
            np.lib.stride_tricks.as_strided(np.zeros(6, np.float16), (2, 3), (2, 2)),
            ValueError,
            "out: its elements overlap each other",
        ),
    ],
)
def test_wrong_out_is_refused_before_any_work(
    out: Any, error: type[Exception], message: str
) -> None:
    before = np.array(out, copy=True)
    with pytest.raises(error, match=message):
        half.f32_to_f16(X, out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("start", [0, 2, 1022, 2046])
def test_overlapping_out_is_refused(start: int) -> None:
    memory = np.zeros(4096, np.uint8)
    x = memory[1024:2048].view(np.float32)
    apart = start + 512 <= 1024 or start >= 2048
    out = memory[start : start + 512].view(np.float16)
    if apart:
        half.f32_to_f16(x, out)
    else:
        with pytest.raises(ValueError, match="out: its memory overlaps that of x"):
            half.f32_to_f16(x, out)
    with pytest.raises(ValueError, match="overlaps"):
        half.f32_to_f16(x, memory[1500:2012].view(np.float16))


def test_too_many_arguments() -> None:
    with pytest.raises(TypeError):
        half.f32_to_f16()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="expected 1 to 2 arguments, got 3"):
        ai_model_optimizations._core.f32_to_f16(X, None, None)  # type: ignore[call-arg]
