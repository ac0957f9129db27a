"""torch modules that hold packed weights and multiply in the C core.

A module's panels lie in an ordinary buffer, so ``state_dict``, ``deepcopy``, pickle and shared
memory treat them like any tensor; the core only looks at that memory. Nothing is compiled against
torch: a CPU tensor's numpy view is what crosses over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.jit import is_tracing as _is_tracing
from torch.utils._pytree import tree_map

from .. import _core
from ..errors import UnsupportedError

#: The torch type of the same bits, by storage type; a look-up table is kept in it, row by row.
TABLE_DTYPES: dict[str, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16}


#: Elements that are converted together: temporary memory stays at a few MB.
_PIECE = 1 << 20


def pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the groups of rows that are looked at together."""
    step = max(1, _PIECE // max(1, columns))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def as_f32(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a tensor's values as float32 in order; a view where they lie so already."""
    tensor = tensor.detach()
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        tensor = tensor.to("cpu", torch.float32)
    values: NDArray[np.float32] = tensor.contiguous().numpy()
    return values


def pack_rows(
    dtype: str, n: int, k: int, channels: NDArray[np.int32] | None = None
) -> tuple[torch.Tensor, _core.PackedMatrix]:
    """Return zeroed panels of an (n, k) matrix, uint8, and the matrix over them.

    Parameters
    ----------
    channels : for int8, the inputs that stay in 16 bits
    """
    panels = torch.zeros(_core.packed_size(dtype, n, k), dtype=torch.uint8)
    matrix = _core.PackedMatrix(dtype, n, k, panels.numpy())
    if channels is not None:
        matrix.set_outliers(channels)
    return panels, matrix


class PackedModule(torch.nn.Module):  # type: ignore[misc]
    """A weight matrix of n outputs and k inputs in panels; base of the packed modules.

    Parameters
    ----------
    panels : uint8 buffer, as :func:`pack_rows` makes it; tied modules share it
    dtype : storage type, ``"f16"``, ``"bf16"`` or ``"int8"``
    n, k : size of the matrix
    """

    def __init__(self, panels: torch.Tensor, dtype: str, n: int, k: int) -> None:
        super().__init__()
        self.packed_dtype, self._n, self._k = dtype, n, k
        self.register_buffer("packed", panels)
        self._view: tuple[int, _core.PackedMatrix] | None = None
        self.train(False)

    @property
    def matrix(self) -> _core.PackedMatrix:
        """The core's view of the panels, made again when they have moved (to shared memory)."""
        pointer = self.packed.data_ptr()
        view = self._view
        if view is None or view[0] != pointer:
            panels = self.packed.detach().numpy()
            view = pointer, _core.PackedMatrix(self.packed_dtype, self._n, self._k, panels)
            self._view = view
        return view[1]

    @property
    def weight(self) -> torch.Tensor:
        """The weight, for code that asks for its shape or dtype; widened when it is computed with.

        A copy: changing it changes nothing. Every use widens the matrix again.
        """
        return StoredWeight(self)

    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape that the weight has in torch."""
        return self._n, self._k

    def widened(self) -> torch.Tensor:
        """Return the weight as a new float32 tensor."""
        return torch.from_numpy(self.matrix.unpack(0, self._n))

    def __getstate__(self) -> dict[str, Any]:
        # The view belongs to this object's memory; a copy makes its own.
        return {**self.__dict__, "_view": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._view = None  # what was loaded is checked when it is looked at

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        device = fn(self.packed.new_empty(0)).device
        if device.type != "cpu":
            raise UnsupportedError(
                f"a packed module computes on the CPU and cannot be moved to {device}: "
                "move the model first and quantize it there, or ModelQuantizer.dequantize it"
            )
        return super()._apply(fn, recurse)

    def _check_call(self, x: torch.Tensor) -> None:
        if not x.is_cpu:
            raise UnsupportedError(f"packed weights are on the CPU, the input is on {x.device}")
        if _is_tracing():
            raise UnsupportedError(
                "packed weights cannot be traced, what the core computes is no operation of torch: "
                "ModelQuantizer.dequantize(model) and trace that"
            )
        _refuse_training(self, x)


class PackedLinear(PackedModule):
    """``torch.nn.Linear`` with packed weights.

    Inputs of any floating dtype are computed in float32 (with bf16 weights, on processors that
    multiply bf16, their products are exact and the inputs are rounded to it; with int8 weights each
    row of inputs is rounded to 8 bits with a scale of its own, but for the channels that stay in 16
    bits); the output has the input's dtype.
    """

    def __init__(
        self, panels: torch.Tensor, dtype: str, n: int, k: int, bias: torch.Tensor | None
    ) -> None:
        super().__init__(panels, dtype, n, k)
        self.in_features, self.out_features = k, n
        if bias is not None:
            bias = torch.nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input @ weight.T + bias; (..., k) to (..., n)."""
        self._check_call(input)
        if input.ndim == 0 or input.shape[-1] != self._k:
            raise ValueError(f"input: expected (..., {self._k}), got {tuple(input.shape)}")
        if input.dtype is not torch.float32 and not input.is_floating_point():
            raise TypeError(f"input: expected a floating dtype, got {input.dtype}")
        x = _as_rows(input, self._k)
        out = torch.empty((x.shape[0], self._n), dtype=torch.float32)
        if x.shape[0] > 0:
            bias = self.bias
            self.matrix.matmul(x, None if bias is None else as_f32(bias), "none", out.numpy())
        # A small product takes no longer than a few such calls: only those that are needed.
        if input.ndim != 2:
            out = out.view(*input.shape[:-1], self._n)
        return out if input.dtype is torch.float32 else out.to(input.dtype)

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        return (
            f"in_features={self._k}, out_features={self._n}, bias={self.bias is not None}, "
            f"dtype={self.packed_dtype}"
        )

    def original(self) -> torch.nn.Module:
        """Return a plain module with the widened weight."""
        module = torch.nn.Linear(self._k, self._n, bias=False, device="meta")
        return _filled(module, self.widened(), self.bias)


class PackedConv1D(PackedLinear):
    """transformers' ``Conv1D``, a linear layer whose weight is kept transposed, (k, n)."""

    @property
    def nf(self) -> int:
        """Output features, by the name that Conv1D has for them."""
        return self._n

    @property
    def nx(self) -> int:
        """Input features."""
        return self._k

    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape that the weight has in transformers."""
        return self._k, self._n

    def widened(self) -> torch.Tensor:
        """Return the weight as a new float32 tensor."""
        return super().widened().t().contiguous()

    def original(self) -> torch.nn.Module:
        """Return a plain module with the widened weight."""
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            module = Conv1D(self._n, self._k)
        return _filled(module, self.widened(), self.bias)


class PackedEmbedding(PackedModule):
    """``torch.nn.Embedding`` whose table is the packed weight of a linear layer as well.

    Parameters
    ----------
    output_dtype : of the vectors
    """

    def __init__(
        self,
        panels: torch.Tensor,
        dtype: str,
        n: int,
        k: int,
        padding_idx: int | None,
        output_dtype: torch.dtype,
    ) -> None:
        super().__init__(panels, dtype, n, k)
        self.num_embeddings, self.embedding_dim = n, k
        self.padding_idx, self.output_dtype = padding_idx, output_dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows that the indices name; (...) to (..., k)."""
        self._check_call(input)
        indices = input.detach().reshape(-1).to(torch.int64)
        try:
            rows = self.matrix.rows(indices.numpy())
        except ValueError as error:
            raise IndexError(f"index out of range in self: {error}") from None
        return torch.from_numpy(rows).view(*input.shape, self._k).to(self.output_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.output_dtype = _converted(fn, self.output_dtype)
        return self

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        return f"{self._n}, {self._k}, dtype={self.packed_dtype}, tied"

    def original(self) -> torch.nn.Module:
        """Return a plain module with the widened weight."""
        return _plain_embedding(self, self.widened())


class TableEmbedding(torch.nn.Module):  # type: ignore[misc]
    """``torch.nn.Embedding`` with a 16-bit or int8 table, row by row.

    Parameters
    ----------
    table : (n, k) of the storage type
    dtype : its name
    output_dtype : of the vectors
    scale : for int8, what each row's integers are multiplied with, (n,) float32
    """

    def __init__(
        self,
        table: torch.Tensor,
        dtype: str,
        padding_idx: int | None,
        output_dtype: torch.dtype,
        scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.packed_dtype = dtype
        self.num_embeddings, self.embedding_dim = table.shape
        self.padding_idx, self.output_dtype = padding_idx, output_dtype
        # Not called weight: what converts a model's floats would find it under that name.
        self.register_buffer("table", table)
        self.register_buffer("scale", scale)
        self.train(False)

    @property
    def weight(self) -> torch.Tensor:
        """The table, widened to the vectors' dtype; a copy."""
        return StoredWeight(self)

    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the table."""
        return tuple(self.table.shape)

    def widened(self) -> torch.Tensor:
        """Return the table as a new float32 tensor."""
        table: torch.Tensor = self.table.float()
        return table if self.scale is None else table * self.scale[:, None]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows that the indices name; (...) to (..., k)."""
        _refuse_training(self, input)
        rows = torch.nn.functional.embedding(input, self.table, self.padding_idx)
        if self.scale is not None:
            rows = rows.float().mul_(self.scale[input.to(torch.int64), None])
        return rows.to(self.output_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .float() and .double() must not give the memory back; only the device may change.
        super()._apply(lambda t: _same_dtype(fn, t), recurse)
        self.output_dtype = _converted(fn, self.output_dtype)
        return self

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        return f"{self.num_embeddings}, {self.embedding_dim}, dtype={self.packed_dtype}"

    def original(self) -> torch.nn.Module:
        """Return a plain module with the widened table."""
        return _plain_embedding(self, self.widened())


#: Every class of this file that stands in a quantized model.
PACKED = (PackedLinear, PackedConv1D, PackedEmbedding, TableEmbedding)


class StoredWeight(torch.Tensor):  # type: ignore[misc]
    """A weight that says its shape and dtype and is widened by what computes with it.

    Library code reads ``layer.weight.dtype`` or ``.device`` in every forward pass; that must cost
    nothing, and what really uses the numbers must get the right ones.
    """

    @staticmethod
    def __new__(cls, module: Any) -> StoredWeight:
        """Make a tensor of the weight's shape that holds nothing."""
        weight: StoredWeight = torch.Tensor._make_wrapper_subclass(
            cls, module.weight_shape(), dtype=torch.float32, device="cpu"
        )
        return weight

    def __init__(self, module: Any) -> None:
        self._module = module

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widen(value: Any) -> Any:
            return value._module.widened() if isinstance(value, cls) else value

        return func(*tree_map(widen, args), **tree_map(widen, kwargs or {}))


def _refuse_training(module: torch.nn.Module, x: torch.Tensor) -> None:
    if module.training or (x.requires_grad and torch.is_grad_enabled()):
        raise UnsupportedError(
            "packed weights cannot be trained and pass no gradient on: call model.eval() and "
            "torch.no_grad(), or ModelQuantizer.dequantize(model) and train that"
        )


def _as_rows(x: torch.Tensor, k: int) -> NDArray[np.float32]:
    return as_f32(x).reshape(-1, k)


def _converted(fn: Any, dtype: torch.dtype) -> torch.dtype:
    """The dtype that ``.half()``, ``.float()`` or ``.to()`` makes of a module's floats."""
    return fn(torch.empty(0, dtype=dtype)).dtype


def _same_dtype(fn: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Apply a conversion to a stand-in and follow it to its device alone."""
    if not tensor.is_floating_point():
        return fn(tensor)
    moved = fn(tensor.view(torch.int16))
    if moved.dtype == torch.int16:
        return moved.view(tensor.dtype)
    return tensor.to(moved.device)


def _filled(
    module: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.nn.Module:
    module.weight = torch.nn.Parameter(weight)
    module.bias = None if bias is None else torch.nn.Parameter(bias.detach().clone())
    return module.train(False)


def _plain_embedding(module: Any, weight: torch.Tensor) -> torch.nn.Module:
    plain = torch.nn.Embedding.from_pretrained(
        weight.to(module.output_dtype), freeze=False, padding_idx=module.padding_idx
    )
    return plain.train(False)
