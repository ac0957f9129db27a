"""Quantizing torch modules: their matrices and tables are packed, module by module."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .. import _core
from ..errors import UnsupportedError
from .calibration import find_channels
from .report import QuantizationReport, TensorReport, resident_bytes
from .request import Request
from .rounding import Rounding, add_difference, count_unfit, measure
from .torch_modules import (
    PACKED,
    TABLE_DTYPES,
    PackedConv1D,
    PackedEmbedding,
    PackedLinear,
    TableEmbedding,
    as_f32,
    pack_rows,
    pieces,
)
from .torch_plan import WIDER, Plan, Weight, check_not_shared, make_plan, stored_type

#: The first value that rounds to infinity in f16.
_INFINITE_AS_F16 = 65520.0
#: Inputs of an int8 matrix, beyond which its sums might overflow.
_INT8_INPUTS = 8192

_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}

#: Buffers of indices that transformers keeps in int64; every use of them takes int32 as well.
_INDEX_BUFFERS = ("position_ids", "token_type_ids")


def quantize(model: Any, request: Request) -> tuple[Any, QuantizationReport]:
    """Pack the matrices and tables of a torch module or of a transformers pipeline's model.

    Returns
    -------
    The quantized model, in evaluation mode, and what was changed. A pipeline comes back as a
    pipeline.
    """
    if not isinstance(model, torch.nn.Module):
        return _quantize_pipeline(model, request)
    if request.min_cosine is not None or request.verify_texts is not None:
        raise ValueError(
            f"min_cosine, verify_texts: a {type(model).__name__} takes no texts, so nothing can be "
            "compared; they work with a SentenceTransformer or an EmbeddingModel"
        )
    request = request.without_texts()
    if stored := stored_type(model, request.candidates()):
        return model, QuantizationReport(type(model).__name__, stored, ())
    plan, found = _planned(model, request)
    kept = _kept_reports(model, plan, found)
    kind, dtype = type(model).__name__, request.dtype
    if request.dry_run:
        return model, QuantizationReport(kind, dtype, (*map(_report, plan.weights), *kept))
    if request.in_place:
        check_not_shared(model, plan.weights)
    rss_before = resident_bytes()
    notes = find_channels(model, plan.weights, request.sample)
    weights = list(plan.weights)
    reports = [_report(weight) for weight in weights]
    result = (_replace_in_place if request.in_place else _copy_with)(model, plan, found)
    _finish(result)
    reports = [
        replace(report, **found[weight.name].figures())
        for report, weight in zip(reports, weights, strict=True)
    ]
    return result, QuantizationReport(
        kind,
        dtype,
        (*reports, *kept),
        rss_before=rss_before,
        rss_after=resident_bytes(),
        notes=notes,
    )


def _planned(model: torch.nn.Module, request: Request) -> tuple[Plan, dict[str, Rounding]]:
    """Decide what is packed as what; the counts are of what that does to the values."""
    plan = make_plan(model, request)
    found: dict[str, Rounding] = {}
    for weight in plan.weights:
        weight.dtype = request.dtype
        # On an accelerator 8 bits would be slower than 16.
        if request.dtype == "int8" and (not _on_cpu(weight) or weight.shape[1] > _INT8_INPUTS):
            weight.dtype = WIDER["int8"]
        found[weight.name] = examine(weight.parameter, weight.dtype, is_table=weight.is_table)
        if not found[weight.name].fits:
            plan.kept[weight.name] = found[weight.name].problem(weight.dtype)
    plan.weights = [weight for weight in plan.weights if weight.name not in plan.kept]
    return plan, found


def dequantize(model: Any) -> Any:
    """Return a copy with plain float32 modules in the places of packed ones.

    Weights that were tied are tied again; they have the values that packing left.
    """
    if not isinstance(model, torch.nn.Module):
        other = copy.copy(model)  # a pipeline
        other.model = dequantize(model.model)
        return other
    packed = [module for module in model.modules() if isinstance(module, PACKED)]
    if not packed:
        raise UnsupportedError(f"model: nothing in this {type(model).__name__} is quantized")
    replacements: dict[int, torch.nn.Module] = {}
    parameters: dict[int, torch.nn.Parameter] = {}
    for module in packed:
        plain = module.original()
        _take_hooks(plain, module, share=False)
        memory = next(iter(module._buffers.values())).data_ptr()
        plain.weight = parameters.setdefault(memory, plain.weight)
        replacements[id(module)] = plain
    result: torch.nn.Module = copy.deepcopy(model, dict(replacements))
    return result


def _quantize_pipeline(pipeline: Any, request: Request) -> tuple[Any, QuantizationReport]:
    """The pipeline itself when in place, else a copy that shares tokenizer and settings."""
    result, report = quantize(pipeline.model, request)
    if request.dry_run or result is pipeline.model:
        return pipeline, report
    other = copy.copy(pipeline)
    other.model = result
    return other, report


def examine(parameter: torch.Tensor, dtype: str, *, is_table: bool = False) -> Rounding:
    """Count what storing a tensor in ``dtype`` does to its values, a few MB at a time.

    For int8 that is only whether they fit: a table has scales for any value, but some channels of a
    matrix stay in f16. Packing counts the rest.
    """
    result = Rounding()
    limit = math.inf if is_table else _INFINITE_AS_F16
    flat = parameter.detach().reshape(len(parameter), -1)
    for first, count in pieces(*flat.shape):
        values = as_f32(flat[first : first + count])
        if dtype == "int8":
            count_unfit(values, limit, result)
        else:
            measure(values, dtype, result)
    return result


def _on_cpu(weight: Weight) -> bool:
    return bool(weight.parameter.device.type == "cpu")


def _pack(weight: Weight, found: Rounding) -> list[torch.nn.Module]:
    """Return a weight's new modules, in the order of the old ones; int8 errors go to ``found``."""
    if not _on_cpu(weight):
        return [_in_half(old, _narrowed(weight)) for old in weight.modules]
    if weight.is_table:
        return _pack_table(weight, found)
    (n, k), dtype = weight.shape, weight.dtype
    panels, matrix = pack_rows(dtype, n, k, weight.channels)
    source = weight.parameter.detach()
    if weight.kinds[0] == "conv1d":
        source = source.t()
    for first, count in pieces(n, k):
        values = as_f32(source[first : first + count])
        matrix.pack(first, values)
        if dtype == "int8":
            add_difference(values, matrix.unpack(first, count), found)
    return [
        _new_module(module, kind, panels, dtype, n, k)
        for module, kind in zip(weight.modules, weight.kinds, strict=True)
    ]


