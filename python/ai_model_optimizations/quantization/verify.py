"""Cosines between the vectors of two models over the same texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import PrecisionError
from .report import CosineReport
from .request import Request

#: Questions, statements, code, numbers and several languages, 1 to about 100 tokens.
TEXTS = (
    "How do I open an account?",
    "Hesabımı nasıl açabilirim?",
    "The invoice of 14 March 2024 over 1,250.00 EUR has not been paid.",
    "No.",
    "Wo finde ich meine Kundennummer?",
    "def mean(values): return sum(values) / len(values)",
    "The cat sat on the mat while it rained outside.",
    "¿Cuánto tarda el envío a Canarias?",
    "Kargom üç gündür aynı şubede bekliyor, ne zaman teslim edilecek?",
    "La réunion est reportée à jeudi prochain à neuf heures.",
    "error 0x80070057: the parameter is incorrect",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "please cancel my subscription and refund the last payment",
    "A very long answer begins with a short question, goes on to say what is known, admits what is "
    "not, gives an example of each, compares them with what was said before, and ends where it "
    "began, so that whoever reads it can see whether the question was answered at all, and how.",
)

Encode = Callable[[list[str]], NDArray[np.float32]]


def compare(before: Encode, after: Encode, texts: Sequence[str] | None) -> CosineReport:
    """Embed texts with both models; None takes the built-in ones."""
    chosen = list(TEXTS if texts is None else texts)
    a = np.asarray(before(chosen), np.float64)
    b = np.asarray(after(chosen), np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return CosineReport(len(chosen), float(cosines.min()), float(cosines.mean()))


def check(cosine: CosineReport, request: Request, dtype: str) -> None:
    """Raise PrecisionError if ``cosine`` is less than the request allows."""
    if not cosine.minimum >= request.least_cosine:
        raise PrecisionError(
            f"{dtype}: a text's vector has cosine {cosine.minimum:.6f} with the given model's, "
            f"min_cosine asks for {request.least_cosine}"
        )
