"""half on a CUDA device: the bits of the CPU, any strides, memory that stays where it is.

Tests marked gpu need a CUDA device, or the host shim in its place; see tests/conftest.py.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ai_model_optimizations import DeviceArray, UnsupportedError, _core, half

UPPER = np.arange(65536, dtype=np.uint32) << 16
#: Lower halves of a float: none, the middle between two bfloat16 and between two float16, and their
#: neighbours; the rest is random.
EDGES = (0, 1, 0x7FFF, 0x8000, 0x8001, 0x0FFF, 0x1000, 0x1001, 0xFFFF)


def bits(x: NDArray[Any]) -> NDArray[Any]:
    return x.view(f"u{x.dtype.itemsize}")


def floats() -> NDArray[np.float32]:
    """Every upper half of a float with each of the lower halves."""
    random = np.random.default_rng(3).integers(0, 1 << 16, (2, UPPER.size), dtype=np.uint32)
    return np.concatenate([*(UPPER | edge for edge in EDGES), *(UPPER | random)]).view(np.float32)


def doubles() -> NDArray[np.float64]:
    """Doubles next to floats, NaN with every payload that is left, and some that are no float's."""
    x = floats()[:: len(EDGES)]
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64).view(np.uint64)
    payloads = np.uint64(0x7FF0000000000001) | UPPER.astype(np.uint64) << np.uint64(30)
    return np.concatenate([wide, wide + np.uint64(1), wide - np.uint64(1), payloads]).view("f8")


class View:
    """Memory of a device as another library would show it: any type and strides."""

    def __init__(
        self, values: NDArray[Any], shape: Sequence[int], strides: Sequence[int], code: int = 2
    ) -> None:
        self.memory = _core.DeviceMemory(0, values.nbytes)
        self.memory.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        self.layout = code, 8 * values.itemsize, tuple(shape), tuple(strides)
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.memory.device

    def __dlpack__(self, stream: int | None = None) -> object:
        """Export as DLPack did before version 1."""
        self.streams.append(stream)
        return self.memory.dlpack(*self.layout, False, False)


def on_device(values: NDArray[Any], dtype: str | None = None, device: int = 0) -> DeviceArray:
    array = DeviceArray(values.shape, dtype or values.dtype.name, device)
    array.copy_from(values.view(array.dtype))
    return array