def _new_module(
    old: torch.nn.Module, kind: str, panels: torch.Tensor, dtype: str, n: int, k: int
) -> torch.nn.Module:
    if kind == "embedding":
        output_dtype = old.weight.dtype
        return PackedEmbedding(panels, dtype, n, k, old.padding_idx, output_dtype)
    bias = None if old.bias is None else old.bias.detach().clone()
    return (PackedConv1D if kind == "conv1d" else PackedLinear)(panels, dtype, n, k, bias)


def _narrowed(weight: Weight) -> torch.Tensor:
    """The weight in 16 bits, row by row, where it lies."""
    source = weight.parameter.detach()
    table = torch.empty_like(source, dtype=TABLE_DTYPES[weight.dtype])
    for first, count in pieces(*source.shape):
        table[first : first + count] = source[first : first + count]
    return table


def _pack_table(weight: Weight, found: Rounding) -> list[torch.nn.Module]:
    """Tables are kept row by row, int8 with a scale for each."""
    scale = None
    if weight.dtype == "int8":
        table, scale = _eight_bits(weight.parameter.detach(), found)
    else:
        table = _narrowed(weight)
    return [
        TableEmbedding(table, weight.dtype, old.padding_idx, old.weight.dtype, scale)
        for old in weight.modules
    ]


