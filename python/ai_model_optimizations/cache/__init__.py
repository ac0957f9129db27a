"""SmartCache: answers by meaning, looked up exactly, in contexts that are walls."""

from .agreement import Agreement
from .calibration import Calibration, LabelledPair
from .contexts import context_of
from .guards import ENGLISH, TURKISH, LanguageTables, TextGuard
from .metrics import CacheStats
from .results import CacheEntry, CacheHit, Rejection, ShadowHit
from .smart_cache import SmartCache
from .storage import LoadReport
from .text_keys import normalize_text

__all__ = [
    "ENGLISH",
    "TURKISH",
    "Agreement",
    "CacheEntry",
    "CacheHit",
    "CacheStats",
    "Calibration",
    "LabelledPair",
    "LanguageTables",
    "LoadReport",
    "Rejection",
    "ShadowHit",
    "SmartCache",
    "TextGuard",
    "context_of",
    "normalize_text",
]
