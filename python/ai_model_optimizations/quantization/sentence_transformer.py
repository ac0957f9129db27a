"""Quantizing a SentenceTransformer: its transformers model becomes the C encoder."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from ..embedding.folder import ModelFolder
from ..embedding.tokenization import TextTokenizer
from ..errors import ModelFormatError, PrecisionError, UnsupportedError
from . import torch_models
from .report import CosineReport, QuantizationReport, TensorReport, resident_bytes
from .request import Request
from .rounding import Rounding
from .sentence_transformer_model import CoreEncoder, QuantizedSentenceTransformer, core_of
from .sentence_transformer_parts import (
    describe,
    pack,
    parameters_of,
    places_of,
    tensor_reports,
    transformer_of,
)
from .torch_plan import check_not_shared, make_plan, stored_type
from .verify import TEXTS, check, compare

KIND = "SentenceTransformer"


def quantize(model: Any, request: Request) -> tuple[Any, QuantizationReport]:
    """Return the model with the C encoder inside, still a SentenceTransformer.

    A model that the encoder does not run has its linear layers and tables packed instead, and the
    report says why.
    """
    if isinstance(model, QuantizedSentenceTransformer):
        return _check_quantized(model, request)
    if stored := stored_type(model, request.candidates()):
        return model, QuantizationReport(type(model).__name__, stored, ())
    if any(parameter.is_meta for parameter in model.parameters()):
        return torch_models.quantize(model, request.without_texts())  # says so
    rss_before = resident_bytes()
    texts = list(request.verify_texts or TEXTS) if request.verifies else []
    wanted = np.asarray(model.encode(texts)) if texts and not request.dry_run else None
    try:
        result, report = _through_encoder(model, request, wanted)
    except (UnsupportedError, ModelFormatError) as error:
        result, report = _by_modules(model, request, wanted)
        note = (
            f"The C encoder does not run this model ({error}), so its linear layers and tables "
            "are packed and torch runs the rest."
        )
        report = replace(report, notes=(note, *report.notes))
    if not request.dry_run:
        report = replace(report, rss_before=rss_before, rss_after=resident_bytes())
    return result, report


def _by_modules(
    model: Any, request: Request, wanted: NDArray[np.float32] | None
) -> tuple[Any, QuantizationReport]:
    """Pack the model's layers one by one; texts show int8 layers their inputs."""
    plain = request.without_texts()
    if plain.sample is None:
        plain = replace(plain, sample=lambda given: given.encode(list(TEXTS)))
    if wanted is None:
        return torch_models.quantize(model, plain)
    # A copy first: a model that turns out too far off is given back as it came.
    result, report = torch_models.quantize(model, replace(plain, in_place=False))
    cosine = _compare(result, wanted, request, report.dtype)
    if request.in_place:
        del result
        result, report = torch_models.quantize(model, plain)
    return result, replace(report, cosine=cosine)


def dequantize(model: Any) -> Any:
    """Return a plain SentenceTransformer with the values that packing left.

    What the encoder had no use for (a pooler) is not there any more.
    """
    if not isinstance(model, QuantizedSentenceTransformer):
        return torch_models.dequantize(model)
    core = core_of(model)
    with torch.random.fork_rng(devices=[]):  # making a model draws random numbers
        plain = core.model_class(core.config)
    if getattr(plain, "pooler", None) is not None:
        plain.pooler = None
    encoder, architecture = core.embedding_model._encoder, core.embedding_model._folder.architecture
    parameters = dict(plain.named_parameters())
    for theirs, ours in architecture.family.tensors.items():
        for layer in range(architecture.layers if "{layer}" in theirs else 1):
            values = torch.from_numpy(encoder.tensor(ours, layer))
            parameters[theirs.format(layer=layer)].data = values
    result = copy.deepcopy(model, {id(core): plain.eval()})
    result.__class__ = SentenceTransformer
    result.__dict__.pop("_short_way_modules", None)
    return result


def _check_quantized(
    model: QuantizedSentenceTransformer, request: Request
) -> tuple[Any, QuantizationReport]:
    stored = model.embedding_model.dtype
    if stored not in request.candidates():
        raise ValueError(
            f"model: it is quantized already, to {stored}; quantize the original model, or "
            "ModelQuantizer.dequantize this one first"
        )
    return model, QuantizationReport(KIND, stored, ())