# --- Values ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "convert"), [("float16", half.f16_to_f32), ("bfloat16", half.bf16_to_f32)]
)
def test_every_half_widens_to_the_bits_of_the_cpu(
    cuda: None, dtype: str, convert: Callable[[Any], Any]
) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    expected = convert(halves.view(np.float16) if dtype == "float16" else halves)
    got = convert(on_device(halves, dtype))
    assert isinstance(got, DeviceArray) and got.device == "cuda:0"
    assert got.dtype == np.float32
    np.testing.assert_array_equal(bits(got.numpy()), bits(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("convert", [half.f32_to_f16, half.f32_to_bf16])
def test_every_upper_half_narrows_to_the_bits_of_the_cpu(
    cuda: None, convert: Callable[[Any], Any]
) -> None:
    x = floats()
    got = convert(on_device(x))
    np.testing.assert_array_equal(bits(got.numpy()), bits(convert(x)))


@pytest.mark.gpu
def test_doubles_narrow_once_to_the_bits_of_the_cpu(cuda: None) -> None:
    x = doubles()
    got = half.f32_to_f16(View(x, x.shape, (1,)))
    np.testing.assert_array_equal(bits(got.numpy()), bits(half.f32_to_f16(x)))


# --- Shapes and strides --------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 2047, 2048, 2049, 4103])
def test_any_length(cuda: None, count: int) -> None:
    x = np.random.default_rng(1).standard_normal(count, dtype=np.float32)
    np.testing.assert_array_equal(half.f32_to_f16(on_device(x)).numpy(), half.f32_to_f16(x))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((), ()),
        ((40, 50), (50, 1)),
        ((50, 40), (1, 50)),
        ((40, 47), (50, 1)),
        ((20, 25), (100, 2)),
        ((30, 50), (0, 1)),
        ((5, 8, 50), (400, 50, 1)),
        ((50, 5, 8), (1, 400, 50)),
        ((1, 50, 1), (7, 40, 3)),
        ((3, 0, 2), (2, 2, 1)),
    ],
)
def test_any_strides_keep_the_order_of_axes(
    cuda: None, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    values = np.random.default_rng(2).standard_normal(2000, dtype=np.float32)
    steps = [4 * stride for stride in strides]
    x = np.lib.stride_tricks.as_strided(values, shape, steps)
    got = half.f32_to_bf16(View(values, shape, strides))
    assert got.shape == shape
    host = got.numpy()
    np.testing.assert_array_equal(bits(host), bits(half.f32_to_bf16(x)))
    if 0 not in strides:
        longer = [axis for axis, length in enumerate(shape) if length > 1]
        by_stride = sorted(longer, key=lambda axis: x.strides[axis])
        assert sorted(longer, key=lambda axis: host.strides[axis]) == by_stride


@pytest.mark.gpu
def test_out_is_written_where_it_lies(cuda: None) -> None:
    x = np.random.default_rng(4).standard_normal((30, 20), dtype=np.float32)
    source = on_device(x)
    out = on_device(np.zeros((30, 20), np.float16))
    assert half.f32_to_f16(source, out) is out
    np.testing.assert_array_equal(out.numpy(), x.astype(np.float16))
    padded = View(np.zeros((30, 24), np.uint16), (30, 20), (24, 1), code=1)
    assert half.f32_to_bf16(source, padded) is padded
    raw = np.empty(30 * 24, np.uint16)
    padded.memory.read(raw.view(np.uint8))
    np.testing.assert_array_equal(raw.reshape(30, 24)[:, :20], half.f32_to_bf16(x).view(np.uint16))
    assert not raw.reshape(30, 24)[:, 20:].any()
    np.testing.assert_array_equal(source.numpy(), x)


@pytest.mark.gpu
def test_the_stream_is_the_one_that_the_core_converts_on(cuda: None) -> None:
    view = View(np.ones(4, np.float32), (4,), (1,))
    half.f32_to_f16(view)
    assert view.streams == [1]


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.gpu
def test_wrong_input_is_refused_as_on_the_cpu(cuda: None) -> None:
    x = on_device(np.ones((2, 3), np.float32))
    small = half.f32_to_f16(x)
    with pytest.raises(TypeError, match="x: expected dtype float16, got float32"):
        half.f16_to_f32(x)
    with pytest.raises(TypeError, match="x: expected dtype float32, got float64"):
        half.f32_to_bf16(View(np.ones(3), (3,), (1,)))
    with pytest.raises(TypeError, match=r"x: expected a tensor of .* code 0 of 32 bits"):
        half.f32_to_f16(View(np.ones(3, np.int32), (3,), (1,), code=0))
    with pytest.raises(TypeError, match="out: expected dtype float16, got float32"):
        half.f32_to_f16(x, on_device(np.zeros((2, 3), np.float32)))
    with pytest.raises(ValueError, match=r"out: expected shape \(2, 3\), as x has, got \(3, 2\)"):
        half.f32_to_f16(x, on_device(np.zeros((3, 2), np.float16)))
    with pytest.raises(ValueError, match="out: its elements overlap each other"):
        half.f32_to_f16(x, View(np.zeros(3, np.float16), (2, 3), (0, 1)))
    with pytest.raises(ValueError, match="out: expected memory of cuda:0, as x has, got ndarray"):
        half.f32_to_f16(x, np.zeros((2, 3), np.float16))
    with pytest.raises(ValueError, match="out: expected memory of the CPU, got an array on a CUDA"):
        half.f32_to_f16(np.ones((2, 3), np.float32), small)
    with pytest.raises(ValueError, match="x: expected memory of the CPU, got an array on a CUDA"):
        half.report(x, "float16")


@pytest.mark.gpu
def test_overlapping_out_is_refused(cuda: None) -> None:
    x = View(np.ones(8, np.float32), (8,), (1,))
    same = View(np.ones(1, np.float16), (8,), (1,))
    same.memory = x.memory
    with pytest.raises(ValueError, match="out: its memory overlaps that of x"):
        half.f32_to_f16(x, same)


@pytest.mark.gpu
def test_out_on_another_device_is_refused(cuda: None) -> None:
    if _core.cuda_versions()["devices"] < 2:
        pytest.skip("one device")
    out = on_device(np.zeros(3, np.float16), device=1)
    with pytest.raises(ValueError, match="out: expected memory of cuda:0, as x, got cuda:1"):
        half.f32_to_f16(on_device(np.ones(3, np.float32)), out)
    back = half.f16_to_f32(out)
    assert back.device == "cuda:1" and not back.numpy().any()


class _OnCuda:
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: object) -> object:
        raise AssertionError("nothing is exported")


def test_without_cuda_a_device_array_says_what_is_missing(without_cuda: None) -> None:
    with pytest.raises(UnsupportedError, match="nvcc was not found"):
        half.f32_to_f16(_OnCuda())


# --- Beside torch --------------------------------------------------------------------------------


@pytest.fixture
def torch(cuda: None) -> Any:
    """Torch with the real device."""
    module = pytest.importorskip("torch", reason="its tensors come by DLPack")
    if os.environ.get("AIMO_TEST_CUDA_SHIM") is not None or not module.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return module


@pytest.mark.gpu
def test_torch_tensors_go_through_on_the_device(torch: Any) -> None:
    x = torch.randn(300, 200, device="cuda")
    for view in (x, x.T, x[:, 1:-3], x[3:], x[::2, ::3], x[0], x[:1, 1]):
        for dtype, narrow, wide in (
            (torch.float16, half.f32_to_f16, half.f16_to_f32),
            (torch.bfloat16, half.f32_to_bf16, half.bf16_to_f32),
        ):
            small = torch.from_dlpack(narrow(view))
            assert small.device == x.device and torch.equal(small, view.to(dtype))
            assert torch.equal(torch.from_dlpack(wide(small)), small.float())
            out = torch.zeros(view.shape, dtype=dtype, device="cuda")
            assert narrow(view, out) is out
            assert torch.equal(out, view.to(dtype))
    with pytest.raises(BufferError, match="gradient"):
        half.f32_to_f16(torch.ones(3, requires_grad=True, device="cuda"))


@pytest.mark.gpu
def test_torch_streams_are_waited_for(torch: Any) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros(4_000_000, device="cuda")
        for _ in range(50):  # still under way when half is called
            x += 1
        small = half.f32_to_f16(x)
        assert torch.equal(torch.from_dlpack(small), x.half())
