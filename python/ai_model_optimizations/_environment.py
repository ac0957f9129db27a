"""The ``AIMO_DISABLE`` kill switch, read in one place."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("ai_model_optimizations")

FEATURES = frozenset({"batch", "cache", "guard", "hook"})

_told: set[str] = set()  # names that were warned about


def disabled(feature: str) -> bool:
    """Whether ``AIMO_DISABLE`` (a comma-separated list) names `feature`.

    Names in it that are none are logged, each once: a kill switch with a typing mistake must not
    fail in silence.
    """
    if feature not in FEATURES:
        raise ValueError(f"feature: expected one of {sorted(FEATURES)}, got {feature!r}")
    listed = {name.strip().lower() for name in os.environ.get("AIMO_DISABLE", "").split(",")}
    for name in sorted(listed - FEATURES - _told - {""}):
        _told.add(name)
        logger.warning(
            "AIMO_DISABLE: %r is none of %s; nothing is turned off by it",
            name,
            ", ".join(sorted(FEATURES)),
        )
    return feature in listed
