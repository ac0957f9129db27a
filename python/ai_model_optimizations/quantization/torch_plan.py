"""Which modules of a torch model are packed, and why the others are not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UnsupportedError
from .request import Request
from .torch_modules import PACKED

#: The type for a weight that does not fit the requested type.
WIDER = {"int8": "f16", "f16": "f16", "bf16": "bf16"}


@dataclass
class Weight:
    """One parameter and the modules that compute with it: tied modules share it."""

    #: Its first name in the model.
    name: str
    parameter: torch.Tensor
    modules: list[torch.nn.Module]
    #: ``"linear"``, ``"conv1d"`` or ``"embedding"`` for each module.
    kinds: list[str]
    #: What it is stored as; "" until that is decided.
    dtype: str = ""
    #: For int8: the input channels that stay in 16 bits, (at most 16,) int32.
    channels: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix."""
        rows, columns = self.parameter.shape
        return (columns, rows) if self.kinds[0] == "conv1d" else (rows, columns)

    @property
    def is_table(self) -> bool:
        """Whether it is only looked up in, so that no product needs panels."""
        return all(kind == "embedding" for kind in self.kinds)


@dataclass
class Plan:
    """Which parameters are packed, and why the others are not, by name."""

    weights: list[Weight]
    kept: dict[str, str] = field(default_factory=dict)


def kind_of(module: torch.nn.Module) -> str | None:
    """Return what a module is to us; None when its weight stays as it is.

    Subclasses and modules whose ``forward`` was replaced are left alone: they may do anything with
    the weight.
    """
    if "forward" in module.__dict__:
        return None
    if type(module) is torch.nn.Linear:
        return "linear"
    if type(module) is torch.nn.Embedding:
        return "embedding"
    if (
        type(module).__name__ == "Conv1D"
        and type(module).__module__ == "transformers.pytorch_utils"
    ):
        return "conv1d"
    return None


def make_plan(model: torch.nn.Module, request: Request) -> Plan:
    """Find what can be packed.

    Raises
    ------
    UnsupportedError
        If there is nothing: no linear layer, no table.
    ValueError
        If a weight is on the meta device, or an element of ``skip`` matches no name.
    """
    names = dict(named_modules(model))
    parameters = dict(model.named_parameters())
    request.check_skip([*names.values(), *parameters, *dict(model.named_buffers())])
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ValueError(
                f"model: parameter {name!r} is on the meta device, there is no weight to quantize; "
                "load the weights first"
            )
    groups: dict[int, Weight] = {}
    plan = Plan([])
    for module, name in names.items():
        for short, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{name}.{short}" if name else short
            kind = kind_of(module) if short == "weight" else None
            group = groups.setdefault(id(parameter), Weight(full, parameter, [], []))
            reason = _reason_to_keep(module, kind, full, name, parameter, request)
            if reason:
                plan.kept.setdefault(group.name, reason)
            if kind is not None:
                group.modules.append(module)
                group.kinds.append(kind)
    plan.weights = [g for g in groups.values() if g.modules and g.name not in plan.kept]
    if not any(group.modules for group in groups.values()):
        raise UnsupportedError(
            f"model: {type(model).__name__} has no torch.nn.Linear, torch.nn.Embedding or "
            "transformers Conv1D whose weights could be packed"
        )
    return plan


def named_modules(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Yield every module once, with its first name."""
    for name, module in model.named_modules():
        yield module, name


def _reason_to_keep(
    module: torch.nn.Module,
    kind: str | None,
    full: str,
    name: str,
    parameter: torch.Tensor,
    request: Request,
) -> str:
    if request.skips(full) or (name and request.skips(name)):
        return "named by skip"
    if kind is None:
        if parameter.ndim == 1:
            return "a vector: biases and norms stay as they are"
        return f"{type(module).__name__} computes with it"
    if not parameter.is_floating_point() or parameter.layout != torch.strided:
        return f"{parameter.dtype} of layout {parameter.layout}"
    if min(parameter.shape) == 0:
        return "empty"
    if kind == "embedding":
        if module.max_norm is not None:
            return "max_norm changes the table while it is read"
    elif torch.nn.utils.parametrize.is_parametrized(module):
        return "the weight is computed from others"
    return ""


def stored_type(model: torch.nn.Module, dtypes: tuple[str, ...]) -> str | None:
    """Return the type of ``dtypes`` in which the model is packed already; None when in none.

    Raises
    ------
    ValueError
        If it is packed as something else: rounding twice would lose more than it must.
    """
    found = {module.packed_dtype for module in model.modules() if isinstance(module, PACKED)}
    if not found:
        return None
    for dtype in dtypes:
        # What int8 cannot hold is in 16 bits then.
        if dtype in found and found <= {dtype, WIDER[dtype]}:
            return dtype
    raise ValueError(
        f"model: it is quantized already, to {', '.join(sorted(found))}; "
        "quantize the original model, or ModelQuantizer.dequantize this one first"
    )


def check_not_shared(
    model: torch.nn.Module, weights: list[Weight], owner: torch.nn.Module | None = None
) -> None:
    """Refuse to take apart, in place, what another model uses as well.

    Parameters
    ----------
    owner : the only one that may hold ``model``; None lets any module hold it as a whole, which
        gets the quantized one with it

    Raises
    ------
    ValueError
        If a module outside holds a part of ``model`` or its weights' memory.
    """
    inner = {id(module) for module in model.modules()}
    own = inner if owner is None else {id(module) for module in owner.modules()}
    storages = {weight.parameter.untyped_storage().data_ptr(): weight.name for weight in weights}
    if owner is None:
        inner = inner - {id(model)}
    for other in _all_modules():
        if id(other) in own:
            continue
        for name, child in other.__dict__.get("_modules", {}).items():
            if id(child) in inner:
                raise _shared(f"module {name!r} ({type(child).__name__})", other)
        for parameter in other.__dict__.get("_parameters", {}).values():
            if parameter is None or parameter.is_meta or type(parameter) not in _PLAIN_TENSORS:
                continue
            weight = storages.get(parameter.untyped_storage().data_ptr())
            if weight is not None and parameter.numel():
                raise _shared(f"the storage of {weight!r}", other)


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def _all_modules() -> Iterator[Any]:
    for value in gc.get_objects():
        # type() and not isinstance(): what lies about may have a __class__ that runs code.
        if issubclass(type(value), torch.nn.Module):
            yield value


def _shared(what: str, other: object) -> ValueError:
    return ValueError(
        f"in_place: {what} is shared with another model, a {type(other).__name__}; "
        "use in_place=False, which leaves both as they are"
    )
