"""ModelQuantizer: a model in, the same model in half the memory out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any, Literal, NamedTuple, TypeVar, overload

from .._files import given_path
from ..embedding import EmbeddingModel
from ..embedding.dtypes import resolve_dtype
from ..errors import UnsupportedError
from .report import QuantizationReport
from .request import DTYPES, Request, check_skip_patterns

Model = TypeVar("Model")


class Kind(NamedTuple):
    """A kind of model: how it is recognised, and which module quantizes it."""

    name: str
    #: Must import nothing that the process has not imported: a torch model exists only when torch
    #: is in ``sys.modules``.
    recognises: Callable[[object], bool]
    #: A module of this package with ``quantize(model, request) -> (model, report)``; imported when
    #: the first model of its kind is quantized. With ``request.dry_run`` nothing is changed and the
    #: given model is returned.
    module: str


def _is_embedding_model(model: object) -> bool:
    return isinstance(model, EmbeddingModel)


def _is_dict(model: object) -> bool:
    return isinstance(model, dict)


def _is_path(model: object) -> bool:
    return isinstance(model, (str, os.PathLike))


def _is_instance_of(module: str, name: str) -> Callable[[object], bool]:
    """Recognise a class of a library that may not be installed or imported."""

    def recognises(model: object) -> bool:
        found = getattr(sys.modules.get(module), name, None)
        return isinstance(found, type) and isinstance(model, found)

    return recognises


#: Tried in order; the first that recognises the model quantizes it.
KINDS: tuple[Kind, ...] = (
    Kind("EmbeddingModel", _is_embedding_model, ".embedding_model"),
    Kind("dict of numpy arrays", _is_dict, ".tensors"),
    Kind("path of a model or safetensors file", _is_path, ".model_paths"),
    Kind(
        "SentenceTransformer",
        _is_instance_of("sentence_transformers", "SentenceTransformer"),
        ".sentence_transformer",
    ),
    Kind("torch.nn.Module", _is_instance_of("torch.nn", "Module"), ".torch_models"),
    Kind(
        "transformers.Pipeline",
        _is_instance_of("transformers.pipelines.base", "Pipeline"),
        ".torch_models",
    ),
)


class _OnClassAndInstance:
    """A method that, called on the class, makes an instance with the default settings."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: ModelQuantizer | None, owner: type[ModelQuantizer]) -> MethodType:
        return MethodType(self._function, owner() if instance is None else instance)


