"""ModelQuantizer: a model in, the same model in half the memory out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeVar, overload

from ..embedding import EmbeddingModel
from ..embedding.model import resolve_dtype
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
    #: a model of its kind comes. With ``request.dry_run`` nothing is changed and the model that is
    #: returned is the given one.
    module: str


def _is_embedding_model(model: object) -> bool:
    return isinstance(model, EmbeddingModel)


#: Tried in order; the first that recognises the model quantizes it.
KINDS: tuple[Kind, ...] = (Kind("EmbeddingModel", _is_embedding_model, ".embedding_model"),)


class ModelQuantizer:
    """Stores a model's weights in 16 bits.

    Parameters
    ----------
    dtype : ``"f16"``, ``"bf16"``, ``"auto"`` for the machine's fastest 16-bit type, or
        ``"smallest"`` for the one with the fewest bytes that keeps ``min_cosine``
    skip : names of tensors or layers (or dotted beginnings of names), and regexes that match whole
        names: what they match stays as it is
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
        self, model: Model, *, in_place: bool = ..., dry_run: Literal[False] = ...
    ) -> Model: ...

    @overload
    def quantize_model(
        self, model: object, *, in_place: bool = ..., dry_run: Literal[True]
    ) -> QuantizationReport: ...

    def quantize_model(self, model: Any, *, in_place: bool = False, dry_run: bool = False) -> Any:
        """Return the model with 16-bit weights.

        Parameters
        ----------
        model : see docs/quantization.md for what is understood
        in_place : free the given model's weights while it is quantized
        dry_run : change nothing and return the report that quantizing would give, sizes only

        Returns
        -------
        A model of the same kind; one that is stored in this type already is returned unchanged.
        :attr:`report` then says what was changed. The given model is left as it is, but for
        ``in_place``.

        Raises
        ------
        UnsupportedError
            If no part of this package understands ``model``.
        ValueError
            If it is stored in another 16-bit type already.
        """
        request = Request(
            self._dtype, self._skip, self._min_cosine, self._verify_texts, in_place, dry_run
        )
        for kind in KINDS:
            if kind.recognises(model):
                part = import_module(kind.module, __package__)
                result, report = part.quantize(model, request)
                if not isinstance(report, QuantizationReport):
                    raise TypeError(f"{kind.module}: quantize must return (model, report)")
                self._report = report
                return report if dry_run else result
        raise UnsupportedError(_not_a_model(model))


def _resolve(dtype: str) -> str:
    if dtype == "smallest":
        return dtype
    resolved = resolve_dtype(dtype)
    if resolved not in DTYPES:
        raise ValueError(f"dtype: expected a 16-bit type, got {dtype!r}")
    return resolved


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


def _not_a_model(model: object) -> str:
    kinds = ", ".join(kind.name for kind in KINDS)
    return f"model: got {type(model).__name__}, but only these are understood: {kinds}"