def _through_encoder(
    model: Any, request: Request, wanted: NDArray[np.float32] | None
) -> tuple[Any, QuantizationReport]:
    if type(model) is not SentenceTransformer:
        raise UnsupportedError(f"{type(model).__name__} has an encode of its own")
    if request.skip:
        raise UnsupportedError("skip keeps tensors in f32, the C encoder has one type for all")
    folder, tokenizer = describe(model)
    if request.in_place and not request.dry_run:
        first, _, transformer = transformer_of(model)
        weights = make_plan(transformer, request.without_texts()).weights
        check_not_shared(first, weights, owner=model)
    notes: list[str] = []
    for dtype in request.candidates():
        try:
            result, report = _as_type(model, folder, tokenizer, dtype, request, wanted)
            return result, replace(report, notes=tuple(notes))
        except (_DoesNotFitError, PrecisionError) as error:
            if dtype == request.candidates()[-1]:
                raise
            notes.append(f"{dtype} was left aside: {error}")
    raise AssertionError("there is always a type to try")


class _DoesNotFitError(UnsupportedError):
    """A value that the encoder cannot store in a type."""


def _as_type(
    model: Any,
    folder: ModelFolder,
    tokenizer: TextTokenizer,
    dtype: str,
    request: Request,
    wanted: NDArray[np.float32] | None,
) -> tuple[Any, QuantizationReport]:
    first, name, transformer = transformer_of(model)
    found = _examine(model, folder, dtype)
    tensors = tensor_reports(model, folder, dtype, found)
    removed = list(map(_removed, transformer.named_buffers()))
    if request.dry_run:
        return model, QuantizationReport(KIND, dtype, (*tensors, *removed))
    # With texts to compare, a model that turns out too far off is given back as it came.
    free = request.in_place and wanted is None
    packed = pack(model, folder, tokenizer, dtype, found, free=free)
    tensors = [
        replace(t, **found[t.name].figures()) if t.action == "quantized" and t.name in found else t
        for t in tensors
    ]
    report = QuantizationReport(KIND, dtype, (*tensors, *removed))
    core = CoreEncoder(packed, transformer.config, type(transformer))
    if wanted is not None:
        result = _put_in(model, first, name, transformer, core, in_place=False)
        report = replace(report, cosine=_compare(result, wanted, request, dtype))
    return _put_in(model, first, name, transformer, core, in_place=request.in_place), report


def _removed(named: tuple[str, torch.Tensor]) -> TensorReport:
    name, buffer = named
    dtype = str(buffer.dtype).removeprefix("torch.")
    size = buffer.numel() * buffer.element_size()
    return TensorReport(
        name, tuple(buffer.shape), dtype, "", size, 0, "removed", "nothing reads it"
    )


def _put_in(
    model: Any,
    first: torch.nn.Module,
    name: str,
    transformer: torch.nn.Module,
    core: CoreEncoder,
    *,
    in_place: bool,
) -> QuantizedSentenceTransformer:
    """The model, or a copy of it, with the encoder in the place of its transformers model."""
    if in_place:
        first._modules[name] = core
        result = model
    else:
        result = copy.deepcopy(model, {id(transformer): core})
        # Immutable and several MB large; the tokenizer around it is the copy's own.
        given = first.tokenizer.backend_tokenizer
        next(iter(result._modules.values())).tokenizer.backend_tokenizer.model = given.model
    result.__class__ = QuantizedSentenceTransformer
    modules = list(result.modules())[1:]
    result._short_way_modules = tuple(type(module).__name__ for module in modules)
    quantized: QuantizedSentenceTransformer = result.eval()
    return quantized


def _examine(model: Any, folder: ModelFolder, dtype: str) -> dict[str, Rounding]:
    """What rounding to a type costs, by the tensor's name.

    Refuses, before anything is freed, what the encoder would refuse half way.
    """
    places = places_of(folder)
    found: dict[str, Rounding] = {}
    for name, parameter in parameters_of(model).items():
        if name not in places:
            continue
        # Vectors stay in f32; bf16 has its range.
        found[name] = torch_models.examine(parameter, dtype if parameter.ndim > 1 else "bf16")
        if not found[name].fits:
            raise _DoesNotFitError(f"{name}: {found[name].problem(dtype)}")
    return found


def _compare(model: Any, wanted: NDArray[np.float32], request: Request, dtype: str) -> CosineReport:
    def after(texts: list[str]) -> NDArray[np.float32]:
        return np.asarray(model.encode(texts))

    report = compare(lambda _: wanted, after, request.verify_texts)
    check(report, request, dtype)
    return report