class ModelQuantizer:
    """Stores a model's weights in 16 or 8 bits.

    Parameters
    ----------
    dtype : ``"f16"``, ``"bf16"``, ``"int8"``, ``"auto"`` for the machine's fastest 16-bit type, or
        ``"smallest"`` for the one with the fewest bytes that keeps ``min_cosine``; where no texts
        can be embedded to measure that, f16
    skip : names of tensors or layers, dotted prefixes of names, or regexes that match whole names;
        what they match is left unquantized
    min_cosine : the smallest cosine between a text's vectors before and after that is accepted,
        over ``verify_texts``; None accepts any, and 0.999 for ``"smallest"``
    verify_texts : texts to embed before and after; None takes built-in ones when they are needed

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    """

    def __init__(
        self,
        dtype: str = "auto",
        skip: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] = (),
        min_cosine: float | None = None,
        verify_texts: Iterable[str] | None = None,
    ) -> None:
        self._dtype = _resolve(dtype)
        self._automatic = dtype == "auto"
        self._skip = check_skip_patterns(skip)
        self._min_cosine = _check_cosine(min_cosine)
        self._verify_texts = _check_texts(verify_texts)
        self._report: QuantizationReport | None = None

    @property
    def report(self) -> QuantizationReport | None:
        """What the last :meth:`quantize_model` changed; None before the first."""
        return self._report

    @overload
    def quantize_model(
        self,
        model: str | os.PathLike[str],
        *,
        in_place: bool = ...,
        dry_run: Literal[False] = ...,
        sample: Any = ...,
    ) -> Any: ...

    @overload
    def quantize_model(
        self,
        model: Model,
        *,
        in_place: bool = ...,
        dry_run: Literal[False] = ...,
        sample: Any = ...,
    ) -> Model: ...

    @overload
    def quantize_model(
        self, model: object, *, in_place: bool = ..., dry_run: Literal[True], sample: Any = ...
    ) -> QuantizationReport: ...

    def quantize_model(
        self, model: Any, *, in_place: bool = False, dry_run: bool = False, sample: Any = None
    ) -> Any:
        """Return the model with 16- or 8-bit weights.

        Parameters
        ----------
        model : see docs/quantization.md for the supported kinds
        in_place : free the given model's weights as they are quantized. It has no effect on files
            or on an EmbeddingModel, which other callers may be using
        dry_run : change nothing and return the report that quantizing would give, sizes only
        sample : for int8 torch modules, example input for one call of the model: a tensor, a tuple
            of arguments, a dict of keyword arguments, or a function that calls the model it is
            given. It determines which inputs of a layer stay in 16 bits. It is not needed for a
            SentenceTransformer or a transformers model that takes token ids, where random words
            serve as well; for other modules without it, the inputs with the largest weights stay

        Returns
        -------
        A model of the same kind; one that is stored in this type already is returned unchanged.
        :attr:`report` then says what was changed. The given model is left as it is, but for
        ``in_place``.

        Raises
        ------
        UnsupportedError
            If ``model`` is not of a supported kind.
        ValueError
            If it is already stored in another 16-bit type, or in 8 bits.
        """
        request = replace(self._request(in_place=in_place, dry_run=dry_run), sample=sample)
        for kind in KINDS:
            if kind.recognises(model):
                part = import_module(kind.module, __package__)
                result, report = part.quantize(model, request)
                if not isinstance(report, QuantizationReport):
                    raise TypeError(f"{kind.module}: quantize must return (model, report)")
                self._report = report
                return report if dry_run else result
        raise UnsupportedError(_not_a_model(model))

    def save_quantized(self, model: Any, path: str | os.PathLike[str]) -> Path:
        """Write a quantized model, atomically.

        Parameters
        ----------
        model : an :class:`EmbeddingModel`, which becomes a packed folder that
            ``EmbeddingModel.load`` maps; a dict of arrays, which becomes a safetensors file; any
            other model that has a ``save`` or ``save_pretrained`` of its own, which is called
        path : the target; see :meth:`EmbeddingModel.save` for folders. A file is replaced

        Returns
        -------
        The file that was written, or ``path`` if the model's own method wrote it.

        Raises
        ------
        UnsupportedError
            If ``model`` cannot be saved: it is something else, or a torch model with packed layers,
            which its library could not load again.
        OSError
            If it cannot be written, as on a full disk; nothing is left behind.
        """
        target = given_path(path, "path")
        if isinstance(model, EmbeddingModel):
            return model.save(target)
        if isinstance(model, dict):
            from .tensor_files import write_tensors

            return write_tensors(model, target)
        if _has_packed_layers(model):
            raise UnsupportedError(
                f"model: the packed layers of a {type(model).__name__} cannot be loaded by its own "
                "library again; torch.save the model as a whole, or quantize it after loading"
            )
        for name in ("save", "save_pretrained"):
            if callable(method := getattr(model, name, None)):
                method(str(target))
                return target
        raise UnsupportedError(_not_a_model(model))

    def quantize_path(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        dry_run: bool = False,
    ) -> QuantizationReport:
        """Quantize a model on disk into a new one; plain tensor files are not loaded whole.

        Parameters
        ----------
        source : a model folder or name, or a safetensors file or folder
        target : must not exist, or be an empty folder. A model that the encoder runs becomes a
            packed folder; any other keeps its format, with matrices and tables in 16 bits
        dry_run : write nothing and return the report that quantizing would give, sizes only

        Returns
        -------
        The report of what was changed.
        """
        from .model_paths import quantize_to

        request = self._request(dry_run=dry_run)
        self._report = quantize_to(source, given_path(target, "target"), request)
        return self._report

    @_OnClassAndInstance
    def optimize_model_memory(self, model: Any, device: str = "auto") -> Any:
        """Quantize ``model`` in place; the older name of :meth:`quantize_model`.

        Callable on an instance and, with the default settings, on the class.

        Parameters
        ----------
        model : as for :meth:`quantize_model`
        device : ``"auto"`` leaves a torch model where it is; a device such as ``"cpu"`` or
            ``"cuda"`` moves it there first

        Returns
        -------
        The same object if possible, else the quantized model.
        """
        move = getattr(model, "to", None)
        if device != "auto" and move is not None:
            model = move(device)
        in_place = not isinstance(model, EmbeddingModel)
        return self.quantize_model(model, in_place=in_place)

    @staticmethod
    def dequantize(model: Any) -> Any:
        """Return a plain float32 copy of a quantized torch model, with the stored values.

        Parameters
        ----------
        model : a SentenceTransformer or torch module that :meth:`quantize_model` returned

        Raises
        ------
        UnsupportedError
            If it is anything else, or nothing in it is quantized.
        """
        for kind in KINDS:
            if kind.recognises(model):
                undo = getattr(import_module(kind.module, __package__), "dequantize", None)
                if undo is not None:
                    return undo(model)
        raise UnsupportedError(
            f"model: expected a quantized torch model, got {type(model).__name__}"
        )

    def _request(self, *, in_place: bool = False, dry_run: bool = False) -> Request:
        return Request(
            self._dtype,
            self._skip,
            self._min_cosine,
            self._verify_texts,
            in_place,
            dry_run,
            self._automatic,
        )


def _resolve(dtype: str) -> str:
    if dtype == "smallest":
        return dtype
    if dtype == "auto":
        return resolve_dtype(dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected 'auto', 'smallest' or one of {DTYPES}, got {dtype!r}")
    return dtype


def _check_cosine(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"min_cosine: expected a number, got {type(value).__name__}")
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"min_cosine: expected -1 to 1, got {value}")
    return float(value)


def _check_texts(texts: Iterable[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"verify_texts: expected several texts, got {type(texts).__name__}")
    result = tuple(texts)
    if not result:
        raise ValueError("verify_texts: expected at least one text")
    for index, text in enumerate(result):
        if not isinstance(text, str):
            raise TypeError(f"verify_texts[{index}]: expected str, got {type(text).__name__}")
    return result


def _has_packed_layers(model: object) -> bool:
    is_module = _is_instance_of("torch.nn", "Module")
    module: Any = model if is_module(model) else getattr(model, "model", None)  # a pipeline's
    if not is_module(module):
        return False
    from .torch_modules import PackedModule, TableEmbedding

    return any(isinstance(part, (PackedModule, TableEmbedding)) for part in module.modules())


def _not_a_model(model: object) -> str:
    if type(model).__module__.partition(".")[0] in ("onnx", "onnxruntime"):
        return (
            f"model: got {type(model).__name__}; ONNX models are not supported; "
            "use onnxruntime.quantization, or give the safetensors folder it was exported from"
        )
    kinds = ", ".join(kind.name for kind in KINDS)
    return f"model: got {type(model).__name__}, but only these are understood: {kinds}"
