"""Guards: they compare two questions and refuse a hit that similarity alone would allow."""

from .base import Guard, GuardSpec, make_guard
from .english import ENGLISH
from .tables import LanguageTables
from .text_guard import TextGuard
from .turkish import TURKISH

__all__ = [
    "ENGLISH",
    "TURKISH",
    "Guard",
    "GuardSpec",
    "LanguageTables",
    "TextGuard",
    "make_guard",
]