def _eight_bits(source: torch.Tensor, found: Rounding) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.empty_like(source, dtype=torch.int8)
    scale = torch.empty(len(source), dtype=torch.float32)
    for first, count in pieces(*source.shape):
        values = source[first : first + count].float()
        part = scale[first : first + count]
        torch.div(values.abs().amax(dim=1), 127.0, out=part)
        # A row of zeros has the scale 0, and whatever it is divided by stays 0.
        steps = (values / part.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
        table[first : first + count] = steps.clamp_(-127, 127)
        after = table[first : first + count].float() * part[:, None]
        add_difference(values.numpy(), after.numpy(), found)
    return table, scale


def _in_half(old: torch.nn.Module, weight: torch.Tensor) -> torch.nn.Module:
    """The same module with a real half weight."""
    memo: dict[int, Any] = {id(old.weight): torch.nn.Parameter(weight, requires_grad=False)}
    module: torch.nn.Module = copy.deepcopy(old, memo)
    return module.to(weight.dtype)


def _copy_with(
    model: torch.nn.Module, plan: Plan, found: Mapping[str, Rounding]
) -> torch.nn.Module:
    """A copy in which the packed modules stand; the large weights are never copied."""
    memo: dict[int, Any] = {}
    for weight in plan.weights:
        for old, new in zip(weight.modules, _pack(weight, found[weight.name]), strict=True):
            _take_hooks(new, old, share=False)
            memo[id(old)] = new
    try:
        result: torch.nn.Module = copy.deepcopy(model, memo)
        return result
    except (TypeError, RuntimeError) as error:
        raise UnsupportedError(
            f"model: this {type(model).__name__} cannot be copied ({error}); use in_place=True"
        ) from error


def _replace_in_place(
    model: torch.nn.Module, plan: Plan, found: Mapping[str, Rounding]
) -> torch.nn.Module:
    """Replace weight by weight; each one's memory is free before the next is packed."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    result = model
    while plan.weights:
        weight = plan.weights.pop(0)
        for old, new in zip(weight.modules, _pack(weight, found[weight.name]), strict=True):
            _take_hooks(new, old, share=True)
            for parent, name in places.get(id(old), ()):
                parent._modules[name] = new
            if old is model:
                result = new
    return result


def _take_hooks(new: torch.nn.Module, old: torch.nn.Module, *, share: bool) -> None:
    """Give a module the forward hooks of the one that it replaces.

    Shared, the handles that the caller holds still remove them.
    """
    for name, hooks in old.__dict__.items():
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            new.__dict__[name] = hooks if share else copy.copy(hooks)


def _finish(model: torch.nn.Module) -> None:
    """Turn off training, shrink index buffers, and keep equal masks only once."""
    model.requires_grad_(False)
    model.eval()
    masks: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, PACKED):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_floating_point():
                module._buffers[name] = _smaller_buffer(name, buffer, masks)


def _smaller_buffer(name: str, buffer: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor:
    if name in _INDEX_BUFFERS and buffer.dtype == torch.int64 and _gathers_int32():
        return buffer.to(torch.int32)
    equal = _equal_mask(buffer, masks)
    return buffer if equal is None else equal


def _equal_mask(buffer: torch.Tensor, masks: list[torch.Tensor]) -> torch.Tensor | None:
    """Return an equal one of the masks seen before, to which a new one is added."""
    if buffer.dtype != torch.bool or buffer.numel() < 1024:
        return None
    for other in masks:
        if other.shape == buffer.shape and torch.equal(other, buffer):
            return other
    masks.append(buffer)
    return None


def _gathers_int32() -> bool:
    index = torch.zeros(1, dtype=torch.int32)
    try:
        torch.gather(index, 0, index)
    except RuntimeError:  # older versions of torch
        return False
    return True


def _kept_reports(
    model: torch.nn.Module, plan: Plan, found: Mapping[str, Rounding]
) -> tuple[TensorReport, ...]:
    packed = {weight.name for weight in plan.weights}
    reports = [
        _kept(name, parameter, plan.kept.get(name, "nothing here packs it"), found)
        for name, parameter in model.named_parameters()
        if name not in packed
    ]
    masks: list[torch.Tensor] = []
    for name, buffer in model.named_buffers():
        report = _kept(name, buffer, "a buffer", {})
        if _equal_mask(buffer, masks) is not None:
            report = replace(report, bytes_after=0, action="removed", reason="an equal mask stays")
        reports.append(report)
    return tuple(reports)


def _kept(
    name: str, tensor: torch.Tensor, reason: str, found: Mapping[str, Rounding]
) -> TensorReport:
    size = tensor.numel() * tensor.element_size()
    after, dtype = size, _dtype_name(tensor)
    short = name.rsplit(".", 1)[-1]
    if short in _INDEX_BUFFERS and tensor.dtype == torch.int64 and _gathers_int32():
        after, reason = size // 2, "indices: 32 bits are enough"
    return TensorReport(
        name,
        tuple(tensor.shape),
        dtype,
        dtype if after == size else "int32",
        size,
        after,
        "kept",
        reason,
        overflowed=found[name].overflowed if name in found else 0,
    )


def _dtype_name(tensor: torch.Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _report(weight: Weight) -> TensorReport:
    parameter, dtype = weight.parameter, weight.dtype
    if not _on_cpu(weight) or (weight.is_table and dtype != "int8"):
        size = parameter.numel() * TABLE_DTYPES[dtype].itemsize
    elif weight.is_table:
        size = parameter.numel() + 4 * len(parameter)
    else:
        size = _core.packed_size(dtype, *weight.shape)
    return TensorReport(
        weight.name,
        tuple(parameter.shape),
        _dtype_name(parameter),
        dtype,
        parameter.numel() * parameter.element_size(),
        size,
        "quantized",
    )
